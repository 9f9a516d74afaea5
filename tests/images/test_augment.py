"""Geometric augmentation: what is drawn, and what is done to the images."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddpm_hf.images.augment import affine_map, draw_labels, transform
from ddpm_hf.images.batches import Batches, ShuffledImages

CPU = torch.device("cpu")
MIRROR_X, MIRROR_Y, SCALE, COS, SIN, STRETCH_X, STRETCH_Y, SHIFT_X, SHIFT_Y = range(9)


def labels(values, count=2):
    row = torch.zeros(count, 9, dtype=torch.float64)
    for i, value in values.items():
        row[:, i] = value
    return row


def turned(angle):
    return {COS: math.cos(angle) - 1, SIN: math.sin(angle)}


def images(height, width, channels=3):
    return torch.rand(2, channels, height, width) * 2 - 1


def close(a, b, atol=1e-4):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_how_often_and_how_much():
    """Binomial bounds of four deviations; the spread of what was applied."""
    n, p = 20_000, 0.12
    drawn = draw_labels(n, p, torch.Generator().manual_seed(0))
    shares = [0.5, p / 2, p, p, p, p, p, p, p]
    for share, column in zip(shares, drawn.T):
        assert abs((column != 0).sum() - n * share) < 4 * math.sqrt(n * share * (1 - share))
    for column in drawn[:, [SCALE, SHIFT_X, SHIFT_Y]].T:
        normal = column[column != 0]
        assert normal.mean().item() == pytest.approx(0, abs=0.1)
        assert normal.std().item() == pytest.approx(1, abs=0.1)
    on_circle = drawn[drawn[:, SIN] != 0]
    close((on_circle[:, COS] + 1).square() + on_circle[:, SIN].square(), torch.ones(len(on_circle)).double(), 1e-12)
    assert on_circle[:, COS].mean().item() == pytest.approx(-1, abs=0.1)
    lengths = drawn[drawn[:, STRETCH_X] != 0][:, [STRETCH_X, STRETCH_Y]].norm(dim=1)
    assert lengths.square().mean().item() == pytest.approx(1, abs=0.1)
    assert ((drawn[:, SHIFT_X] != 0) == (drawn[:, SHIFT_Y] != 0)).all()
    together = ((drawn[:, SCALE] != 0) & (drawn[:, SHIFT_X] != 0)).sum()
    assert together.item() == pytest.approx(n * p * p, abs=4 * math.sqrt(n * p * p))


def test_images_without_labels_keep_their_bits():
    x_0 = images(6, 10)
    drawn = draw_labels(2, 0.0, torch.Generator().manual_seed(0))
    assert not drawn.any()
    assert torch.equal(transform(x_0, drawn), x_0)
    row = labels({SHIFT_X: 1})
    row[0] = 0
    before = x_0.clone()
    moved = transform(x_0, row)
    assert torch.equal(moved[0], x_0[0]) and not torch.equal(moved[1], x_0[1])
    assert torch.equal(x_0, before)


@pytest.mark.parametrize("channels", [1, 4])
def test_mirrors_are_exact(channels):
    x_0 = images(6, 10, channels)
    assert torch.equal(transform(x_0, labels({MIRROR_X: 1})), x_0.flip(3))
    assert torch.equal(transform(x_0, labels({MIRROR_Y: 1})), x_0.flip(2))
    assert torch.equal(transform(x_0, labels({MIRROR_X: 1, MIRROR_Y: 1})), x_0.flip(2, 3))


def test_right_angles_are_exact():
    x_0 = images(12, 12)
    close(transform(x_0, labels(turned(math.pi / 2))), x_0.rot90(-1, (2, 3)))
    close(transform(x_0, labels(turned(math.pi))), x_0.flip(2, 3))
    wide = images(12, 20)
    close(transform(wide, labels(turned(math.pi))), wide.flip(2, 3))
    quarter = transform(wide, labels(turned(-math.pi / 2)))
    close(quarter[..., 4:16], wide[..., 4:16].rot90(1, (2, 3)))  # the central square, whatever the shape


def test_whole_pixels_are_exact_and_the_rest_is_reflected():
    x_0 = images(16, 24)
    right = transform(x_0, labels({SHIFT_X: 1}))  # 24 / 8 pixels
    close(right, torch.cat((x_0[..., :3].flip(3), x_0[..., :-3]), dim=3))
    up = transform(x_0, labels({SHIFT_Y: -2}))  # 16 / 8 pixels, twice
    close(up, torch.cat((x_0[:, :, 4:], x_0[:, :, -4:].flip(2)), dim=2))


def test_scaling():
    """Against PyTorch's own resizing, of which the centre is cut out."""
    x_0 = images(16, 24)
    double = transform(x_0, labels({SCALE: 5}))  # 2 ** (0.2 * 5)
    close(double, F.interpolate(x_0, scale_factor=2, mode="bicubic")[:, :, 8:24, 12:36].clamp(-1, 1))
    assert double.min() == -1 and double.max() == 1  # bicubic interpolation goes beyond
    soft = F.interpolate(images(6, 8), scale_factor=8, mode="bicubic").clamp(-1, 1)
    half = transform(soft, labels({SCALE: -5}))
    close(half[:, :, 12:36, 16:48], F.interpolate(soft, scale_factor=0.5, mode="area"), 0.05)


