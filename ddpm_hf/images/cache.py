"""The training images, decoded once into one file of pixels, which every later run and every step reads from."""

import hashlib
import json
import os
import platform
import shutil
import time
import uuid
import weakref
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
from tqdm.auto import tqdm

from ddpm_hf.config import TrainingConfig
from ddpm_hf.files import read_json, sha256_of, sync, write_json
from ddpm_hf.forms import misfit
from ddpm_hf.images.decoding import White, decode_rows, refuse_unreadable
from ddpm_hf.images.survey import choose_white

# A part of the name of every cache: raise it when other pixels are made, or written otherwise.
VERSION = 3

MANIFEST = "manifest.json"
INDEX, LABELS, PIXELS, UNREADABLE = "index.npy", "labels.npy", "pixels.bin", "unreadable.jsonl"


class SpoiltCache(ValueError):
    """A cache whose files are not those that were written."""


class ImageCache:
    """A sequence of decoded images on disk.

    Images are read one by one with a plain read: unlike the pages of a memory map, they do not pile up in the process.
    All files are checked here against the hashes in the manifest, the pixels too: a training run takes much longer than
    to read them once, at about 1.4 GB/s, and numbers that were measured on other pixels are worth nothing.

    Args:
        folder (`Path`): Holds `pixels.bin`, all images in a row; `index.npy` `(N, 3)`, where each begins, its height
            and its width; `labels.npy` `(N,)`, of a labelled data set; `unreadable.jsonl`; and `manifest.json`, the
            sizes and hashes of these.
        channels (`int`): 1 or 3.
        labelled (`bool`): Whether the data set has labels.

    Attributes:
        labels (`numpy.ndarray`, *optional*): `(N,)` int64, -1 where an image has none.
        unreadable (`list[dict]`): `image` (its path or row) and `reason`, of those that were left out.
        fingerprint (`str`): A hash of the images, their order and their labels, wherever they come from.

    Raises:
        SpoiltCache: If a file is missing or was changed.
        OSError: If a file cannot be read.
    """

    def __init__(self, folder: Path, channels: int, labelled: bool):
        self.folder, self.channels = folder, channels
        names = [PIXELS, INDEX, *([LABELS] if labelled else [])]
        hashes = _check_files(folder, [*names, UNREADABLE])
        self.fingerprint = hashlib.sha256(repr([hashes[name] for name in names]).encode()).hexdigest()
        # Not as memory maps: if such a file is cut while it is in use, the process dies without a word.
        self.index = np.load(folder / INDEX)
        self.labels = np.load(folder / LABELS) if labelled else None
        self.file = open(folder / PIXELS, "rb", buffering=0)  # noqa: SIM115, as long as this object lives
        weakref.finalize(self, self.file.close)
        self.unreadable = [json.loads(line) for line in (folder / UNREADABLE).read_text().splitlines()]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, `(height, width, channels)` uint8.

        Raises:
            OSError: If it cannot be read whole.
        """
        start, height, width = self.index[i].tolist()
        pixels = np.empty((height, width, self.channels), dtype=np.uint8)
        self.file.seek(start)
        count = self.file.readinto(pixels)
        if count != pixels.nbytes:
            raise OSError(
                f"{self.folder / PIXELS} was cut while it was in use: image {i} has {count:,} of {pixels.nbytes:,} "
                "bytes. The same command makes it again, and goes on."
            )
        return pixels


def _check_files(folder: Path, names: list[str]) -> dict[str, str]:
    """The hash of each of these files; a SpoiltCache if one is not as the manifest says."""
    try:
        files = read_json(folder / MANIFEST, {"files": dict})["files"]
        if problem := misfit(files, dict.fromkeys(names, dict)):
            raise ValueError(f"{folder / MANIFEST}: {problem}")
        for name in names:
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name} is missing")
            if (size := (folder / name).stat().st_size) != files[name].get("bytes"):
                raise ValueError(f"{folder / name} has {size:,} bytes; expected {files[name].get('bytes')}")
        for name in names:
            if sha256_of(folder / name) != files[name].get("sha256"):
                raise ValueError(f"{folder / name} was changed")
    except (ValueError, FileNotFoundError) as error:
        raise SpoiltCache(str(error).rstrip(" .")) from error
    return {name: files[name]["sha256"] for name in names}


def load_images(dataset: datasets.Dataset, mode: str, config: TrainingConfig) -> ImageCache:
    """All images of the data set, decoded, brought to size, and kept for the next run. A spoilt cache is made again.

    Args:
        dataset (`datasets.Dataset`): Images, and labels if they are wanted, from [`load_dataset`].
        mode (`str`): "L" or "RGB".
        config ([`TrainingConfig`]): The options of the group "Data" are read.

    Raises:
        ValueError: If an image is smaller than the resolution, or too many cannot be read.
        OSError: If the cache cannot be written.
    """
    white = choose_white(dataset)
    settings = (config.resolution, config.image_fit, config.center_crop, config.celeba_crop, mode, white)
    key = hashlib.sha256(repr((VERSION, dataset._fingerprint, *settings)).encode()).hexdigest()[:16]
    folder = Path(config.cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf" / key
    try:
        images = _open_or_make(folder, dataset, mode, config, white)
    except OSError as error:
        raise OSError(f"the decoded images cannot be kept in {folder}: {error}. Name another --cache_dir.") from error
    refuse_unreadable(images.unreadable, len(dataset), config, f"all in {folder / UNREADABLE}")
    return images


def _open_or_make(
    folder: Path, dataset: datasets.Dataset, mode: str, config: TrainingConfig, white: White
) -> ImageCache:
    for _ in range(3):  # once; again if it was spoilt; again if another run takes it away for the same reason
        if not folder.exists():
            _make(folder, dataset, mode, config, white)
        try:
            return ImageCache(folder, len(mode), "label" in dataset.features)
        except SpoiltCache as error:
            problem = error
            tqdm.write(f"The cache of decoded images is spoilt: {problem}. It is made again.")
            _put_away(folder)
    raise OSError(f"they were spoilt three times ({problem}); check the disk")


# ---- Folders that are not finished: KEY.HOST.PROCESS.RANDOM.tmp ------------------------------------------------------


def _make(folder: Path, dataset: datasets.Dataset, mode: str, config: TrainingConfig, white: White):
    """Make the folder; at every moment it is whole or not there. Another run may do the same at the same time."""
    unfinished = _unfinished(folder)
    try:
        unfinished.mkdir(parents=True)
        _remove_what_dead_processes_left(folder.parent)
        _decode_all(dataset, mode, config, white, unfinished)
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.exists():  # else another run was faster, and its images are taken
                raise
        sync(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_away(folder: Path):
    """Remove a spoilt folder, at once for all others; another run may have done so."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder.rename(_unfinished(folder)), ignore_errors=True)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{platform.node()}.{os.getpid()}.{uuid.uuid4().hex}.tmp")


