"""A check for memorisation: each sample beside the training images that are nearest to it."""

import numpy as np
from PIL import Image

from ddpm_hf.evaluation.image_sets import ImageSet
from ddpm_hf.pictures import enlarged

GAP = 4  # pixels between a sample and its neighbours


def nearest_images(samples: ImageSet, images: ImageSet, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that are nearest to each sample in pixel space.

    Args:
        samples ([`ImageSet`]): S images, all of one size.
        images ([`ImageSet`]): The images to search, at least k.
        k (`int`): Number of images to find.

    Returns:
        `tuple`: Their numbers `(S, k)` int64, the nearest first, and their root mean squared differences `(S, k)` on
        the scale 0 to 255.
    """
    flat = np.stack([samples[i].ravel() for i in range(len(samples))]).astype(np.float32)  # (S, D)
    squared = np.empty((len(flat), len(images)), dtype=np.float32)
    for i in range(len(images)):
        squared[:, i] = ((flat - images[i].ravel()) ** 2).mean(1)
    order = squared.argsort(axis=1, kind="stable")[:, :k]
    return order, np.sqrt(np.take_along_axis(squared, order, axis=1))


def nearest_picture(samples: ImageSet, images: ImageSet, k: int) -> Image.Image:
    """Draw a row for each sample: the sample, a gap, and the k nearest images. See [`nearest_images`]."""
    order, _ = nearest_images(samples, images, k)
    rows = []
    for i, neighbours in enumerate(order):
        sample = samples[i]
        gap = np.full((len(sample), GAP, sample.shape[2]), 255, dtype=np.uint8)
        rows.append(np.concatenate([sample, gap, *(images[j] for j in neighbours)], axis=1))
    pixels = np.concatenate(rows)
    return enlarged(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
