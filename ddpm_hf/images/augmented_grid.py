"""A picture of how training images are augmented, for those who would rather look."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ddpm_hf.images.augment import draw_labels, transform
from ddpm_hf.images.batches import cut
from ddpm_hf.pictures import image_grid


def augmented_grid(
    images: Sequence[np.ndarray], size: tuple[int, int], probability: float, seed: int, columns: int = 10
) -> Image.Image:
    """Return a grid with a row for each image: first as it is, then as training may see it.

    Args:
        images (`Sequence[np.ndarray]`): Images `(height, width, channels)` uint8, at least of the size.
        size (`tuple[int, int]`): Height and width, of the centre that is shown.
        probability (`float`): See [`~ddpm_hf.images.augment.draw_labels`].
        seed (`int`): Seed of the random numbers.
        columns (`int`): Number of columns.
    """
    pixels = torch.from_numpy(np.stack([cut(image, size, 0.5, 0.5) for image in images]))  # (rows, H, W, C)
    x_0 = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).repeat_interleave(columns, dim=0)
    labels = draw_labels(len(x_0), probability, torch.Generator().manual_seed(seed))
    labels[::columns] = 0
    shown = transform(x_0, labels) / 2 + 0.5
    return image_grid(DiffusionPipeline.numpy_to_pil(shown.permute(0, 2, 3, 1).numpy()), columns)
