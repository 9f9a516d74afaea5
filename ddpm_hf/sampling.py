"""Samples of a trained model, each a function of a seed and its number, and one grid of them."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import SchedulerMixin
from PIL import Image

from ddpm_hf.checkpoint import ADVICE, find_checkpoint, load_state, load_tensors
from ddpm_hf.config import TrainingConfig, check_saved_options
from ddpm_hf.images.batches import seed_of
from ddpm_hf.loading import load_pipeline
from ddpm_hf.other_schedulers import make_scheduler, settings_of
from ddpm_hf.pictures import image_grid, save_marked
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom, check_timesteps
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.precision import autocast
from ddpm_hf.processes import gathered, this_process
from ddpm_hf.run_files import CHECKPOINTS, STATE
from ddpm_hf.schedulers import SCHEDULERS
from ddpm_hf.training.model import how_to_draw, make_model
from ddpm_hf.unet_ddpm import DDPMUNetModel
from ddpm_hf.weights import check_finite, digest_of_weights


@dataclass(frozen=True)
class Classes:
    """The class of each sample. The labels take turns.

    Args:
        labels (`tuple[int | str, ...]`): Numbers or names. Image i has label i modulo their number. If empty, no class.
        guidance_scale, guidance_interval: See [`DDPMPipelineCustom`].
    """

    labels: tuple[int | str, ...] = ()
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def chosen(
        cls,
        pipeline: DDPMPipelineCustom,
        labels: Sequence[str] | None,
        guidance_scale: float | None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
    ) -> "Classes":
        """Return the classes that the user named. The default is all named classes of the model, without guidance."""
        names = pipeline.unet.config.get("class_names") or ()
        numbers = [int(label) if label.isdecimal() and label not in names else label for label in labels or names]
        return cls(tuple(numbers), 1.0 if guidance_scale is None else guidance_scale, guidance_interval)

    def options(self, indices: Sequence[int]) -> dict:
        """Return the arguments of a pipeline call that draws these images."""
        labels = [self.labels[i % len(self.labels)] for i in indices] if self.labels else None
        guidance = {"guidance_scale": self.guidance_scale, "guidance_interval": self.guidance_interval}
        return {"class_labels": labels, **guidance}

    def recorded_guidance(self) -> dict:
        """Return the guidance for a record. Without an interval it is in all steps, as in older records."""
        start, end = self.guidance_interval
        interval = {} if (start, end) == (0, 1) else {"guidance_interval": f"{start} to {end}"}
        return {"guidance_scale": self.guidance_scale, **interval}


@dataclass(frozen=True)
class Drawing:
    """How images are drawn. It holds for any model.

    Args:
        seed (`int`): Seed of the noise. Image i depends on the model, the settings here, and i.
        num_inference_steps (`int`, *optional*): Denoising steps; by default those that the model recommends.
        batch_size (`int`, *optional*): Number of images drawn at once; None where it is chosen by measuring.
        classes ([`Classes`]): Classes of the images, for a class-conditional model.
        mixed_precision (`str`): Precision of the network, see [`~ddpm_hf.precision.autocast`].
    """

    seed: int = 0
    num_inference_steps: int | None = None
    batch_size: int | None = 16
    classes: Classes = Classes()
    mixed_precision: str = "no"


def draw_images(
    pipeline: DDPMPipelineCustom, indices: Iterable[int], how: Drawing
) -> Iterator[tuple[int, Image.Image | np.ndarray]]:
    """Draw images. Each depends on the model, `how` and its index alone, up to rounding by the batch size.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model, on its device.
        indices (`Iterable[int]`): The indices of the images to draw.
        how ([`Drawing`]): The settings.

    Yields:
        `tuple`: The index and the image, as [`DDPMPipelineCustom`] gives it.
    """
    indices = iter(indices)
    while batch := list(islice(indices, how.batch_size)):
        generators = generators_of(pipeline.device, how.seed, batch)
        with autocast(pipeline.device, how.mixed_precision):
            options = {**how.classes.options(batch), "return_dict": False}
            (images,) = pipeline(len(batch), generators, how.num_inference_steps, **options)
        yield from zip(batch, images)


def pictures_in_order(
    pipeline: DDPMPipelineCustom, drawn: Iterable[tuple[int, Image.Image | np.ndarray]]
) -> list[Image.Image]:
    """Return pictures for the eye of what [`draw_images`] yields, in the order of the indices."""
    form = PixelFormat.of_model(pipeline.unet.config)
    return [form.picture_of(sample) for _, sample in sorted(drawn, key=lambda pair: pair[0])]


def draw_samples(pipeline: DDPMPipelineCustom, config: TrainingConfig, accelerator: Accelerator) -> list[Image.Image]:
    """Draw the `eval_batch_size` samples of a run, shared out over the processes.

    Image i depends on nothing but the weights, the seed and i.
    """
    mine = range(accelerator.process_index, config.eval_batch_size, accelerator.num_processes)
    pipeline.unet.eval()
    pipeline.set_progress_bar_config(desc="Sampling", leave=False, disable=not accelerator.is_main_process)
    classes = Classes.chosen(pipeline, None, config.guidance_scale, config.guided_part)
    how = Drawing(config.seed, config.ddpm_num_inference_steps, len(mine), classes, config.mixed_precision)
    parts = gathered(lambda: list(draw_images(pipeline, mine, how)))
    return pictures_in_order(pipeline, (pair for part in parts for pair in part))


def generators_of(device: torch.device, seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """Return the source of noise of each image with one of these indices."""
    return [torch.Generator(device).manual_seed(seed_of(seed, "sample", i)) for i in indices]


def open_model(
    source: str, checkpoint: str | None, scheduler: str | None, revision: str | None, steps: int | None = None
) -> DDPMPipelineCustom:
    """Open the pipeline of a run, a folder, a repository, or one of a run's checkpoints.

    Args:
        source (`str`): The folder of a run or of a pipeline, or a Hub id.
        checkpoint (`str`, *optional*): The name of a checkpoint of the run, such as step-000500, or "latest".
        scheduler (`str`, *optional*): A key of `SCHEDULERS`. It replaces the saved scheduler.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id.
        steps (`int`, *optional*): Denoising steps that it shall draw with; by default those that it recommends.

    Returns:
        [`DDPMPipelineCustom`]: On the device of this process.

    Raises:
        ValueError: If there is no such checkpoint, the source is not a DDPM, has fewer timesteps, or is a student of
            other steps.
        OSError: If the source cannot be read.
    """
    pipeline = _open_checkpoint(Path(source), checkpoint) if checkpoint else load_pipeline(source, revision=revision)
    draw_with(pipeline, source, scheduler, steps)
    return pipeline.to(this_process().device)


def draw_with(pipeline: DDPMPipelineCustom, source: str, scheduler: str | None, steps: int | None):
    """Let a pipeline draw with another scheduler, if one is named. The arguments are those of [`open_model`].

    Raises:
        ValueError: If the scheduler or the steps do not fit the model.
    """
    if student := pipeline.config.get("distilled"):
        if scheduler not in (None, "ddim"):
            raise ValueError(f"--scheduler {scheduler}: {source} is a student, and draws with DDIM; leave it out.")
        if steps not in (None, student["steps"]):
            raise ValueError(
                f"--num_inference_steps {steps}: {source} is a student of {student['steps']} steps; leave it out."
            )
    elif steps and steps > (T := pipeline.scheduler.config.num_train_timesteps):
        raise ValueError(f"--num_inference_steps {steps}: {source} has {T} timesteps; pass {T} or fewer.")
    elif scheduler:
        steps, fewest = steps or pipeline.default_num_inference_steps, SCHEDULERS[scheduler].fewest
        if steps < fewest:
            raise ValueError(f"--num_inference_steps {steps}: {scheduler} takes {fewest} or more.")
        try:
            pipeline.scheduler = make_scheduler(scheduler, settings_of(pipeline), steps)
        except ValueError as error:
            raise ValueError(f"--scheduler {scheduler}: {source} cannot be drawn with it: {error}") from error


def check_steps(scheduler: SchedulerMixin, steps: int, guidance_interval: tuple[float, float]):
    """Raise a ValueError if a scheduler cannot take so many steps, or if none of them would be guided."""
    if not hasattr(scheduler, "precondition_outputs"):  # EDM's have other timesteps
        scheduler.set_timesteps(steps)
        check_timesteps(scheduler, steps, guidance_interval)


def _open_checkpoint(run: Path, name: str) -> DDPMPipelineCustom:
    path, problems = find_checkpoint(run / CHECKPOINTS, name, flag="--checkpoint")
    print("\n".join(problems), end="\n" if problems else "")
    if path is None:
        raise ValueError(f"--checkpoint {name}: there are none in {run / CHECKPOINTS}.")
    options, tensors = load_state(path)["config"], load_tensors(path)
    check_saved_options(options, path / STATE, ADVICE)
    config = TrainingConfig(**options)
    unet, scheduler = make_model(config, channels=tensors["model"]["conv_in.weight"].shape[1])
    unet.load_state_dict(tensors["model"])
    if config.use_ema:
        for i, parameter in enumerate(unet.parameters()):
            parameter.data.copy_(tensors["ema"][str(i)])
    check_finite(unet, str(path))
    unet.augment_embedding = None  # a sample is not augmented
    return DDPMPipelineCustom(unet.eval(), *how_to_draw(config, scheduler))


def save_grid(pipeline: DDPMPipelineCustom, path: Path, how: Drawing):
    """Draw one batch of images, and save it as one picture.

    Raises:
        ValueError: If the suffix of the file name belongs to no picture format.
        OSError: If the file cannot be written.
    """
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--output {path}: expected the name of a picture, such as samples.png.")
    form = PixelFormat.of_model(pipeline.unet.config)
    mode = form.mode if form.is_picture else "RGB"
    try:
        Image.new(mode, (1, 1)).save(io.BytesIO(), Image.registered_extensions()[path.suffix.lower()])
    except (OSError, KeyError) as error:
        raise ValueError(
            f"--output {path}: such a file holds no {mode} picture; name one that ends in .png."
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    assert how.batch_size is not None  # nothing is measured for one grid
    pictures = pictures_in_order(pipeline, draw_images(pipeline, range(how.batch_size), how))
    save_marked(form.captioned(image_grid(pictures)), path)


def fingerprint(unet: DDPMUNetModel, scheduler: SchedulerMixin) -> str:
    """Return 16 digits that change with the weights of the U-Net or the values in the scheduler's configuration."""
    digest = hashlib.sha256(digest_of_weights(unet))
    config = {key: value for key, value in scheduler.config.items() if key[0] != "_"}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
