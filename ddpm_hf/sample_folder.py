"""A folder of samples of any size, which can be interrupted and continued."""

import os
import re
import time
import zipfile
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ddpm_hf.files import read_json, write_json
from ddpm_hf.hardware import compile_network, is_out_of_memory
from ddpm_hf.images.arrays import read_array
from ddpm_hf.other_schedulers import describe_scheduler
from ddpm_hf.pipeline_ddpm_custom import CPU_PIXELS, DDPMPipelineCustom
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.precision import autocast
from ddpm_hf.processes import gathered, this_process, together
from ddpm_hf.sampling import Drawing, draw_images, fingerprint

_DRAWN, _UNFINISHED = (
    re.compile(r"\d{6,}\.(png|tif|npy)"),
    re.compile(r"\.unfinished-\d+-\d{6,}\.(png|tif|npy)"),
)  # names of samples
SETTINGS = "sampling.json"  # in a folder of samples: the settings they were drawn with
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)  # of images that are tried at once
MOST_PENDING = 512  # images that wait to be saved
GAIN = 1.05  # by which a larger batch has to be faster


@dataclass(frozen=True)
class Filled:
    """What [`fill_folder`] did on all processes.

    Args:
        count (`int`): Images that were drawn now.
        seconds (`float`): Time that it took.
        batch_size (`int`): Images that one process drew at once.
    """

    count: int
    seconds: float
    batch_size: int

    def describe(self) -> str:
        """Say how fast it was; nothing if all images were there."""
        if not self.count:
            return ""
        rate = self.count / self.seconds
        return f"Drew {self.count:,} in {self.seconds:.0f} seconds, {rate:.3g} images/s, {self.batch_size} at once."


def fill_folder(
    pipeline: DDPMPipelineCustom, folder: Path, num_images: int, how: Drawing, source: str, compile: bool = False
) -> Filled:
    """Draw images 0 to `num_images` - 1 into a folder, and skip those that exist. The processes share the work.

    Args:
        pipeline, how: See [`~ddpm_hf.sampling.draw_images`]. Without a `batch_size`, the fastest one is taken.
        folder (`Path`): Folder for 000000.png, 000001.png, ..., and their settings. Samples that are no pictures have
            the suffix of their format, .tif or .npy.
        num_images (`int`): Number of images in the folder at the end.
        source (`str`): Name of the model, for the settings.
        compile (`bool`): Whether to compile the network first.

    Raises:
        ValueError: If the images in the folder were drawn with other settings.
        OSError: If the folder cannot be written.
    """
    state = this_process()
    settings = {
        "source": source,
        "model": fingerprint(pipeline.unet, pipeline.scheduler),
        "seed": how.seed,
        "num_inference_steps": how.num_inference_steps or pipeline.default_num_inference_steps,
        "scheduler": describe_scheduler(pipeline.scheduler),
        "mixed_precision": how.mixed_precision,
        "classes": {"labels": list(how.classes.labels), **how.classes.recorded_guidance()},
    }
    T = pipeline.scheduler.config.num_train_timesteps
    is_new = together(lambda: state.is_main_process and _claim(folder, settings, T))
    try:
        return _fill(pipeline, folder, num_images, how, compile)
    except ValueError:
        if is_new and not _drawn_in(folder):  # other settings may draw there
            (folder / SETTINGS).unlink()
        raise


def _fill(pipeline: DDPMPipelineCustom, folder: Path, num_images: int, how: Drawing, compile: bool) -> Filled:
    """Draw the missing images of a folder that is claimed. The arguments are those of [`fill_folder`]."""
    state = this_process()
    mine = range(state.process_index, num_images, state.num_processes)
    suffix = PixelFormat.of_model(pipeline.unet.config).suffix
    missing = together(lambda: [i for i in mine if not _is_whole(picture_path(folder, i, suffix))])
    pipeline.set_progress_bar_config(disable=True)
    size = how.batch_size or together(lambda: fastest_batch_size(pipeline, len(missing), how))
    if compile and missing:
        compile_network(pipeline.unet, pipeline.device)
    began, drawn = time.perf_counter(), draw_images(pipeline, missing, replace(how, batch_size=size))
    bar = tqdm(total=len(mine), initial=len(mine) - len(missing), unit="img", disable=not state.is_main_process)
    with bar:
        together(lambda: _save_all(drawn, folder, suffix, bar))
    count = sum(gathered(lambda: len(missing)))
    return Filled(count, time.perf_counter() - began, size)


