"""Averages of the weights whose length is chosen after the training: the arithmetic.

The paper is Karras et al. 2023 (EDM2, arXiv 2312.02696), section 3 and appendix C. In an average at time t, the
weights of time tau count by the profile p(tau) = (gamma + 1) tau ** gamma / t ** (gamma + 1), 0 <= tau <= t. The length
of an average is the standard deviation of its profile as a share of t, such as 0.1. A sum of the profiles of snapshots
fits that of another length. Time is counted in optimizer steps. The weights after step i hold from i - 1 to i, so
nothing here is an approximation but the fit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STDS = (0.05, 0.1)  # the lengths of the two averages that a run keeps
SHORTEST = 0.001  # gamma is about the inverse
LONGEST = 1 / math.sqrt(12)  # all weights count alike: gamma = 0


def gamma_of(std: float) -> float:
    """Return the power of the profile with a relative standard deviation.

    Args:
        std (`float`): Between `SHORTEST` and `LONGEST`.
    """
    # std ** 2 = (gamma + 1) / ((gamma + 2) ** 2 (gamma + 3)) is a cubic; its largest root is the only one above -1.
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


def decay_at(step: int, gamma: float) -> float:
    """Return how much of the average stays at a step, counted from 1; after step 1 it is the weights."""
    return (1 - 1 / step) ** (gamma + 1)


def inner_product(gamma_a, time_a, gamma_b, time_b):
    """Return the integral of the product of two profiles. Arrays are combined as NumPy does."""
    first = np.minimum(time_a, time_b)  # both are 0 after that
    shares = (first / time_a) ** gamma_a * (first / time_b) ** gamma_b
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * shares * first / (time_a * time_b)


@dataclass(frozen=True)
class Fit:
    """How snapshots give an average of another length.

    Args:
        std (`float`): The length that is wanted.
        weights (`tuple[float, ...]`): How much each snapshot counts. They sum to 1, and some are negative.
        error (`float`): Norm of the difference between the profile and that of the sum, as a share of the profile's.
    """

    std: float
    weights: tuple[float, ...]
    error: float


def fit_profile(std: float, snapshots: Sequence[tuple[float, int]], step: int) -> Fit:
    """Fit the profile of an average at a step by those of snapshots, by least squares.

    Args:
        std (`float`): The relative standard deviation that is wanted.
        snapshots (`Sequence[tuple[float, int]]`): The relative standard deviation and the step of each.
        step (`int`): The step that the average shall be of.
    """
    gammas = np.array([gamma_of(of_snapshot) for of_snapshot, _ in snapshots])
    times, gamma = np.array([at for _, at in snapshots]) / step, gamma_of(std)
    products = inner_product(gammas[:, None], times[:, None], gammas, times)  # (N, N)
    wanted = inner_product(gammas, times, gamma, 1.0)  # (N,)
    square = inner_product(gamma, 1.0, gamma, 1.0)
    # Minimise |p - sum of w_i p_i| ** 2 where the sum of w_i is 1, with a Lagrange multiplier. The profiles are scaled
    # to a norm of 1, since the early ones are high and narrow.
    norms = np.sqrt(products.diagonal())
    system = np.block([[products / np.outer(norms, norms), 1 / norms[:, None]], [1 / norms, np.zeros(1)]])
    weights = np.linalg.solve(system, np.append(wanted / norms, 1.0))[:-1] / norms
    rest = square - 2 * weights @ wanted + weights @ products @ weights
    return Fit(std, tuple(weights.tolist()), math.sqrt(max(rest, 0.0) / square))  # rounding can make it negative
