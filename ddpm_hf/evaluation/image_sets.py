"""Sets of images that are measured: training images, and folders of samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ddpm_hf.images.batches import cut
from ddpm_hf.images.cache import ImageCache
from ddpm_hf.sampling import picture_path


class ImageSet(Protocol):
    """Images `(height, width, C)` uint8 by their number."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray: ...


class ReferenceSet(ImageSet, Protocol):
    """Images to compare with, all of the model's size.

    Attributes:
        folder (`Path`): The cache that holds them.
        fingerprint (`str`): A hash of the images and their order.
    """

    folder: Path
    fingerprint: str


class PictureFolder:
    """The pictures 000000.png, 000001.png, ... in a folder, as an [`ImageSet`]."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int, /) -> np.ndarray:
        if not 0 <= i < self.count:
            raise IndexError(i)
        pixels = np.asarray(Image.open(picture_path(self.folder, i)))
        return pixels.reshape(*pixels.shape[:2], -1)


class CentralCuts:
    """The centres of training images, which every batch cuts at random, as a [`ReferenceSet`].

    Args:
        images ([`~ddpm_hf.images.cache.ImageCache`]): The training images.
        size (`tuple[int, int]`): Height and width of the centres.
    """

    def __init__(self, images: ImageCache, size: tuple[int, int]):
        self.images, self.size = images, size
        self.folder, self.fingerprint = images.folder, images.fingerprint

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int, /) -> np.ndarray:
        return cut(self.images[i], self.size, 0.5, 0.5)


def as_batch(images: ImageSet, indices: Sequence[int]) -> torch.Tensor:
    """Return some images of one size as a batch `(len(indices), C, H, W)` uint8."""
    return torch.from_numpy(np.stack([images[i] for i in indices])).permute(0, 3, 1, 2)
