"""Look at some pictures of a data set before any is decoded: greyscale or colour, and which number is white."""

from collections.abc import Iterable
from contextlib import suppress

import datasets
import numpy as np

from ddpm_hf.images.decoding import UnreadableImage, White, is_greyscale, largest_number
from ddpm_hf.terminal import say


def common_mode(dataset: datasets.Dataset | datasets.IterableDataset) -> str:
    """ "L" if images from all over the data set are greyscale, which their headers tell, else "RGB"."""
    greyscale, _ = _survey(dataset)
    return "L" if greyscale else "RGB"


def choose_white(dataset: datasets.Dataset | datasets.IterableDataset) -> White:
    """Choose the numbers that mean white in pictures of 16 bits and of floats, from those that [`common_mode`] sees.

    A picture that is not among these and holds larger numbers is not read wrongly: it is refused by name.
    """
    _, largest = _survey(dataset)
    white = White.above(largest["I"], largest["F"])
    for kind, number, usual in (("16 bits", white.integers, 65535), ("floating-point numbers", white.floats, 1)):
        if number != usual:
            say([f"White is {number:,} in the pictures of {kind}: no larger number was found in those looked at."])
    if 0 <= largest["RGB"] < 64:
        problem = f"of the upper 8 bits, which is all that Pillow reads, none is above {largest['RGB']} of 255"
        say([f"The pictures of 16 bits a colour are nearly black: {problem}. Save them in 8 bits to scale them."])
    return white


_SURVEYS = {}  # by the fingerprint of the data set, so that no picture is opened twice


def _survey(dataset: datasets.Dataset | datasets.IterableDataset) -> tuple[bool, dict[str, float]]:
    """Whether the pictures looked at are all greyscale, and the largest number of each kind, -1 if there are none."""
    key = getattr(dataset, "_fingerprint", None)  # a stream has none
    if key in _SURVEYS:
        return _SURVEYS[key]
    greyscale, largest = True, {"I": -1, "F": -1, "RGB": -1}
    for row in _examples(dataset):
        with suppress(UnreadableImage):
            greyscale = is_greyscale(row["image"]) and greyscale
            for kind, number in largest_number(row["image"]).items():
                largest[kind] = max(number, largest[kind])
    if key is not None:
        _SURVEYS[key] = (greyscale, largest)
    return greyscale, largest


def _examples(dataset: datasets.Dataset | datasets.IterableDataset) -> Iterable[dict]:
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.take(1000)
    # Ten runs of a hundred: a thousand single rows would draw much more of the memory-mapped file into memory.
    starts = np.linspace(0, max(len(dataset) - 100, 0), 10).astype(int)
    return dataset.select(sorted({i for start in starts for i in range(start, min(start + 100, len(dataset)))}))