def test_fine_detail_is_averaged_and_makes_no_pattern():
    x_0 = torch.tensor([-1.0, 1.0]).repeat(16).expand(2, 1, 32, 32)  # stripes of one pixel
    assert transform(x_0, labels({SCALE: -5})).abs().max() < 1e-3
    assert transform(x_0, labels({STRETCH_Y: 5})).abs().max() < 1e-3  # shrunk across the stripes
    along = transform(x_0, labels({STRETCH_X: 5}))[:, :, 8:24]  # shrunk along the stripes, which stay sharp
    close(along, F.interpolate(x_0, scale_factor=2, mode="bicubic")[:, :, 16:32, 16:48].clamp(-1, 1))


def test_the_map_of_all_together():
    """A point of an image is scaled, turned clockwise, stretched and moved, here by complex numbers; and back."""
    a2, a3, a4, a5, a6, a7 = 0.7, 0.9, 2.1, 1.2, -0.4, 1.5
    stretched = {STRETCH_X: a5 * math.cos(a4), STRETCH_Y: a5 * math.sin(a4)}
    matrix, shift = affine_map(labels({SCALE: a2, **turned(a3), **stretched, SHIFT_X: a6, SHIFT_Y: a7}), 40, 64)
    point = complex(3, -5)  # y downwards, so that a positive angle is clockwise
    axis = complex(math.cos(a4), math.sin(a4))
    moved = 2 ** (0.2 * a2) * point * complex(math.cos(a3), math.sin(a3)) / axis
    moved = complex(moved.real * 2 ** (0.2 * a5), moved.imag / 2 ** (0.2 * a5)) * axis + complex(8 * a6, 5 * a7)
    back = matrix[0] @ torch.tensor([moved.real, moved.imag], dtype=torch.float64) + shift[0]
    close(back, torch.tensor([point.real, point.imag], dtype=torch.float64), 1e-9)


def test_batches_are_augmented_by_seed_and_number():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 12, 1), dtype=np.uint8)

    def draw(g, seed=0, augment: float | None = 0.5):
        batches = Batches(ShuffledImages(pixels, 0), (8, 12), 40, seed, False, CPU, augment=augment)
        generator = batches.generator(g)
        x_0 = batches.draw(g, generator)[0]
        return x_0, *batches.augmented(g, x_0), torch.rand(1, generator=generator)

    x_0, augmented, drawn, following = draw(3)
    assert drawn.dtype == torch.float32 and drawn.shape == (40, 9)
    assert all(torch.equal(a, b) for a, b in zip(draw(3), (x_0, augmented, drawn, following)))
    assert not torch.equal(drawn, draw(4)[2]) and not torch.equal(drawn, draw(3, seed=1)[2])
    untouched = ~drawn.any(dim=1)
    assert 0 < untouched.sum() < 20
    assert torch.equal(augmented[untouched], x_0[untouched])
    plain = draw(3, augment=None)
    assert plain[2] is None and torch.equal(plain[1], x_0)
    assert torch.equal(plain[3], following)  # timesteps and noise stay the same
