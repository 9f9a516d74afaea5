"""Look at some pictures of a data set before all are decoded: what are their channels, and which number is white?"""

from collections.abc import Iterable
from contextlib import suppress

import datasets
import numpy as np

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.decoding import White, is_greyscale, largest_number
from ddpm_hf.images.deep_survey import element_type, is_deep, survey_arrays
from ddpm_hf.images.stored import UnreadableImage
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.terminal import say


def choose_format(dataset: datasets.Dataset | datasets.IterableDataset, config: TrainingConfig) -> PixelFormat:
    """Decide about the channels, the type and the range of the pixels, from the images looked at and the options.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): Undecoded images.
        config ([`TrainingConfig`]): `image_mode`, `value_range` and `preserve_input_precision` count.

    Raises:
        ValueError: If the images differ too much, or leave the range.
    """
    if is_deep(_numbered_examples(dataset), config):
        return survey_arrays(_numbered_examples(dataset), element_type(dataset.features["image"]), config)
    mode = common_mode(dataset) if config.image_mode == "auto" else config.image_mode
    low, high = config.range_of_pixels or (0, 255)
    return PixelFormat(mode, len(mode), low=low, high=high)


def common_mode(dataset: datasets.Dataset | datasets.IterableDataset) -> str:
    """Return "L" if the images looked at are all greyscale by their headers, else "RGB"."""
    greyscale, _ = _survey(dataset)
    return "L" if greyscale else "RGB"


def choose_white(dataset: datasets.Dataset | datasets.IterableDataset) -> White:
    """Choose the numbers that mean white in pictures of 16 bits and of floats, from the images looked at.

    Any other picture with larger numbers is refused by name, not read wrongly.
    """
    _, largest = _survey(dataset)
    white = White.above(largest["I"], largest["F"])
    for kind, number, usual in (("16 bits", white.integers, 65535), ("floating-point numbers", white.floats, 1)):
        if number != usual:
            say([f"White is {number:,} in the pictures of {kind}: those looked at hold no larger number."])
    if 0 <= largest["RGB"] < 64:
        problem = f"Pillow reads only the upper 8 bits, and none is above {largest['RGB']:.0f} of 255"
        say([f"The pictures of 16 bits a colour are nearly black: {problem}. Save them in 8 bits to scale them."])
    return white


# By the fingerprint of the data set, so that no picture is opened twice.
_SURVEYS: dict[str, tuple[bool, dict[str, float]]] = {}


def _survey(dataset: datasets.Dataset | datasets.IterableDataset) -> tuple[bool, dict[str, float]]:
    """Return whether the pictures looked at are all greyscale, and the largest number of each kind, -1 for none."""
    key = getattr(dataset, "_fingerprint", None)  # a stream has none
    if key in _SURVEYS:
        return _SURVEYS[key]
    greyscale, largest = True, {"I": -1.0, "F": -1.0, "RGB": -1.0}
    for row in examples(dataset):
        with suppress(UnreadableImage):
            greyscale = is_greyscale(row["image"]) and greyscale
            for kind, number in largest_number(row["image"]).items():
                largest[kind] = max(number, largest[kind])
    if key is not None:
        _SURVEYS[key] = (greyscale, largest)
    return greyscale, largest


def examples(dataset: datasets.Dataset | datasets.IterableDataset) -> Iterable[dict]:
    """Return up to a thousand rows: the first of a stream, or rows from all over a data set."""
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.take(1000)
    return dataset.select(_numbers(dataset))


def _numbered_examples(dataset: datasets.Dataset | datasets.IterableDataset) -> Iterable[tuple[int, dict]]:
    """Return the [`examples`], each with the number of its row."""
    if isinstance(dataset, datasets.IterableDataset):
        return enumerate(examples(dataset))
    return zip(_numbers(dataset), examples(dataset))


def _numbers(dataset: datasets.Dataset) -> list[int]:
    # Ten runs of a hundred. A thousand single rows would load much more of the memory-mapped file.
    starts = np.linspace(0, max(len(dataset) - 100, 0), 10).astype(int)
    return sorted({i for start in starts for i in range(start, min(start + 100, len(dataset)))})
