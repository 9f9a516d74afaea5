"""Training data: what `datasets` loads, decoded once into a memory-mapped uint8 array, and the plan of the batches."""

import glob
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ddpm_hf.config import TrainingConfig

EMBEDDED_DIGITS = Path(__file__).parent / "data" / "mnist_10k.parquet"
PICTURE_SUFFIXES = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}

# Preprocessing writes this into the name of its cache files: raise it when the pixels that it makes change.
PREPROCESSING_VERSION = 1


# ---- Loading -------------------------------------------------------------------------------------------------------


def load_dataset(config: TrainingConfig) -> datasets.Dataset:
    """The data set that the options name, as one column `image` of undecoded images.

    Raises:
        ValueError: If the folder is missing or holds no pictures, or the data set has no such split or column.
    """
    if config.train_data_dir:
        dataset = _load_folder(Path(config.train_data_dir), config.cache_dir)
    elif config.dataset_name:
        dataset = _load_named(config)
    else:
        dataset = datasets.Dataset.from_parquet(str(EMBEDDED_DIGITS), cache_dir=config.cache_dir)

    images = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    column = config.image_column or (images[0] if images else None)
    if column not in images:
        raise ValueError(
            f"--image_column {column}: the data set's image columns are {images}, of {dataset.column_names}."
        )
    dataset = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return dataset if column == "image" else dataset.rename_column(column, "image")


def _load_folder(folder: Path, cache_dir: str | None) -> datasets.Dataset:
    if not folder.is_dir():
        raise ValueError(f"--train_data_dir {folder}: there is no such folder.")
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if path.is_file()}
    if not suffixes & PICTURE_SUFFIXES:
        found = f"only {', '.join(sorted(s or 'files without a suffix' for s in suffixes))}" if suffixes else "no files"
        raise ValueError(f"--train_data_dir {folder}: expected pictures, such as .jpg or .png; found {found}.")
    everything = {"train": glob.escape(str(folder.resolve())) + "/**"}
    return datasets.load_dataset("imagefolder", data_files=everything, split="train", cache_dir=cache_dir)


def _load_named(config: TrainingConfig) -> datasets.Dataset:
    name, split = config.dataset_name, config.dataset_split
    try:
        return datasets.load_dataset(name, config.dataset_config_name, split=split, cache_dir=config.cache_dir)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--dataset_name {name} --dataset_split {split} cannot be loaded: {reason}") from error


# ---- Decoding ------------------------------------------------------------------------------------------------------


def common_mode(dataset: datasets.Dataset, look_at: int = 1000) -> str:
    """ "L" if the first images are all greyscale, which their headers tell, else "RGB"."""
    for i, row in enumerate(dataset.select(range(min(look_at, len(dataset))))):
        with _naming(i, row["image"]):
            if _open(row["image"]).mode not in ("1", "L", "LA", "I", "I;16", "F"):
                return "RGB"
    return "L"


