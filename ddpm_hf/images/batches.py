"""What every batch of a run holds, as a function of the seed and its number: images, timesteps, noise, flips, crops."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch


def seed_of(seed: int, purpose: str, number: int) -> int:
    """A seed for one purpose at one place of a run with a seed, independent of all others."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:7], "big")


class ShuffledImages:
    """An endless row of epochs, each a permutation of the images of its own, so in an epoch every image comes once.

    Args:
        images (`Sequence[numpy.ndarray]`): The images, each `(height, width, channels)` uint8.
        seed (`int`): The run's seed.
        labels (`Sequence[int]`, *optional*): The class of each image, -1 where it has none.
    """

    def __init__(self, images: Sequence[np.ndarray], seed: int, labels: Sequence[int] | None = None):
        self.images, self.seed, self.labels = images, seed, labels
        self.orders = {}

    @property
    def unreadable(self) -> list[dict]:
        """`image` and `reason` of those that were left out."""
        return self.images.unreadable

    def take(self, positions: Iterable[int]) -> tuple[list[np.ndarray], list[int]]:
        """The images at these places of the row and their labels, in O(1) for each, wherever they are."""
        places = [divmod(position, len(self.images)) for position in positions]
        needed = {epoch for epoch, _ in places}
        self.orders = {epoch: self.orders[epoch] if epoch in self.orders else self._order(epoch) for epoch in needed}
        chosen = [self.orders[epoch][place] for epoch, place in places]
        labels = [-1] * len(chosen) if self.labels is None else [int(self.labels[i]) for i in chosen]
        return [self.images[i] for i in chosen], labels

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(seed_of(self.seed, "order", epoch)).permutation(len(self.images))

    def state(self) -> None:
        """What a checkpoint has to hold: nothing, since every place can be reached at once."""

    def close(self):
        """End the reading ahead: there is none."""


@dataclass
class BatchPlan:
    """The micro-batches g = 0, 1, 2, ... of a run.

    Micro-batch g takes images g * batch_size up to (g + 1) * batch_size of the row of images; everything random about
    it is a function of (seed, g) alone.

    Args:
        images ([`ShuffledImages`] or [`~ddpm_hf.images.streaming.StreamedImages`]): The row of images.
        batch_size (`int`): Images in a micro-batch.
        timestep_weights (`torch.Tensor`, `(T,)`): How often each timestep is drawn, in proportion.
        seed (`int`): The run's seed.
        random_flip (`bool`): Whether images are mirrored left to right with probability 1/2.
        device (`torch.device`): Where the batches are made.
        num_classes (`int`, *optional*): Classes of a class-conditional model; its label `num_classes` stands for none.
        cond_dropout (`float`): Probability that a label is replaced by that one.
    """

    images: ShuffledImages
    batch_size: int
    timestep_weights: torch.Tensor
    seed: int
    random_flip: bool
    device: torch.device
    num_classes: int | None = None
    cond_dropout: float = 0.0

    def micro_batch(self, g: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Micro-batch g.

        Returns:
            `tuple`: x_0 `(B, C, H, W)` float32 in [-1, 1]; t `(B,)` int64 in [0, T); eps ~ N(0, I) like x_0; labels
                `(B,)` int64 in [0, num_classes], or None for a model without classes.
        """
        images, labels = self.images.take(range(g * self.batch_size, (g + 1) * self.batch_size))
        where = np.random.default_rng(seed_of(self.seed, "crop", g)).random((len(images), 2))
        squares = np.stack([cut_square(image, *u) for image, u in zip(images, where)])
        pixels = torch.from_numpy(squares).to(self.device)  # (B, H, W, C) uint8
        x_0 = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, C, H, W)
        generator = torch.Generator(self.device).manual_seed(seed_of(self.seed, "noise", g))
        random = {"generator": generator, "device": self.device}
        if self.random_flip:
            mirrored = torch.rand(len(x_0), 1, 1, 1, **random) < 0.5
            x_0 = torch.where(mirrored, x_0.flip(-1), x_0)
        t = self.timestep_weights.to(self.device).multinomial(len(x_0), replacement=True, generator=generator)
        eps = torch.randn(x_0.shape, **random)
        if self.num_classes is None:
            return x_0, t, eps, None
        labels = torch.tensor(labels, device=self.device)
        left_out = torch.rand(len(x_0), **random) < self.cond_dropout
        return x_0, t, eps, torch.where(left_out | (labels < 0), self.num_classes, labels)


def cut_square(image: np.ndarray, u: float, v: float) -> np.ndarray:
    """The largest square of an image, at the fraction u of its way down and v of its way right, both in [0, 1)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = int(u * (height - side + 1)), int(v * (width - side + 1))
    return image[top : top + side, left : left + side]
