"""The resolution that fits a data set, if none is given."""

from contextlib import suppress
from typing import Any

import datasets
import numpy as np

from ddpm_hf.images.arrays import sides_of_array
from ddpm_hf.images.stored import UnreadableImage, attempt, opened
from ddpm_hf.images.survey import examples

MOST, STEP = 64, 4  # pixels
SMALLER = 10  # percent of the pictures that may be smaller


def typical_resolution(dataset: datasets.Dataset | datasets.IterableDataset) -> int:
    """Return the resolution that most pictures have, by the headers of those looked at: a multiple of 4, at most 64."""
    sides = []
    for row in examples(dataset):
        with suppress(UnreadableImage):
            sides.append(attempt(lambda: min(_size(row["image"]))))  # noqa: B023, it is called at once
    if not sides:
        return MOST
    side = int(np.percentile(sides, SMALLER, method="higher"))
    return min(MOST, max(STEP, side // STEP * STEP))


def _size(image: Any) -> tuple[int, int]:
    if sides := sides_of_array(image):
        return sides
    with opened(image) as picture:
        return picture.size
