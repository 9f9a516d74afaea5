"""The training images, decoded once into one file of pixels. Every step reads from it, and every later run."""

import hashlib
import math
import os
import platform
import shutil
import threading
import time
import uuid
import weakref
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

import datasets
import numpy as np
import psutil
from tqdm.auto import tqdm

from ddpm_hf.config import TrainingConfig
from ddpm_hf.files import read_json, read_json_lines, write_json, write_json_lines
from ddpm_hf.images.arrays import refuse_leaving
from ddpm_hf.images.decoding import White, decode_rows, refuse_unreadable
from ddpm_hf.images.survey import choose_white
from ddpm_hf.manifest import MANIFEST, check_files, describe_files, whole_folder
from ddpm_hf.pixel_format import BANDS, PixelFormat
from ddpm_hf.terminal import one_line

# A part of the name of every cache. Raise it when the pixels or the files change.
VERSION = 3

INDEX, LABELS, PIXELS, UNREADABLE = "index.npy", "labels.npy", "pixels.bin", "unreadable.jsonl"


class SpoiltCache(ValueError):
    """An error: the files of a cache are not those that were written."""


class ImageCache:
    """A sequence of decoded images on disk.

    Images are read one by one with a plain read. The pages of a memory map would pile up in the process.
    The constructor checks the hashes of all files, also of the pixels. This takes little time beside a training run
    (about 1.4 GB/s), and numbers measured on other pixels are worth nothing.

    Args:
        folder (`Path`): The folder of the cache. It holds `pixels.bin`, all images one after the other; `index.npy`
            `(N, 3)`, where each image begins, its height and its width; `labels.npy` `(N,)` if there are labels;
            `unreadable.jsonl`, the images left out; and `manifest.json`, the sizes and hashes of these files.
        form ([`~ddpm_hf.pixel_format.PixelFormat`]): The pixels.
        labelled (`bool`): Whether the data set has labels.

    Attributes:
        labels (`numpy.ndarray`, *optional*): `(N,)` int64, -1 for an image without a label.
        unreadable (`list[dict]`): `image` (a path or the number of a row) and `reason` of each image left out.
        fingerprint (`str`): A hash of the images, their order and their labels, wherever they come from.

    Raises:
        SpoiltCache: If a file is missing or changed.
        OSError: If a file cannot be read.
    """

    def __init__(self, folder: Path, form: PixelFormat, labelled: bool):
        self.folder, self.form = folder, form
        names = [PIXELS, INDEX, *([LABELS] if labelled else [])]
        hashes = _check_files(folder, [*names, UNREADABLE])
        self.fingerprint = hashlib.sha256(repr([hashes[name] for name in names]).encode()).hexdigest()
        # No memory maps: if the file is cut while it is in use, the process dies without a message.
        self.index = np.load(folder / INDEX)
        self.labels = np.load(folder / LABELS) if labelled else None
        self.file = open(folder / PIXELS, "rb", buffering=0)  # noqa: SIM115, as long as this object lives
        self.lock = threading.Lock()
        weakref.finalize(self, self.file.close)
        self.unreadable = read_json_lines(folder / UNREADABLE, {"image": int | str, "reason": str})

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> np.ndarray:
        """Read image i, `(height, width, channels)` of the type `form.stored`, mostly uint8.

        Raises:
            OSError: If the image cannot be read whole.
        """
        start, height, width = self.index[i].tolist()
        pixels = np.empty((height, width, self.form.channels), dtype=self.form.stored)
        with self.lock:  # the next batch is read in a thread
            self.file.seek(start)
            count = self.file.readinto(pixels.data)
        if count != pixels.nbytes:
            raise OSError(
                f"{self.folder / PIXELS} was cut while it was in use: image {i} has {count:,} of {pixels.nbytes:,} "
                "bytes. The same command makes it again, and goes on."
            )
        return pixels


