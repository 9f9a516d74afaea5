"""Distances between the features of two sets of images: FID, KID, precision, recall, density and coverage."""

import warnings

import numpy as np
import torch

MOST_IMAGES_FOR_PRDC = 10_000  # of each set, as in the papers; a larger number alone would raise recall


class _Identity(torch.nn.Module):
    """A network for torchmetrics that returns its input, which is features instead of images."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def _alone(features: np.ndarray) -> dict:
    """Return options for torchmetrics: take features as they are, on one process, which has those of all processes."""
    return {"feature": _Identity(features.shape[1]), "sync_on_compute": False}


def check_enough(metrics: list[str], samples: int, reference: int, dimensions: int, k: int = 5):
    """Raise a ValueError if there are too few samples or reference images for one of the metrics.

    A covariance of no more images than dimensions is singular, and biases FID without bound.
    """
    needed = {"fid": dimensions + 1, "kid": 2, "prdc": k + 1}
    for metric in metrics:
        if min(samples, reference) < needed[metric]:
            raise ValueError(
                f"--metrics {metric}: {samples:,} samples and {reference:,} reference images; with {dimensions:,} "
                f"features, at least {needed[metric]:,} of each are needed (--num_images, --dataset, or --features)."
            )


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Return FID (arXiv 1706.08500, eq. 6): |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the means and covariances.

    Args:
        real, fake (`numpy.ndarray`, `(N, D)` and `(M, D)`): Features, with N, M > D. The distance is in float64.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(**_alone(real)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(fake).double(), real=False)
    return metric.compute().item()


def kernel_distance(real: np.ndarray, fake: np.ndarray, seed: int) -> dict:
    """Return KID (arXiv 1801.01401): the unbiased MMD^2 of the kernel (x y / D + 1)^3, a mean over 100 subsets.

    A subset has 1,000 images, or all images of the smaller set if that has fewer.

    Args:
        real, fake (`numpy.ndarray`, `(N, D)` and `(M, D)`): Features.
        seed (`int`): Seed of the choice of the subsets.

    Returns:
        `dict`: `value`, `standard_deviation` (over the subsets), `subset_size`.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(1000, len(real), len(fake))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")  # in memory anyway
        metric = KernelInceptionDistance(subset_size=size, **_alone(real)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(fake).double(), real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from the global stream
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return {"value": mean.item(), "standard_deviation": deviation.item(), "subset_size": size}


def precision_recall(real: np.ndarray, fake: np.ndarray, seed: int, k: int = 5) -> dict:
    """Return precision and recall (arXiv 1904.06991), and density and coverage (arXiv 2002.09797).

    Every point of a set has a ball that reaches to its k-th nearest neighbour in the set. The union of these balls is
    the manifold of the set. Both sets are cut to the same number of images.

    Args:
        real, fake (`numpy.ndarray`, `(N, D)` and `(M, D)`): Features; N, M > k.
        seed (`int`): Seed of the choice of images.
        k (`int`): See above.

    Returns:
        `dict`: `precision`, the share of samples in the manifold of the real images; `recall`, the share of real images
        in the manifold of the samples; `density`, the mean number of real balls around a sample, divided by k;
        `coverage`, the share of real balls that hold a sample; `nearest_neighbours`, which is k; `images_of_each`.
    """
    n = min(len(real), len(fake), MOST_IMAGES_FOR_PRDC)
    random = np.random.default_rng(seed)
    x, y = (torch.from_numpy(random.permutation(features)[:n]).double() for features in (real, fake))  # (n, D)
    x_radii, y_radii = _radii(x, k), _radii(y, k)
    counts, covered, recalled = [], torch.zeros(n, dtype=torch.bool), 0
    for samples in y.split(1000):
        inside = torch.cdist(samples, x) < x_radii  # (samples, n)
        counts.append(inside.sum(1))
        covered |= inside.any(0)
    for images in x.split(1000):
        recalled += int((torch.cdist(images, y) < y_radii).any(1).sum())
    balls = torch.cat(counts).double()  # (n,), the number of real balls around each sample
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": recalled / n,
        "density": balls.mean().item() / k,
        "coverage": covered.double().mean().item(),
        "nearest_neighbours": k,
        "images_of_each": n,
    }


def _radii(points: torch.Tensor, k: int) -> torch.Tensor:
    """Return the distance of each point to its k-th nearest neighbour. The point itself does not count."""
    return torch.cat([torch.cdist(some, points).kthvalue(k + 1).values for some in points.split(1000)])
