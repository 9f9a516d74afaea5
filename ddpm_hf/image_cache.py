"""The training images, decoded once into one file of pixels, which every later run and every step reads from."""

import hashlib
import json
import os
import shutil
import weakref
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
from tqdm.auto import tqdm

from ddpm_hf.config import TrainingConfig
from ddpm_hf.decoding import UnreadableImage, decode_image

# A part of the name of every cache: raise it when other pixels are made, or written otherwise.
VERSION = 2


class ImageCache:
    """A sequence of decoded images on disk.

    Images are read one by one with a plain read: unlike the pages of a memory map, they do not pile up in the process.

    Args:
        folder (`Path`): Holds `pixels.bin`, all images in a row; `index.npy` `(N, 3)`, where each begins, its height
            and its width; `labels.npy` `(N,)`, of a labelled data set; and `unreadable.jsonl`.

    Attributes:
        labels (`numpy.ndarray`, *optional*): `(N,)` int64, -1 where an image has none.
        unreadable (`list[dict]`): `image` (its path or row) and `reason`, of those that were left out.
    """

    def __init__(self, folder: Path, channels: int):
        self.folder, self.channels = folder, channels
        self.index = np.load(folder / "index.npy", mmap_mode="r")
        labels = folder / "labels.npy"
        self.labels = np.load(labels, mmap_mode="r") if labels.exists() else None
        self.file = open(folder / "pixels.bin", "rb", buffering=0)  # noqa: SIM115, as long as this object lives
        weakref.finalize(self, self.file.close)
        self.unreadable = [json.loads(line) for line in (folder / "unreadable.jsonl").read_text().splitlines()]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256((self.folder / "pixels.bin").read_bytes()).hexdigest()

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, `(height, width, channels)` uint8."""
        start, height, width = self.index[i].tolist()
        pixels = np.empty((height, width, self.channels), dtype=np.uint8)
        self.file.seek(start)
        self.file.readinto(pixels)
        return pixels


def load_images(dataset: datasets.Dataset, mode: str, config: TrainingConfig) -> ImageCache:
    """All images of the data set, decoded, brought to size, and kept for the next run.

    Args:
        dataset (`datasets.Dataset`): Images, and labels if they are wanted, from [`load_dataset`].
        mode (`str`): "L" or "RGB".
        config ([`TrainingConfig`]): The options of the group "Data" are read.

    Raises:
        ValueError: If an image is smaller than the resolution, or too many cannot be read.
        OSError: If the cache cannot be written.
    """
    settings = (config.resolution, config.image_fit, config.center_crop, config.celeba_crop, mode)
    key = hashlib.sha256(repr((VERSION, dataset._fingerprint, *settings)).encode()).hexdigest()[:16]
    folder = Path(config.cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf" / key
    if not folder.exists():
        unfinished = folder.with_name(f"{key}.{os.getpid()}.tmp")
        try:
            unfinished.mkdir(parents=True)
            _decode_all(dataset, mode, config, unfinished)
            if not folder.exists():  # another run may have been faster
                os.rename(unfinished, folder)
        except OSError as error:
            raise OSError(
                f"the decoded images cannot be kept in {folder}: {error}. Name another --cache_dir."
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    images = ImageCache(folder, len(mode))
    refuse_unreadable(images.unreadable, len(dataset), config, f"all in {folder / 'unreadable.jsonl'}")
    return images


def refuse_unreadable(unreadable: list[dict], count: int, config: TrainingConfig, where: str):
    """Raise a ValueError if more of `count` images cannot be read than `max_unreadable` allows."""
    if len(unreadable) > config.max_unreadable * count or len(unreadable) == count:
        first = unreadable[0]
        raise ValueError(
            f"{len(unreadable):,} of {count:,} images cannot be read, and --max_unreadable {config.max_unreadable} "
            f"allows {int(config.max_unreadable * count):,}: {first['image']} ({first['reason']}), ...; {where}. "
            "Remove them, or allow more."
        )


def _decode_all(dataset: datasets.Dataset, mode: str, config: TrainingConfig, folder: Path):
    needed = len(dataset) * config.resolution**2 * len(mode)
    if needed > (free := shutil.disk_usage(folder).free):
        raise OSError(f"{needed / 1e6:,.0f} MB are needed, and {free / 1e6:,.0f} MB are free")
    index, start, labels = array("q"), 0, array("q")
    with (
        open(folder / "pixels.bin", "wb") as pixels,
        open(folder / "unreadable.jsonl", "w") as unreadable,
        ThreadPoolExecutor() as pool,
        tqdm(total=len(dataset), desc="Decoding images", unit="img") as progress,
    ):
        for first in range(0, len(dataset), 256):
            rows = dataset[first : first + 256]
            for decoded, label in decode_rows(pool, rows, first, mode, config):
                if isinstance(decoded, dict):
                    unreadable.write(json.dumps(decoded) + "\n")
                else:
                    pixels.write(decoded)
                    index.extend((start, *decoded.shape[:2]))
                    start += decoded.size
                    labels.append(label)
            progress.update(len(rows["image"]))
        pixels.flush()
        os.fsync(pixels.fileno())
    np.save(folder / "index.npy", np.array(index, dtype=np.int64).reshape(-1, 3))
    if "label" in dataset.features:
        np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))


def decode_rows(pool: ThreadPoolExecutor, rows: dict[str, list], first: int, mode: str, config: TrainingConfig):
    """Decode the images of consecutive rows, in parallel.

    Args:
        pool (`ThreadPoolExecutor`): The threads.
        rows (`dict`): Column `image` of undecoded images of `datasets` and, if there are labels, column `label`.
        first (`int`): The number of the first row.
        mode, config: See [`decode_image`].

    Returns:
        Iterable over pairs: an array for each image, or a dictionary of `image` and `reason` where it cannot be read;
            and its label, -1 if it has none.

    Raises:
        ValueError: If an image is smaller than the resolution; names the image.
    """

    def decode(item):
        i, image = item
        name = (image or {}).get("path") or i
        try:
            return decode_image(image, mode, config)
        except UnreadableImage as error:
            return {"image": name, "reason": str(error)}
        except ValueError as error:
            raise ValueError(f"Image {name}: {error}") from error

    labels = [-1 if label is None else label for label in rows.get("label", [None] * len(rows["image"]))]
    return zip(pool.map(decode, enumerate(rows["image"], first)), labels)
