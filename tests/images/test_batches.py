"""The batches as a function of the seed and their number."""

import numpy as np
import pytest
import torch

from ddpm_hf.images.batches import BatchPlan, ShuffledImages


def make_plan(count=10, batch_size=4, seed=0, random_flip=False):
    pixels = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1) * np.ones((1, 2, 2, 1), dtype=np.uint8)
    return BatchPlan(ShuffledImages(pixels, seed), batch_size, torch.ones(1000), seed, random_flip, torch.device("cpu"))


def images_of(plan, g):
    return ((plan.micro_batch(g)[0][:, 0].amax((1, 2)) + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 25])
def test_every_image_comes_once_in_an_epoch(batch_size):
    plan = make_plan(10, batch_size)
    seen = [image for g in range(30 // batch_size + 1) for image in images_of(plan, g)]
    for epoch in range(len(seen) // 10):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_crops_are_squares_from_all_over_the_image():
    image = np.arange(10, dtype=np.uint8).reshape(1, 10, 1).repeat(4, axis=0)
    plan = BatchPlan(ShuffledImages([image], 0), 500, torch.ones(10), 0, False, torch.device("cpu"))
    x_0 = plan.micro_batch(0)[0]
    assert x_0.shape == (500, 1, 4, 4)
    left = ((x_0[:, 0, 0, 0] + 1) * 127.5).round().int()
    assert torch.bincount(left, minlength=7).tolist() == pytest.approx([500 / 7] * 7, abs=35)
    assert torch.equal(x_0, plan.micro_batch(0)[0])
    assert not torch.equal(x_0, plan.micro_batch(1)[0])


def test_a_micro_batch_is_a_function_of_seed_and_number():
    first, again, other = make_plan(seed=1), make_plan(seed=1), make_plan(seed=2)
    again.micro_batch(7)  # whatever was asked for before
    torch.randn(3)
    for a, b in zip(first.micro_batch(5)[:3], again.micro_batch(5)):
        assert torch.equal(a, b)
    assert not torch.equal(first.micro_batch(5)[2], other.micro_batch(5)[2])
    assert not torch.equal(first.micro_batch(5)[2], first.micro_batch(6)[2])


def test_distributions():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 1), dtype=np.uint8)
    plan = BatchPlan(ShuffledImages(pixels, 0), 2000, torch.ones(10), 0, True, torch.device("cpu"))
    x_0, t, eps, _ = plan.micro_batch(0)
    assert x_0.shape == eps.shape == (2000, 1, 4, 4)
    assert x_0.min() == -1
    assert x_0.max() == 1
    assert eps.mean().item() == pytest.approx(0, abs=0.03)
    assert eps.std().item() == pytest.approx(1, abs=0.03)
    assert torch.bincount(t, minlength=10).min() > 140
    weighted = BatchPlan(
        ShuffledImages(pixels, 0), 2000, torch.tensor([0.0, 1.0, 3.0]), 0, True, torch.device("cpu")
    ).micro_batch(0)[1]
    assert (torch.bincount(weighted) / 2000).tolist() == pytest.approx([0, 0.25, 0.75], abs=0.03)
    plain = BatchPlan(ShuffledImages(pixels, 0), 2000, torch.ones(10), 0, False, torch.device("cpu")).micro_batch(0)[0]
    mirrored = (x_0 != plain).flatten(1).any(1)
    assert torch.equal(x_0[mirrored], plain[mirrored].flip(-1))
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.05)
