"""Sets of images that are measured: training images, and folders of samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ddpm_hf.images.batches import cut
from ddpm_hf.images.cache import ImageCache
from ddpm_hf.images.parts import ImagePart
from ddpm_hf.pixel_format import EIGHT_BITS, PixelFormat
from ddpm_hf.sample_folder import picture_path, read_sample


class ImageSet(Protocol):
    """Images `(height, width, C)` uint8 by their number."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray: ...


class ReferenceSet(ImageSet, Protocol):
    """Images to compare with, all of the model's size. Data of other formats may have other types than uint8.

    Attributes:
        folder (`Path`): The cache that holds them.
        fingerprint (`str`): A hash of the images and their order.
        form ([`~ddpm_hf.pixel_format.PixelFormat`]): Their pixels.
    """

    folder: Path
    fingerprint: str
    form: PixelFormat


class PictureFolder:
    """The samples 000000.png, 000001.png, ... in a folder, as an [`ImageSet`] of what can be seen of them."""

    def __init__(self, folder: Path, count: int, form: PixelFormat = EIGHT_BITS):
        self.folder, self.count, self.form = folder, count, form

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int, /) -> np.ndarray:
        if not 0 <= i < self.count:
            raise IndexError(i)
        pixels = read_sample(picture_path(self.folder, i, self.form.suffix))
        return self.form.eight_bits(pixels, (self.form.low, self.form.high)) if self.form.settings() else pixels


class Seen:
    """What can be seen of images to compare with, as an [`ImageSet`]; see [`PixelFormat.eight_bits`]."""

    def __init__(self, images: ReferenceSet):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int, /) -> np.ndarray:
        form = self.images.form
        return form.eight_bits(self.images[i], form.levels) if form.settings() else self.images[i]


class CentralCuts:
    """The centres of training images, which every batch cuts at random, as a [`ReferenceSet`].

    Args:
        images ([`~ddpm_hf.images.cache.ImageCache`]): The training images.
        size (`tuple[int, int]`): Height and width of the centres.
    """

    def __init__(self, images: ImageCache | ImagePart, size: tuple[int, int]):
        self.images, self.size = images, size
        self.folder, self.fingerprint, self.form = images.folder, images.fingerprint, images.form

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int, /) -> np.ndarray:
        return cut(self.images[i], self.size, 0.5, 0.5)


def as_batch(images: ImageSet, indices: Sequence[int]) -> torch.Tensor:
    """Return some images of one size as a batch `(len(indices), C, H, W)` uint8."""
    return torch.from_numpy(np.stack([images[i] for i in indices])).permute(0, 3, 1, 2)