def _check_files(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the hash of each of these files. Raise a SpoiltCache if a file is not as the manifest says."""
    try:
        entries = read_json(folder / MANIFEST, {"files": dict})["files"]
        check_files(folder, entries, names)
    except (ValueError, FileNotFoundError) as error:
        raise SpoiltCache(one_line(error)) from error
    return {name: entries[name]["sha256"] for name in names}


def load_images(
    dataset: datasets.Dataset, form: PixelFormat | str, config: TrainingConfig, white: White | None = None
) -> ImageCache:
    """Open the cache of a data set's images. Decode the images first if there is no cache, or a spoilt one.

    Args:
        dataset (`datasets.Dataset`): Undecoded images, and labels if the options ask for them, from [`load_dataset`].
        form ([`~ddpm_hf.pixel_format.PixelFormat`] or `str`): The pixels; "L" and "RGB" stand for such pictures.
        config ([`TrainingConfig`]): The options of the group "Data".
        white ([`White`], *optional*): The numbers that mean white; by default chosen for these images.

    Raises:
        ValueError: If an image is smaller than the resolution, images leave the range, or too many cannot be read.
        OSError: If the cache cannot be written.
    """
    form = PixelFormat.of_mode(form)
    white = None if form.mode == BANDS else white or choose_white(dataset)
    about = form if form.settings() else form.mode
    settings = (config.resolution, config.image_fit, config.center_crop, config.celeba_crop, about, white)
    key = hashlib.sha256(repr((VERSION, dataset._fingerprint, *settings)).encode()).hexdigest()[:16]
    folder = Path(config.cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf" / key
    try:
        images = _open_or_make(folder, dataset, form, config, white)
    except OSError as error:
        raise OSError(f"the decoded images cannot be kept in {folder}: {error}. Name another --cache_dir.") from error
    refuse_unreadable(images.unreadable, len(dataset), config, f"all in {folder / UNREADABLE}")
    return images


def _open_or_make(
    folder: Path, dataset: datasets.Dataset, form: PixelFormat, config: TrainingConfig, white: White | None
) -> ImageCache:
    for _ in range(3):  # again if the cache is spoilt, and again if another run removes it for the same reason
        if not folder.exists():
            _make(folder, dataset, form, config, white)
        try:
            return ImageCache(folder, form, "label" in dataset.features)
        except SpoiltCache as error:
            problem = str(error)
            tqdm.write(f"The cache of decoded images is spoilt: {problem}. It is made again.")
            _put_away(folder)
    raise OSError(f"they were spoilt three times ({problem}); check the disk")


# ---- Making a cache: its unfinished folder is called KEY.HOST.PROCESS.RANDOM.tmp ------------------------------------


def _make(folder: Path, dataset: datasets.Dataset, form: PixelFormat, config: TrainingConfig, white: White | None):
    """Make the folder of a cache. Another run may make it at the same time; the first one finished stays."""
    with whole_folder(folder, _unfinished(folder), replace=False) as unfinished:
        _remove_folders_of_dead_processes(folder.parent)
        _decode_all(dataset, form, config, white, unfinished)
        write_json(unfinished / MANIFEST, {"files": describe_files(unfinished)})


def _put_away(folder: Path):
    """Remove a spoilt folder. It vanishes at once for other runs, one of which may have removed it already."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder.rename(_unfinished(folder)), ignore_errors=True)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{platform.node()}.{os.getpid()}.{uuid.uuid4().hex}.tmp")


def _remove_folders_of_dead_processes(folder: Path):
    """Remove the unfinished folders of killed processes of this machine.

    A folder that was written to in the last minute stays: its process may live in a container, where its number is
    another one.
    """
    for path in folder.glob(f"*.{platform.node()}.*.tmp"):
        with suppress(OSError, ValueError):
            newest = max(file.stat().st_mtime for file in [path, *path.iterdir()])
            if time.time() - newest > 60 and not _is_alive(int(path.name.split(".")[-3])):
                shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    # With the number of this process, it was an earlier one: this one has just started.
    return process != os.getpid() and psutil.pid_exists(process)


def _decode_all(
    dataset: datasets.Dataset, form: PixelFormat, config: TrainingConfig, white: White | None, folder: Path
):
    """Write the files of a cache, but the manifest."""
    needed = len(dataset) * math.prod(config.size) * form.channels * np.dtype(form.stored).itemsize
    if needed > (free := shutil.disk_usage(folder).free):
        raise OSError(f"{needed / 1e6:,.0f} MB are needed, and {free / 1e6:,.0f} MB are free")
    index, start, labels = array("q"), 0, array("q")
    unreadable: list[dict] = []
    leaving: list[dict] = []
    with (
        open(folder / PIXELS, "wb") as pixels,
        ThreadPoolExecutor() as pool,
        tqdm(total=len(dataset), desc="Decoding images", unit="img") as progress,
    ):
        for first in range(0, len(dataset), 256):
            rows = dataset[first : first + 256]
            for decoded, label in decode_rows(pool, rows, count(first), form, config, white):
                if isinstance(decoded, dict):
                    (unreadable if "reason" in decoded else leaving).append(decoded)
                else:
                    pixels.write(decoded.data)
                    index.extend((start, *decoded.shape[:2]))
                    start += decoded.nbytes
                    labels.append(label)
            progress.update(len(rows["image"]))
    refuse_leaving(leaving, f"{len(dataset):,} images", form)
    np.save(folder / INDEX, np.array(index, dtype=np.int64).reshape(-1, 3))
    if "label" in dataset.features:
        np.save(folder / LABELS, np.array(labels, dtype=np.int64))
    write_json_lines(folder / UNREADABLE, unreadable)
