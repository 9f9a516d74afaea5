"""What a training tells the person at the terminal."""

import numpy as np
import torch

from ddpm_hf.config import TrainingConfig
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.run_files import BEST, LOSS, METRICS, SAMPLES, SNAPSHOTS
from ddpm_hf.terminal import as_argument
from ddpm_hf.training.best import KeptBest
from ddpm_hf.training.loss_history import images_until_full
from ddpm_hf.training.run_folder import bytes_of_run, bytes_of_snapshots
from ddpm_hf.training.step_cost import StepCost
from ddpm_hf.unet_ddpm import DDPMUNetModel


def describe(
    config: TrainingConfig, unet: DDPMUNetModel, images: int | None, images_per_step: int, held_out: int = 0
) -> str:
    """Describe the sizes of the run in one line."""
    steps, seen = config.total_steps, config.total_steps * images_per_step
    if images:
        data, length = f"{images:,} images", f"{seen / images:.1f} epochs"
    else:
        data, length = "streamed images" if config.streaming else "an unknown number of images", f"{seen:,} images"
    form = PixelFormat.of_model(unet.config)
    pixels = f" Pixels: {form.describe()}." if form.settings() else ""
    base = f" It is fine-tuned from {config.pretrained_model_name_or_path}."
    if config.distill_steps:
        base = f" It learns from {config.pretrained_model_name_or_path} to draw in {config.distill_steps} steps."
    apart = f" ({held_out:,} more are held out)" if held_out else ""
    start = (
        f" Its configuration is that of {config.model_config_name_or_path}, without the weights: it starts at random."
        if config.model_config_name_or_path
        else base * bool(config.pretrained_model_name_or_path)
    )
    size = "" if config.model_size == "auto" else f", size {config.model_size}"
    snapshots = ""
    if config.posthoc_ema:
        taken = megabytes(bytes_of_snapshots(config, unet.get_memory_footprint()))
        snapshots = f" Snapshots of two averages: {config.posthoc_ema}, which take {taken} of disk."
    time = f" in about {config.max_train_minutes:g} minutes" if config.max_train_minutes else ""
    timesteps = _begin_of_timesteps(config, images_per_step)
    return (
        f"Preset {config.preset}{size}: a U-Net with {unet.num_parameters() / 1e6:.2f} M parameters, {data}"
        f"{apart}, {steps:,} steps{time} of {images_per_step} images ({length}), mixed precision "
        f"{config.mixed_precision}, {torch.get_num_threads()} CPU threads.{pixels}{snapshots}{start}{timesteps}"
    )


def _begin_of_timesteps(config: TrainingConfig, images_per_step: int) -> str:
    """Say when timesteps begin to be drawn by their losses, if they are."""
    if config.timestep_sampling != "loss_second_moment":
        return ""
    step = images_until_full(config.ddpm_num_steps) // images_per_step + 1
    never = ", which is after the end of this run" * (step > config.total_steps)
    return f" Timesteps are drawn by their losses once each has had ten: from about step {step:,} on{never}."


def describe_cost(
    config: TrainingConfig,
    unet: DDPMUNetModel,
    images: int | None,
    images_per_step: int,
    cost: StepCost | None,
    memory: str,
) -> str:
    """Say what a run costs on this machine: time, memory and disk. Without enough memory the time is not known."""
    if cost is None:
        return f"  memory   {memory}"
    seconds, channels = config.total_steps * cost.seconds, unet.config.in_channels
    (height, width), itemsize = config.size, np.dtype(PixelFormat.of_model(unet.config).stored).itemsize
    cache = f", and {megabytes(images * height * width * channels * itemsize)} for the decoded images" if images else ""
    how = "estimated from a part of its images" if cost.is_estimated else "measured"
    kept = "models, checkpoints and snapshots" if config.posthoc_ema else "models and checkpoints"
    widths = " / ".join(map(str, unet.config.block_out_channels))
    rows = {
        "network": f"{unet.num_parameters():,} parameters, {widths} channels",
        "step": f"{cost.seconds:.3g} seconds ({how}), {images_per_step / cost.seconds:.0f} images/s",
        "memory": memory,
        "run": f"{config.total_steps:,} steps, {duration(seconds)}, and the time for drawing and measuring",
        "disk": f"{megabytes(bytes_of_run(config, unet.get_memory_footprint()))} for {kept}{cache}",
    }
    return "\n".join(f"  {name:9}{text}" for name, text in rows.items())


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """Say how long something takes, in the unit that a person would choose."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def farewell(config: TrainingConfig, steps: int, step: int, training: float, others: float) -> str:
    """Say how long the run took, where everything is, and how to go on.

    Args:
        config ([`TrainingConfig`]): The options.
        steps (`int`): Steps that were taken now.
        step (`int`): Steps that were taken in all.
        training, others (`float`): Seconds of the steps, and of drawing, measuring and saving.
    """
    lines = []
    if step < config.total_steps:
        once = {"--overwrite_output_dir": config.overwrite_output_dir}
        once["--resume_from_checkpoint"] = config.resume_from_checkpoint != "latest"
        without = "".join(f" without {flag}" for flag, is_given in once.items() if is_given)
        lines.append(f"Stopped at step {step:,} of {config.total_steps:,}; the same command{without} goes on.")
    apart = f", and {duration(others)} for drawing, measuring and saving" if others >= 1 else ""
    lines.append(f"Trained {steps:,} steps in {duration(training)}{apart}.")
    folder = config.folder
    places = {folder: "the model", folder / SAMPLES: "pictures that it draws", folder / LOSS: "the loss"}
    places[folder / METRICS] = "all numbers"
    if config.posthoc_ema:
        places[folder / SNAPSHOTS] = "snapshots, from which `ddpm-hf ema` makes averages"
    if best := KeptBest(config).describe():
        places[folder / BEST] = best
    there = {str(place): what for place, what in places.items() if place.exists()}
    width = max(map(len, there), default=0)
    lines += [f"  {place:{width}}  {what}" for place, what in there.items()]
    draw = f"ddpm-hf sample {as_argument(folder)}"
    if PixelFormat.of_model(config.model | {"in_channels": 1}).suffix != ".png":
        draw += " --num_images 16"  # a grid shows such samples with 8 bits only
    return "\n".join([*lines, f"Draw more with: {draw}"])
