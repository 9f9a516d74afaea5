"""Distances between two sets of images, by their features: FID, KID, precision, recall, density and coverage."""

import warnings

import numpy as np
import torch

MOST_IMAGES_FOR_PRDC = 10_000  # of each set, as in the papers; more would raise recall by their number alone


class _Identity(torch.nn.Module):
    """What torchmetrics is given for a network, since it gets features instead of images."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def _alone(features: np.ndarray) -> dict:
    """Options for torchmetrics: the features are there, and so are those of all processes, on the one that computes."""
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
    """FID (arXiv 1706.08500, eq. 6): |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), of means and covariances, in float64.

    Args:
        real, fake (`numpy.ndarray`, `(N, D)` and `(M, D)`): Features; N, M > D.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(**_alone(real)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(fake).double(), real=False)
    return metric.compute().item()


def kernel_distance(real: np.ndarray, fake: np.ndarray, seed: int) -> dict:
    """KID (arXiv 1801.01401): the unbiased MMD^2 of the kernel (x y / D + 1)^3, mean over 100 subsets of 1,000 images.

    If a set has fewer images, subsets are of so many.

    Args:
        real, fake (`numpy.ndarray`, `(N, D)` and `(M, D)`): Features.
        seed (`int`): Of the subsets.

    Returns:
        `dict`: `value`, `standard_deviation` between the subsets, `subset_size`.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(1000, len(real), len(fake))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")  # as they already are
        metric = KernelInceptionDistance(subset_size=size, **_alone(real)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(fake).double(), real=False)
    with torch.random.fork_rng(devices=[]):  # it draws the subsets from the global stream
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return {"value": mean.item(), "standard_deviation": deviation.item(), "subset_size": size}


def precision_recall(real: np.ndarray, fake: np.ndarray, seed: int, k: int = 5) -> dict:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797), of sets cut to equal size.

    Around every point of a set is a ball that reaches to its k-th nearest neighbour; together they are its manifold.

    Args:
        real, fake (`numpy.ndarray`, `(N, D)` and `(M, D)`): Features; N, M > k.
        seed (`int`): Of the choice of images.
        k (`int`): See above.

    Returns:
        `dict`: `precision`, the share of samples in the manifold of the real images; `recall`, the share of real images
        in that of the samples; `density`, in how many real balls a sample is, over k; `coverage`, the share of real
        balls with a sample in them; `images_of_each`.
    """
    n = min(len(real), len(fake), MOST_IMAGES_FOR_PRDC)
    random = np.random.default_rng(seed)
    real, fake = (torch.from_numpy(random.permutation(features)[:n]).double() for features in (real, fake))
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    balls, covered, recalled = [], torch.zeros(n, dtype=torch.bool), 0
    for samples in fake.split(1000):
        inside = torch.cdist(samples, real) < real_radii  # (samples, n)
        balls.append(inside.sum(1))
        covered |= inside.any(0)
    for images in real.split(1000):
        recalled += (torch.cdist(images, fake) < fake_radii).any(1).sum().item()
    balls = torch.cat(balls).double()
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": recalled / n,
        "density": balls.mean().item() / k,
        "coverage": covered.double().mean().item(),
        "nearest_neighbours": k,
        "images_of_each": n,
    }


def _radii(points: torch.Tensor, k: int) -> torch.Tensor:
    """The distance of each point to its k-th nearest neighbour, beside itself, which is the first."""
    return torch.cat([torch.cdist(some, points).kthvalue(k + 1).values for some in points.split(1000)])
