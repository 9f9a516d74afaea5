"""Sets of images that are measured: training images, and folders of samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ddpm_hf.images.batches import cut_square
from ddpm_hf.sampling import picture_path


class ImageSet(Protocol):
    """Images `(height, width, C)` uint8 by their number, such as an [`~ddpm_hf.images.cache.ImageCache`]."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray: ...


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


def square(images: ImageSet, i: int) -> np.ndarray:
    """Return the central square of image i, `(size, size, C)` uint8."""
    return cut_square(images[i], 0.5, 0.5)


def as_batch(images: ImageSet, indices: Sequence[int]) -> torch.Tensor:
    """Return the central squares of some images as one batch `(len(indices), C, H, W)` uint8."""
    return torch.from_numpy(np.stack([square(images, i) for i in indices])).permute(0, 3, 1, 2)
