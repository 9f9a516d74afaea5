"""FID, KID, precision and recall against their formulas, and the search for the nearest images."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ddpm_hf.evaluation.distances import check_enough, frechet_distance, kernel_distance, precision_recall
from ddpm_hf.evaluation.nearest import GAP, nearest_images, nearest_picture


def sets(real=60, fake=50, dimensions=5):
    random = np.random.default_rng(0)
    mixing = random.standard_normal((dimensions, dimensions))
    points = random.standard_normal((real, dimensions)) @ mixing, 0.4 + 1.3 * random.standard_normal((fake, dimensions))
    return [features.astype(np.float32) for features in points]


def test_fid_is_the_formula():
    real, fake = (features.astype(np.float64) for features in sets())
    means, covariances = [x.mean(0) for x in (real, fake)], [np.cov(x, rowvar=False) for x in (real, fake)]
    expected = np.square(means[0] - means[1]).sum() + np.trace(sum(covariances) - 2 * sqrtm(np.dot(*covariances)).real)
    assert frechet_distance(*sets()) == pytest.approx(expected, rel=1e-9)
    assert expected > 1
    assert frechet_distance(sets()[0], sets()[0]) == pytest.approx(0, abs=1e-9)


def test_kid_is_the_formula():
    real, fake = sets(50, 50)
    x, y = real.astype(np.float64), fake.astype(np.float64)

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    off = ~np.eye(50, dtype=bool)
    expected = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    distance = kernel_distance(real, fake, seed=0)
    assert distance["value"] == pytest.approx(expected, rel=1e-9)
    assert distance["subset_size"] == 50


def test_kid_is_repeatable_and_does_not_change_the_global_stream():
    real, fake = sets(80, 50)
    before = torch.random.get_rng_state()
    first = kernel_distance(real, fake, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert kernel_distance(real, fake, seed=0) == first
    assert kernel_distance(real, fake, seed=1) != first


@pytest.mark.parametrize("counts", [(30, 30), (1500, 1100)])  # in one piece, and in several
def test_precision_and_recall_are_their_definitions(counts):
    real, fake = sets(*counts)
    n = min(counts)
    random = np.random.default_rng(7)
    x, y = random.permutation(real)[:n].astype(np.float64), random.permutation(fake)[:n].astype(np.float64)

    def distances(a, b):
        return np.sqrt(np.square(a[:, None] - b[None]).sum(-1))

    radii_x, radii_y = (np.sort(distances(points, points), axis=1)[:, 5] for points in (x, y))
    in_ball_of_x = distances(x, y) < radii_x[:, None]  # (real, samples)
    in_ball_of_y = distances(x, y) < radii_y[None]
    measured = precision_recall(real, fake, seed=7)
    assert measured["precision"] == pytest.approx(in_ball_of_x.any(0).mean())
    assert measured["recall"] == pytest.approx(in_ball_of_y.any(1).mean())
    assert measured["density"] == pytest.approx(in_ball_of_x.sum() / (5 * n))
    assert measured["coverage"] == pytest.approx(in_ball_of_x.any(1).mean())
    assert measured["images_of_each"] == n
    assert 0 < measured["recall"] < 1 and 0 < measured["coverage"] < 1


@pytest.mark.parametrize(("metric", "needed"), [("fid", 9), ("kid", 2), ("prdc", 6)])
def test_too_few_images_are_refused(metric, needed):
    check_enough([metric], needed, needed, dimensions=8)
    for counts in ((needed - 1, 100), (100, needed - 1)):
        with pytest.raises(ValueError, match=f"--metrics {metric}: .* at least {needed} of each"):
            check_enough([metric], *counts, dimensions=8)


def test_nearest_images():
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
    far = images[3].astype(int)
    near = np.clip(far + 5, 0, 255).astype(np.uint8)
    order, distances = nearest_images([images[11], near], images, k=4)
    assert order.shape == distances.shape == (2, 4)
    assert order[:, 0].tolist() == [11, 3]
    assert distances[0, 0] == 0
    expected = np.sqrt(np.square(images.astype(float) - images[11]).mean((1, 2, 3)))
    np.testing.assert_array_equal(order[0], expected.argsort()[:4])
    np.testing.assert_allclose(distances[0], np.sort(expected)[:4], rtol=1e-6)

    picture = np.asarray(nearest_picture([images[11], near], images, k=4))[::16, ::16]  # it is enlarged 16 times
    assert picture.shape == (12, 6 * 5 + GAP, 3)
    np.testing.assert_array_equal(picture[6:, :6], near)
    np.testing.assert_array_equal(picture[6:, 6 + GAP : 12 + GAP], images[3])
    assert nearest_picture(images[:2, ..., :1], images[..., :1], k=2).mode == "L"