def _save_all(drawn: Iterable[tuple[int, Image.Image | np.ndarray]], folder: Path, suffix: str, bar: tqdm):
    """Save images in a thread, while the next ones are drawn."""

    def save(i: int, image: Image.Image | np.ndarray):
        path = picture_path(folder, i, suffix)
        unfinished = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
        save_sample(image, unfinished)
        os.replace(unfinished, path)
        bar.update()

    pending: deque[Future] = deque()
    with ThreadPoolExecutor(1) as writer:
        for i, image in drawn:
            pending.append(writer.submit(save, i, image))
            while pending and (pending[0].done() or len(pending) > MOST_PENDING):
                pending.popleft().result()  # raises the error of the thread
        for future in pending:
            future.result()


def fastest_batch_size(pipeline: DDPMPipelineCustom, count: int, how: Drawing) -> int:
    """Return how many images the network computes the fastest at once, each alone; larger batches are tried in turn.

    Args:
        pipeline, how: See [`~ddpm_hf.sampling.draw_images`].
        count (`int`): Images that are to be drawn.
    """
    height, width = _sides(pipeline)
    most = CPU_PIXELS // (height * width) if pipeline.device.type == "cpu" else count  # a CPU gets more in parts
    fastest, best = BATCH_SIZES[0], 0.0
    for size in BATCH_SIZES:
        if size > min(count, most):
            break
        try:
            rate = size / _seconds_of_a_step(pipeline, size, how)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        if rate < best * GAIN:
            break
        fastest, best = size, rate
    return fastest


@torch.no_grad()
def _seconds_of_a_step(pipeline: DDPMPipelineCustom, size: int, how: Drawing) -> float:
    """Return the time of a call of the network, with guidance if it is wanted: the shorter of two."""
    config, device, seconds = pipeline.unet.config, pipeline.device, []
    rows = size * (1 if how.classes.guidance_scale == 1 else 2)
    x_t = torch.randn(rows, config.in_channels, *_sides(pipeline), device=device)
    labels = torch.zeros(rows, dtype=torch.long, device=device) if config.num_class_embeds else None
    with autocast(device, how.mixed_precision):
        for _ in range(3):  # the first one prepares kernels
            began = time.perf_counter()
            pipeline.unet(x_t, 0, labels).sample.sum().item()  # which waits for a GPU
            seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _sides(pipeline: DDPMPipelineCustom) -> tuple[int, int]:
    size = pipeline.unet.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)


def pack(folder: Path, num_images: int, path: Path):
    """Save the images of a folder in one file: the array `arr_0`, `(N, H, W, C)`, uint8.

    Args:
        folder (`Path`): A folder that [`fill_folder`] filled with pictures.
        num_images (`int`): The number of its images.
        path (`Path`): The file, .npz.
    """
    bar = tqdm(range(num_images), desc="Packing", unit="img", leave=False)
    unfinished = path.with_name(f".unfinished-{os.getpid()}-{path.name}")
    shape = (num_images, *read_sample(picture_path(folder, 0)).shape)
    # One after the other, since all of them may not fit into memory.
    with zipfile.ZipFile(unfinished, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as array:
        np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for i in bar:
            array.write(read_sample(picture_path(folder, i)).tobytes())
    os.replace(unfinished, path)


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


def _drawn_in(folder: Path) -> list[str]:
    """Return the names of the samples in a folder."""
    return sorted(path.name for path in folder.iterdir() if _DRAWN.fullmatch(path.name))


def _claim(folder: Path, settings: dict, T: int) -> bool:
    """Write the settings to a new folder, or compare them with the settings of an old one.

    Older versions wrote None for all T denoising steps.

    Returns:
        `bool`: Whether the folder is new.

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
        return False
    if drawn := _drawn_in(folder):
        raise ValueError(f"{folder} holds {drawn[0]}, which was not drawn by this command; name another folder.")
    write_json(path, settings)
    return True
