"""A check of memorisation: samples, each beside the training images that are nearest to it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ddpm_hf.images.batches import cut_square

GAP = 4  # pixels between a sample and its neighbours


def nearest_images(
    samples: Sequence[np.ndarray], images: Sequence[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images nearest to each sample in pixel space.

    Args:
        samples (`Sequence[numpy.ndarray]`): S images `(H, W, C)` uint8.
        images (`Sequence[numpy.ndarray]`): Those to search, at least k.
        k (`int`): How many to find.

    Returns:
        `tuple`: Their numbers `(S, k)` int64, the nearest first, and their root mean squared differences `(S, k)`, on
        the scale 0 to 255.
    """
    flat = np.stack([np.asarray(sample).ravel() for sample in samples]).astype(np.float32)  # (S, D)
    squared = np.empty((len(flat), len(images)), dtype=np.float32)
    for i, image in enumerate(images):
        squared[:, i] = ((flat - cut_square(image, 0.5, 0.5).ravel()) ** 2).mean(1)
    order = squared.argsort(axis=1, kind="stable")[:, :k]
    return order, np.sqrt(np.take_along_axis(squared, order, axis=1))


def nearest_picture(samples: Sequence[np.ndarray], images: Sequence[np.ndarray], k: int) -> Image.Image:
    """A picture with a row for each sample: the sample, a gap, and the k nearest images. See [`nearest_images`]."""
    order, _ = nearest_images(samples, images, k)
    rows = []
    for sample, neighbours in zip(samples, order):
        gap = np.full((len(sample), GAP, sample.shape[2]), 255, dtype=np.uint8)
        rows.append(np.concatenate([sample, gap, *(cut_square(images[i], 0.5, 0.5) for i in neighbours)], axis=1))
    pixels = np.concatenate(rows)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