def _remove_what_dead_processes_left(folder: Path):
    """Remove unfinished folders of processes of this machine that were killed.

    A process in a container of this machine goes by a number that is not known here; but it wrote a moment ago.
    """
    for path in folder.glob(f"*.{platform.node()}.*.tmp"):
        with suppress(OSError, ValueError):
            newest = max(file.stat().st_mtime for file in [path, *path.iterdir()])
            if time.time() - newest > 60 and not _is_alive(int(path.name.split(".")[-3])):
                shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is no question
        return True
    if process == os.getpid():  # an earlier one: this one has just begun
        return False
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # but a PermissionError: it is of another user
    return True


def _decode_all(dataset: datasets.Dataset, mode: str, config: TrainingConfig, white: White, folder: Path):
    needed = len(dataset) * config.resolution**2 * len(mode)
    if needed > (free := shutil.disk_usage(folder).free):
        raise OSError(f"{needed / 1e6:,.0f} MB are needed, and {free / 1e6:,.0f} MB are free")
    index, start, labels = array("q"), 0, array("q")
    with (
        open(folder / PIXELS, "wb") as pixels,
        open(folder / UNREADABLE, "w") as unreadable,
        ThreadPoolExecutor() as pool,
        tqdm(total=len(dataset), desc="Decoding images", unit="img") as progress,
    ):
        for first in range(0, len(dataset), 256):
            rows = dataset[first : first + 256]
            for decoded, label in decode_rows(pool, rows, first, mode, config, white):
                if isinstance(decoded, dict):
                    unreadable.write(json.dumps(decoded) + "\n")
                else:
                    pixels.write(decoded)
                    index.extend((start, *decoded.shape[:2]))
                    start += decoded.size
                    labels.append(label)
            progress.update(len(rows["image"]))
    np.save(folder / INDEX, np.array(index, dtype=np.int64).reshape(-1, 3))
    if "label" in dataset.features:
        np.save(folder / LABELS, np.array(labels, dtype=np.int64))
    files = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(folder / MANIFEST, {"files": files})
    sync(folder)
