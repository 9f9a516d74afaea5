"""A part of the decoded images, which looks like a cache of its own."""

import hashlib
from pathlib import Path

import numpy as np

from ddpm_hf.images.cache import ImageCache


class ImagePart:
    """Some images of a cache. Nothing is copied.

    Args:
        images ([`~ddpm_hf.images.cache.ImageCache`]): All images.
        numbers (`numpy.ndarray`): `(N,)` int64, which of them, ascending.

    Attributes:
        folder (`Path`): The folder of the cache.
        form ([`~ddpm_hf.pixel_format.PixelFormat`]): The pixels.
        labels (`numpy.ndarray`, *optional*): `(N,)` int64, the labels of this part.
        unreadable (`list[dict]`): The images that were left out of the whole.
        fingerprint (`str`): A hash of all images, and of which of them are in this part.
    """

    def __init__(self, images: ImageCache, numbers: np.ndarray):
        self.whole, self.numbers = images, numbers
        self.folder: Path = images.folder
        self.form = images.form
        self.labels = None if images.labels is None else images.labels[numbers]
        self.unreadable = images.unreadable
        chosen = numbers.astype("<i8").tobytes()  # the same bytes on every machine
        self.fingerprint = hashlib.sha256(images.fingerprint.encode() + chosen).hexdigest()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> np.ndarray:
        """Read image i of this part, `(height, width, channels)` uint8. See [`ImageCache.__getitem__`]."""
        return self.whole[self.numbers[i]]
