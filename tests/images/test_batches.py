"""The batches as a function of the seed and their number."""

import numpy as np
import pytest
import torch

from ddpm_hf.images.batches import Batches, ShuffledImages

CPU = torch.device("cpu")


def draw(batches, g):
    return batches.draw(g, batches.generator(g))[0]


def images_of(batches, g):
    return ((draw(batches, g)[:, 0].amax((1, 2)) + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 25])
def test_every_image_comes_once_in_an_epoch(batch_size):
    pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1) * np.ones((1, 2, 2, 1), dtype=np.uint8)
    batches = Batches(ShuffledImages(pixels, 0), (2, 2), batch_size, 0, False, CPU)
    seen = [image for g in range(30 // batch_size + 1) for image in images_of(batches, g)]
    for epoch in range(len(seen) // 10):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_crops_are_squares_from_all_over_the_image():
    image = np.arange(10, dtype=np.uint8).reshape(1, 10, 1).repeat(4, axis=0)
    batches = Batches(ShuffledImages([image], 0), (4, 4), 500, 0, False, CPU)
    x_0 = draw(batches, 0)
    assert x_0.shape == (500, 1, 4, 4)
    left = ((x_0[:, 0, 0, 0] + 1) * 127.5).round().int()
    assert torch.bincount(left, minlength=7).tolist() == pytest.approx([500 / 7] * 7, abs=35)
    assert torch.equal(x_0, draw(batches, 0))
    assert not torch.equal(x_0, draw(batches, 1))


def test_images_are_mirrored_at_random():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 1), dtype=np.uint8)
    x_0, plain = (draw(Batches(ShuffledImages(pixels, 0), (4, 4), 2000, 0, flip, CPU), 0) for flip in (True, False))
    assert x_0.min() == -1
    assert x_0.max() == 1
    mirrored = (x_0 != plain).flatten(1).any(1)
    assert torch.equal(x_0[mirrored], plain[mirrored].flip(-1))
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.05)
