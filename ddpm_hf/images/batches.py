"""The micro-batches of a run: images, flips, crops and labels, as a function of the seed and of their number."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ddpm_hf.images.ahead import Ahead
from ddpm_hf.images.augment import draw_labels, transform
from ddpm_hf.images.cache import ImageCache
from ddpm_hf.images.parts import ImagePart
from ddpm_hf.pixel_format import EIGHT_BITS, PixelFormat, moved


def seed_of(seed: int, purpose: str, number: int) -> int:
    """Return a seed for one purpose at one place of a run, independent of all others."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:7], "big")


class ImageRow(Protocol):
    """An endless row of training images: epoch after epoch, each shuffled in its own way.

    Attributes:
        images ([`~ddpm_hf.images.cache.ImageCache`], *optional*): All images, by their number; None for a stream.
        held_out ([`~ddpm_hf.images.cache.ImageCache`], *optional*): Images that are never in the row; None without.
        fingerprint (`str`, *optional*): A hash of all images and labels, also of those held out; None for a stream.
        unreadable (`list[dict]`): `image` and `reason` of the images that were left out so far.
        small (`list[dict]`): The images found too small so far, see [`~ddpm_hf.images.small.find_small`]; only a stream
            finds any, since those of a data set are sorted out before.
    """

    @property
    def images(self) -> ImageCache | ImagePart | None: ...

    @property
    def held_out(self) -> ImageCache | ImagePart | None: ...

    @property
    def fingerprint(self) -> str | None: ...

    @property
    def unreadable(self) -> list[dict]: ...

    @property
    def small(self) -> list[dict]: ...

    def take(self, positions: Iterable[int]) -> tuple[list[np.ndarray], list[int]]:
        """Return the images at these places, each `(height, width, channels)` uint8, and their labels, -1 for none."""

    def state(self) -> dict | None:
        """Return what a checkpoint needs to go on from here, as JSON."""

    def close(self) -> object:
        """End all reading ahead."""


class ShuffledImages:
    """An [`ImageRow`] of images that can be read in any order. In an epoch every image comes once.

    Args:
        images ([`~ddpm_hf.images.cache.ImageCache`]): The images, each `(height, width, channels)` uint8.
        seed (`int`): The run's seed.
        labels (`Sequence[int]`, *optional*): The class of each image, -1 where it has none.
        held_out ([`~ddpm_hf.images.cache.ImageCache`], *optional*): Images that are kept beside the row, not in it.
    """

    def __init__(
        self,
        images: ImageCache | ImagePart,
        seed: int,
        labels: Sequence[int] | None = None,
        held_out: ImageCache | ImagePart | None = None,
    ):
        self.images, self.seed, self.labels, self.held_out = images, seed, labels, held_out
        self.orders: dict[int, np.ndarray] = {}  # of the epochs in use

    @property
    def fingerprint(self) -> str:
        if self.held_out is None:
            return self.images.fingerprint
        return hashlib.sha256(f"{self.images.fingerprint}/{self.held_out.fingerprint}".encode()).hexdigest()

    @property
    def unreadable(self) -> list[dict]:
        return self.images.unreadable + ([] if self.held_out is None else self.held_out.unreadable)

    @property
    def small(self) -> list[dict]:
        return []

    def take(self, positions: Iterable[int]) -> tuple[list[np.ndarray], list[int]]:
        """Return the images at these places of the row and their labels, each in O(1), wherever they are."""
        places = [divmod(position, len(self.images)) for position in positions]
        needed = {epoch for epoch, _ in places}
        self.orders = {epoch: self.orders[epoch] if epoch in self.orders else self._order(epoch) for epoch in needed}
        chosen = [self.orders[epoch][place] for epoch, place in places]
        labels = [-1] * len(chosen) if self.labels is None else [int(self.labels[i]) for i in chosen]
        return [self.images[i] for i in chosen], labels

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(seed_of(self.seed, "order", epoch)).permutation(len(self.images))

    def state(self) -> None:
        """Return nothing: every place can be reached at once."""

    def close(self):
        """Do nothing: nothing is read ahead."""