def load_pixels(dataset: datasets.Dataset, mode: str, config: TrainingConfig) -> np.ndarray:
    """All images of the data set, decoded, fitted to the resolution, and kept for the next run.

    Args:
        dataset (`datasets.Dataset`): One column `image`, from [`load_dataset`].
        mode (`str`): "L" or "RGB".
        config ([`TrainingConfig`]): `resolution`, `image_fit` and `cache_dir` are read.

    Returns:
        `numpy.ndarray`: Memory-mapped, read-only, `(N, resolution, resolution, channels)` uint8.

    Raises:
        ValueError: If an image cannot be read, or is smaller than the resolution.
    """
    settings = (PREPROCESSING_VERSION, dataset._fingerprint, config.resolution, config.image_fit, mode)
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    path = Path(config.cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf" / f"{key}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            shape = (len(dataset), config.resolution, config.resolution, len(mode))
            pixels = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
            _decode_into(pixels, dataset, config, mode)
            pixels.flush()
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def _decode_into(pixels: np.ndarray, dataset: datasets.Dataset, config: TrainingConfig, mode: str):
    def decode(item):
        i, image = item
        with _naming(i, image):
            return fit_image(_open(image).convert(mode), config.resolution, config.image_fit)

    with ThreadPoolExecutor() as pool, tqdm(total=len(dataset), desc="Decoding images", unit="img") as progress:
        for start in range(0, len(dataset), 256):
            images = dataset[start : start + 256]["image"]
            for i, decoded in enumerate(pool.map(decode, enumerate(images, start)), start):
                pixels[i] = decoded.reshape(pixels.shape[1:])
            progress.update(len(images))


def _open(image: dict) -> Image.Image:
    """Open an undecoded image of `datasets`: its bytes, or else its path."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]))


@contextmanager
def _naming(i: int, image: dict):
    """Say which image an error is about."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"Image {image['path'] or i}: {error}") from error


def fit_image(image: Image.Image, resolution: int, fit: str) -> np.ndarray:
    """Bring an image to `resolution` x `resolution`.

    Args:
        image (`PIL.Image.Image`): Of mode L or RGB.
        resolution (`int`): Height and width in pixels.
        fit (`str`): `"crop"` shrinks the short side to the resolution (antialiased) and cuts out the centre; `"pad"`
            centres the image on black.

    Returns:
        `numpy.ndarray`: `(resolution, resolution)` or `(resolution, resolution, 3)`, uint8.

    Raises:
        ValueError: If the image is smaller than the resolution (`"crop"`) or larger (`"pad"`).
    """
    size = (resolution, resolution)
    if fit == "pad":
        if max(image.size) > resolution:
            raise ValueError(
                f"{image.width}x{image.height} pixels do not fit into {resolution}; pass --image_fit crop."
            )
        canvas = Image.new(image.mode, size)
        canvas.paste(image, ((resolution - image.width) // 2, (resolution - image.height) // 2))
        return np.asarray(canvas)
    if min(image.size) < resolution:
        raise ValueError(
            f"{image.width}x{image.height} pixels are fewer than --resolution {resolution}; lower the resolution, pass "
            "--image_fit pad, or remove the image."
        )
    return np.asarray(ImageOps.fit(image, size, Image.Resampling.BICUBIC))


# ---- The batch plan ------------------------------------------------------------------------------------------------


@dataclass
class BatchPlan:
    """What the micro-batches of a run hold: a function of (seed, g) alone, for g = 0, 1, 2, ...

    Micro-batch g takes images g * batch_size up to (g + 1) * batch_size of an endless row of epochs, each a permutation
    of the data set of its own, so within an epoch every image comes once, whatever the batch size.

    Args:
        pixels (`numpy.ndarray`): `(N, H, W, C)` uint8.
        batch_size (`int`): Images in a micro-batch.
        timestep_weights (`torch.Tensor`, `(T,)`): How often each timestep is drawn, in proportion.
        seed (`int`): The run's seed.
        random_flip (`bool`): Whether images are mirrored left to right with probability 1/2.
        device (`torch.device`): Where the batches are made.
    """

    pixels: np.ndarray
    batch_size: int
    timestep_weights: torch.Tensor
    seed: int
    random_flip: bool
    device: torch.device

    def micro_batch(self, g: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Micro-batch g.

        Returns:
            `tuple`: x_0 `(B, C, H, W)` float32 in [-1, 1]; t `(B,)` int64 in [0, T); eps ~ N(0, I) like x_0.
        """
        images = torch.from_numpy(self.pixels[self._indices(g)]).to(self.device)  # (B, H, W, C) uint8
        x_0 = images.permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, C, H, W)
        generator = torch.Generator(self.device).manual_seed(self.seed_of("noise", g))
        random = {"generator": generator, "device": self.device}
        if self.random_flip:
            mirrored = torch.rand(len(x_0), 1, 1, 1, **random) < 0.5
            x_0 = torch.where(mirrored, x_0.flip(-1), x_0)
        t = self.timestep_weights.to(self.device).multinomial(len(x_0), replacement=True, generator=generator)
        eps = torch.randn(x_0.shape, **random)
        return x_0, t, eps

    def seed_of(self, purpose: str, number: int) -> int:
        """A seed for one purpose at one place of the run, independent of all others."""
        text = f"{self.seed}/{purpose}/{number}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def _indices(self, g: int) -> np.ndarray:
        position = np.arange(g * self.batch_size, (g + 1) * self.batch_size)
        epoch, place = np.divmod(position, len(self.pixels))
        order = {e: np.random.default_rng(self.seed_of("order", e)).permutation(len(self.pixels)) for e in set(epoch)}
        return np.array([order[e][i] for e, i in zip(epoch, place)])
