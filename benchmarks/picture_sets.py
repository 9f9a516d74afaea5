"""Three sets of pictures that need no network, each in three parts: to train on, for the judge, and to compare with."""

import gzip
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
from avatars import draw_labelled
from PIL import Image
from tqdm.auto import tqdm

from ddpm_hf.images.sources import EMBEDDED_DIGITS

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
AVATARS = 28_000
# How many pictures of each part: to train on, for the judge, to compare with.
PARTS = {"digits": (6000, 2000, 2000), "fashion": (10_000, 10_000, 10_000), "avatars": (10_000, 8_000, 10_000)}


@dataclass(frozen=True)
class Part:
    """Pictures and their classes.

    Args:
        pixels (`numpy.ndarray`, `(N, H, W, C)`, uint8): The pictures.
        labels (`numpy.ndarray`, `(N,)`): Their classes.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def save(self, folder: Path):
        """Save the pictures as files, in a folder for each class."""
        for i, (pixels, label) in enumerate(zip(tqdm(self.pixels, desc="Saving pictures"), self.labels)):
            path = folder / f"{label:02d}" / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)


def load_set(name: str, cache: Path) -> tuple[Part, Part, Part]:
    """Return the three parts of a set; no picture is in two of them.

    Args:
        name (`str`): A key of `PARTS`.
        cache (`Path`): Folder where drawn pictures are kept.
    """
    pixels, labels = {"digits": _digits, "fashion": _fashion, "avatars": partial(_avatars, cache)}[name]()
    return tuple(_parts(pixels, labels, PARTS[name]))


def _parts(pixels: np.ndarray, labels: np.ndarray, counts: tuple[int, ...]) -> Iterator[Part]:
    start = 0
    for count in counts:
        yield Part(pixels[start : start + count], labels[start : start + count])
        start += count


def _digits() -> tuple[np.ndarray, np.ndarray]:
    rows = datasets.Dataset.from_parquet(str(EMBEDDED_DIGITS))
    return np.stack([np.asarray(image) for image in rows["image"]])[..., None], np.array(rows["label"])


def _fashion() -> tuple[np.ndarray, np.ndarray]:
    if not FASHION_MNIST.exists():
        raise SystemExit(f"{FASHION_MNIST} is missing; it comes with: apt-get install dataset-fashion-mnist")
    files = ("train-images-idx3-ubyte.gz", 16), ("train-labels-idx1-ubyte.gz", 8)  # bytes of the header
    contents = (np.frombuffer(gzip.decompress((FASHION_MNIST / name).read_bytes()), np.uint8)[n:] for name, n in files)
    images, labels = contents
    return images.reshape(-1, 28, 28, 1), labels.astype(np.int64)


def _avatars(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    path = cache / "avatars.npz"
    if not path.exists():
        with ProcessPoolExecutor() as pool:
            drawn = pool.map(partial(draw_labelled, size=32), range(AVATARS), chunksize=100)
            pictures, labels = zip(*tqdm(drawn, total=AVATARS, desc="Drawing faces", unit="img"))
        np.savez(path, pixels=np.stack([np.asarray(picture) for picture in pictures]), labels=np.array(labels))
    with np.load(path) as kept:
        return kept["pixels"], kept["labels"]
