"""Samples of a trained model: one grid, or a folder of any size, which can be interrupted and continued."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import SchedulerMixin
from PIL import Image
from tqdm.auto import tqdm

from ddpm_hf.checkpoint import ADVICE, find_checkpoint, load_state, load_tensors
from ddpm_hf.config import GUIDANCE_SCALE, TrainingConfig, check_saved_options
from ddpm_hf.files import read_json, write_json
from ddpm_hf.images.arrays import read_array
from ddpm_hf.images.batches import seed_of
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pictures import image_grid, save_marked
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.precision import autocast
from ddpm_hf.processes import gathered, this_process, together
from ddpm_hf.run_files import CHECKPOINTS, STATE
from ddpm_hf.schedulers import SCHEDULERS
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler
from ddpm_hf.training.model import make_model
from ddpm_hf.weights import check_finite, digest_of_weights

_DRAWN, _UNFINISHED = (
    re.compile(r"\d{6,}\.(png|tif|npy)"),
    re.compile(r"\.unfinished-\d+-\d{6,}\.(png|tif|npy)"),
)  # names of samples
SETTINGS = "sampling.json"  # in a folder of samples: the settings they were drawn with


@dataclass(frozen=True)
class Classes:
    """The class of each sample. The labels take turns.

    Args:
        labels (`tuple[int | str, ...]`): Numbers or names. Image i has label i modulo their number. If empty, no class.
        guidance_scale (`float`): See [`DDPMPipelineCustom`].
    """

    labels: tuple[int | str, ...] = ()
    guidance_scale: float = 1.0

    @classmethod
    def chosen(
        cls, pipeline: DDPMPipelineCustom, labels: Sequence[str] | None, guidance_scale: float | None
    ) -> "Classes":
        """Return the classes that the user named. The default is all named classes of the model, with guidance."""
        names = pipeline.unet.config.get("class_names") or ()
        numbers = [int(label) if label.isdecimal() and label not in names else label for label in labels or names]
        default = GUIDANCE_SCALE if names else 1.0
        return cls(tuple(numbers), default if guidance_scale is None else guidance_scale)

    def options(self, indices: Sequence[int]) -> dict:
        """Return the arguments of a pipeline call that draws these images."""
        labels = [self.labels[i % len(self.labels)] for i in indices] if self.labels else None
        return {"class_labels": labels, "guidance_scale": self.guidance_scale}


@dataclass(frozen=True)
class Drawing:
    """How images are drawn. It holds for any model.

    Args:
        seed (`int`): Seed of the noise. Image i depends on the model, the settings here, and i.
        num_inference_steps (`int`, *optional*): Denoising steps; by default those that the model recommends.
        batch_size (`int`): Number of images drawn at once.
        classes ([`Classes`]): Classes of the images, for a class-conditional model.
        mixed_precision (`str`): Precision of the network, see [`~ddpm_hf.precision.autocast`].
    """

    seed: int = 0
    num_inference_steps: int | None = None
    batch_size: int = 16
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
    classes = Classes.chosen(pipeline, None, config.guidance_scale)
    how = Drawing(config.seed, config.ddpm_num_inference_steps, len(mine), classes, config.mixed_precision)
    parts = gathered(lambda: list(draw_images(pipeline, mine, how)))
    return pictures_in_order(pipeline, (pair for part in parts for pair in part))


def generators_of(device: torch.device, seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """Return the source of noise of each image with one of these indices."""
    return [torch.Generator(device).manual_seed(seed_of(seed, "sample", i)) for i in indices]


def open_model(source: str, checkpoint: str | None, scheduler: str | None, revision: str | None) -> DDPMPipelineCustom:
    """Open the pipeline of a run, a folder, a repository, or one of a run's checkpoints.

    Args:
        source (`str`): The folder of a run or of a pipeline, or a Hub id.
        checkpoint (`str`, *optional*): The name of a checkpoint of the run, such as step-000500, or "latest".
        scheduler (`str`, *optional*): A key of `SCHEDULERS`. It replaces the saved scheduler.
        revision (`str`, *optional*): Branch, tag or commit of a Hub id.

    Returns:
        [`DDPMPipelineCustom`]: On the device of this process.

    Raises:
        ValueError: If there is no such checkpoint, or the source is not a DDPM.
        OSError: If the source cannot be read.
    """
    pipeline = _open_checkpoint(Path(source), checkpoint) if checkpoint else load_pipeline(source, revision=revision)
    if scheduler:
        pipeline.scheduler = make_scheduler(scheduler, pipeline.scheduler.config)
    return pipeline.to(this_process().device)


def make_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """Make a scheduler with the betas and the prediction type of another one.

    Args:
        name (`str`): A key of `SCHEDULERS`.
        config (`Mapping`): The configuration of the other scheduler.
    """
    kind = DDPMLinearScheduler if name == "ddpm" else getattr(diffusers, SCHEDULERS[name])
    return kind.from_config(config)


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
    return DDPMPipelineCustom(unet.eval(), scheduler, config.ddpm_num_inference_steps)


def save_grid(pipeline: DDPMPipelineCustom, path: Path, how: Drawing):
    """Draw one batch of images, and save it as one picture.

    Raises:
        ValueError: If the suffix of the file name belongs to no picture format.
        OSError: If the file cannot be written.
    """
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--output {path}: expected the name of a picture, such as samples.png.")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = pictures_in_order(pipeline, draw_images(pipeline, range(how.batch_size), how))
    save_marked(PixelFormat.of_model(pipeline.unet.config).captioned(image_grid(pictures)), path)


def fill_folder(pipeline: DDPMPipelineCustom, folder: Path, num_images: int, how: Drawing, source: str):
    """Draw images 0 to `num_images` - 1 into a folder, and skip those that exist. The processes share the work.

    Args:
        pipeline, how: See [`draw_images`].
        folder (`Path`): Folder for 000000.png, 000001.png, ..., and their settings. Samples that are no pictures have
            the suffix of their format, .tif or .npy.
        num_images (`int`): Number of images in the folder at the end.
        source (`str`): Name of the model, for the settings.

    Raises:
        ValueError: If the images in the folder were drawn with other settings.
        OSError: If the folder cannot be written.
    """
    state = this_process()
    settings = {
        "source": source,
        "model": fingerprint(pipeline),
        "seed": how.seed,
        "num_inference_steps": how.num_inference_steps or pipeline.default_num_inference_steps,
        "scheduler": type(pipeline.scheduler).__name__,
        "mixed_precision": how.mixed_precision,
        "classes": {"labels": list(how.classes.labels), "guidance_scale": how.classes.guidance_scale},
    }
    T = pipeline.scheduler.config.num_train_timesteps
    together(lambda: _claim(folder, settings, T) if state.is_main_process else None)
    mine = range(state.process_index, num_images, state.num_processes)
    form = PixelFormat.of_model(pipeline.unet.config)
    missing = together(lambda: [i for i in mine if not _is_whole(picture_path(folder, i, form.suffix))])
    pipeline.set_progress_bar_config(disable=True)
    bar = tqdm(total=len(mine), initial=len(mine) - len(missing), unit="img", disable=not state.is_main_process)

    def draw():
        for i, image in draw_images(pipeline, missing, how):
            path = picture_path(folder, i, form.suffix)
            unfinished = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
            save_sample(image, unfinished)
            os.replace(unfinished, path)
            bar.update()

    with bar:
        together(draw)


def _is_whole(path: Path) -> bool:
    """Return whether a picture exists and is whole. A crash of the machine can leave a part of one."""
    try:
        if path.suffix != ".png":
            return bool(read_sample(path).size)
        with Image.open(path) as picture:
            picture.verify()
        return True
    except (OSError, SyntaxError, ValueError):
        return False


def clear_samples(folder: Path):
    """Delete what [`fill_folder`] wrote, and the folder if it is then empty."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _DRAWN.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name):
            path.unlink()
    (folder / SETTINGS).unlink(missing_ok=True)  # last: without it, the pictures count as somebody else's
    with suppress(OSError):
        folder.rmdir()


