"""Losses and samples in TensorBoard and Weights & Biases, through accelerate."""

import dataclasses
import json
import sys

import numpy as np
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, is_tensorboard_available, is_wandb_available
from PIL import Image

from ddpm_hf.config import TrainingConfig
from ddpm_hf.tokens import hide_tokens


def tracking_options(config: TrainingConfig) -> dict:
    """Return the arguments of an [`~accelerate.Accelerator`] that logs as `logger` says.

    `"all"` means all trackers that are installed.

    Raises:
        ValueError: If the logger is not installed; accelerate would only warn.
    """
    installed = {"tensorboard": is_tensorboard_available(), "wandb": is_wandb_available()}
    if not installed.get(config.logger, True):
        raise ValueError(f"--logger {config.logger} is not installed: pip install {config.logger}.")
    loggers = [name for name, there in installed.items() if there] if config.logger == "all" else [config.logger]
    logs = config.folder / config.logging_dir / (config.run_name or "")
    folders = ProjectConfiguration(config.output_dir, logging_dir=str(logs))
    return {"log_with": None if config.logger == "none" else loggers, "project_config": folders}


def start_trackers(accelerator: Accelerator, config: TrainingConfig):
    """Begin to log, with all options. Tokens are hidden, since wandb records the command line."""
    sys.argv = [hide_tokens(argument, config.hub_token) for argument in sys.argv]
    options = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    texts = {name: json.dumps(value) for name, value in options.items() if isinstance(value, (dict, list))}
    of_wandb = {"name": config.run_name or config.folder.resolve().name}
    accelerator.init_trackers("ddpm_hf", {**options, **texts}, {"wandb": of_wandb})


def track_numbers(accelerator: Accelerator, numbers: dict, step: int):
    """Log the numbers that are not None."""
    accelerator.log({name: value for name, value in numbers.items() if value is not None}, step=step)


def track_samples(accelerator: Accelerator, images: list[Image.Image], step: int):
    """Log samples as pictures."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            pixels = np.stack([np.atleast_3d(np.asarray(image)) for image in images])
            tracker.log_images({"samples": pixels}, step=step, dataformats="NHWC")
        else:
            tracker.log_images({"samples": images}, step=step)