@dataclass
class Batches:
    """The micro-batches g = 0, 1, 2, ... of a run.

    Micro-batch g takes images g * batch_size up to (g + 1) * batch_size of the row of images. Everything random about
    it is a function of (seed, g) alone, so a run that goes on from a checkpoint needs no random state.

    Args:
        images ([`ImageRow`]): The row of images.
        size (`tuple[int, int]`): Height and width to which every image is cut.
        batch_size (`int`): Images in a micro-batch.
        seed (`int`): The run's seed.
        random_flip (`bool`): Whether images are mirrored left to right with probability 1/2.
        device (`torch.device`): Where the batches are made.
        num_classes (`int`, *optional*): Classes of a class-conditional model; its label `num_classes` stands for none.
        cond_dropout (`float`): Probability that a label is replaced by that one.
        pixels ([`~ddpm_hf.pixel_format.PixelFormat`]): What the images hold; by default the numbers 0 to 255.
        augment (`float`, *optional*): Probability of [`~ddpm_hf.images.augment.draw_labels`]; None for no augmentation.
        stride (`int`): The next micro-batch of this process is number g + stride. It is prepared ahead on a GPU.
    """

    images: ImageRow
    size: tuple[int, int]
    batch_size: int
    seed: int
    random_flip: bool
    device: torch.device
    num_classes: int | None = None
    cond_dropout: float = 0.0
    pixels: PixelFormat = EIGHT_BITS
    augment: float | None = None
    stride: int = 1

    def __post_init__(self):
        self.ahead = Ahead(self._cuts, self.stride)

    def generator(self, g: int) -> torch.Generator:
        """Return the generator of all random numbers of micro-batch g, but for crops, dropout and augmentation."""
        return torch.Generator(self.device).manual_seed(seed_of(self.seed, "noise", g))

    def draw(self, g: int, generator: torch.Generator) -> tuple[torch.Tensor, list[int]]:
        """Return x_0 `(B, C, H, W)` of micro-batch g, float32 in [-1, 1], and the labels, -1 for images without.

        Raises:
            OSError: If an image cannot be read.
        """
        # A stream reads ahead itself. On a CPU a thread would take the time of the network.
        in_turn = self.images.images is None or self.device.type == "cpu"
        cuts, labels = self._cuts(g) if in_turn else self.ahead.take(g)
        x_0 = self.pixels.to_x_0(cuts, self.device)  # (B, H, W, C) -> (B, C, H, W)
        if self.random_flip:
            mirrored = torch.rand(len(x_0), 1, 1, 1, generator=generator, device=self.device) < 0.5
            x_0 = torch.where(mirrored, x_0.flip(-1), x_0)
        return x_0, labels

    def _cuts(self, g: int) -> tuple[np.ndarray, list[int]]:
        """Return the images of micro-batch g, cut, `(B, H, W, C)` on the host, and their labels."""
        images, labels = self.images.take(range(g * self.batch_size, (g + 1) * self.batch_size))
        where = np.random.default_rng(seed_of(self.seed, "crop", g)).random((len(images), 2))
        cuts = np.stack([cut(image, self.size, *u) for image, u in zip(images, where)])
        return cuts, labels

    def augmented(self, g: int, x_0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the images of micro-batch g transformed, and labels `(B, 9)` that tell the network how.

        Without augmentation, x_0 is returned as it is, and None. The random numbers are the same on every device.
        """
        if self.augment is None:
            return x_0, None
        generator = torch.Generator().manual_seed(seed_of(self.seed, "augment", g))
        labels = draw_labels(len(x_0), self.augment, generator)
        return transform(x_0, labels), moved(labels.float(), self.device)

    def drop_labels(self, labels: list[int], generator: torch.Generator) -> torch.Tensor | None:
        """Return the labels `(B,)` that the network sees, int64 in [0, num_classes]; None for a model without classes.

        Some are left out, so that the network also learns to draw without a label (arXiv 2207.12598).
        """
        if self.num_classes is None:
            return None
        left_out = torch.rand(len(labels), generator=generator, device=self.device) < self.cond_dropout
        known = moved(np.array(labels), self.device)
        return known.masked_fill(left_out | (known < 0), self.num_classes)


def cut(image: np.ndarray, size: tuple[int, int], u: float, v: float) -> np.ndarray:
    """Cut an image to a height and a width. What is left over lies above by the share u, and left by v, in [0, 1)."""
    (height, width), (rows, columns) = size, image.shape[:2]
    top, left = int(u * (rows - height + 1)), int(v * (columns - width + 1))
    return image[top : top + height, left : left + width]