def fingerprint(pipeline: DDPMPipelineCustom) -> str:
    """Return 16 digits that change with the weights of the U-Net or the values in the scheduler's configuration."""
    digest = hashlib.sha256(digest_of_weights(pipeline.unet))
    config = {key: value for key, value in pipeline.scheduler.config.items() if key[0] != "_"}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def picture_path(folder: Path, i: int, suffix: str = ".png") -> Path:
    """Return the path of image i in a folder of samples."""
    return folder / f"{i:06d}{suffix}"


def save_sample(sample: Image.Image | np.ndarray, path: Path):
    """Save a picture as .png, or an array `(H, W, C)` as .tif or .npy."""
    if isinstance(sample, Image.Image):
        sample.save(path)
    elif path.suffix == ".npy":
        np.save(path, sample)
    else:
        import tifffile  # imported here, since few need it

        pixels = sample[..., 0] if sample.shape[2] == 1 else sample
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig" if pixels.ndim == 3 else None)


def read_sample(path: Path) -> np.ndarray:
    """Return a saved sample, `(H, W, C)`.

    Raises:
        ValueError: If it cannot be read.
    """
    return read_array({"bytes": None, "path": str(path)})


def _claim(folder: Path, settings: dict, T: int):
    """Write the settings to a new folder, or compare them with the settings of an old one.

    Older versions wrote None for all T denoising steps.

    Raises:
        ValueError: If the folder holds images drawn with other settings, or pictures of somebody else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if path.exists():
        others = read_json(path, {}, "Name another folder.")
        if others.get("num_inference_steps", T) is None:
            others["num_inference_steps"] = T
        differences = [
            f"{key} {others.get(key)} -> {value}"
            for key, value in settings.items()
            if others.get(key) != value and (key in others or key != "model")  # older versions did not note the model
        ]
        if differences:
            raise ValueError(f"{folder} holds images drawn otherwise: {', '.join(differences)}; name another.")
        return
    if pictures := sorted(path.name for path in folder.iterdir() if _DRAWN.fullmatch(path.name)):
        raise ValueError(f"{folder} holds {pictures[0]}, which was not drawn by this command; name another folder.")
    write_json(path, settings)
