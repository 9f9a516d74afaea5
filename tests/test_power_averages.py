"""Averages whose length is chosen after the training: against integrals, sums, and an average kept directly."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from ddpm_hf.power_averages import LONGEST, STDS, decay_at, fit_profile, gamma_of, inner_product
from ddpm_hf.training.ema import PowerAverage


def profile(gamma, time):
    """The profile of an average up to its time."""
    return lambda tau: (gamma + 1) * tau**gamma / time ** (gamma + 1)


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.2886])
def test_gamma_gives_the_standard_deviation(std):
    gamma = gamma_of(std)
    assert gamma > 0
    of_gamma = profile(gamma, 3.0)
    total, mean, square = (quad(lambda tau: of_gamma(tau) * tau**k, 0, 3)[0] for k in range(3))  # noqa: B023
    assert total == pytest.approx(1, rel=1e-9)
    assert np.sqrt(square - mean**2) / 3 == pytest.approx(std, rel=1e-7)


def test_the_papers_examples():
    """Section 3.1: sigma_rel of 0.05 and 0.10 are gamma of 16.97 and 6.94."""
    assert [round(gamma_of(std), 2) for std in STDS] == [16.97, 6.94]
    assert gamma_of(LONGEST) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b"), [((6.94, 1.0), (16.97, 1.0)), ((6.94, 0.25), (0.5, 0.75)), ((40.0, 2.0), (3.0, 0.5))]
)
def test_inner_products_are_integrals(a, b):
    integral, _ = quad(lambda tau: profile(*a)(tau) * profile(*b)(tau), 0, min(a[1], b[1]), epsabs=1e-12)
    assert inner_product(*a, *b) == pytest.approx(integral, rel=1e-9)


def test_a_fit_is_the_best_one_and_knows_its_error():
    snapshots = [(std, step) for step in range(50, 401, 50) for std in STDS]
    fit, tau = fit_profile(0.15, snapshots, 400), (np.arange(400_000) + 0.5) / 1000
    profiles = np.array(
        [np.where(tau <= step, profile(gamma_of(std), step)(np.minimum(tau, step)), 0) for std, step in snapshots]
    )
    wanted = profile(gamma_of(0.15), 400)(tau)

    def error(weights):
        return np.linalg.norm(weights @ profiles - wanted) / np.linalg.norm(wanted)

    assert fit.error == pytest.approx(error(np.array(fit.weights)), rel=1e-4)
    assert sum(fit.weights) == pytest.approx(1, abs=1e-12)
    for i in range(len(snapshots)):
        moved = np.array(fit.weights) + 0.01 * (np.eye(16)[i] - 1 / 16)
        assert error(moved) > fit.error
    assert fit_profile(0.05, snapshots, 400).error < 1e-6  # the one that was kept


@pytest.mark.parametrize("count", [16, 64])
def test_an_average_made_afterwards_is_the_one_kept_directly(count):
    """Weights that wander for 640 steps, some of which change nothing.

    An average that is kept equals the sum by the profile up to rounding. One that is made afterwards differs from it by
    less than a tenth of the error of the fit, as a share of how far the weights wandered.
    """
    steps, lengths = 640, (0.03, 0.15, 0.2)
    random, model = torch.Generator().manual_seed(0), torch.nn.Linear(40, 25)
    kept = {std: PowerAverage(model, std) for std in (*STDS, *lengths)}
    snapshots, history = {}, []
    for step in range(1, steps + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += (step % 7 > 0) * torch.randn(parameter.shape, generator=random)
        history.append(model.weight.detach().double())
        for average in kept.values():
            average.update(step)
        if step % (steps // count) == 0:
            snapshots |= {(std, step): kept[std].average[0].double() for std in STDS}
    ends = torch.arange(1, steps + 1, dtype=torch.float64)
    for std in lengths:
        power = gamma_of(std) + 1
        share = (ends / steps) ** power - ((ends - 1) / steps) ** power  # the integral of the profile over a step
        exact = torch.einsum("s,sij->ij", share, torch.stack(history))
        assert decay_at(steps, power - 1) == pytest.approx(1 - share[-1].item())
        torch.testing.assert_close(kept[std].average[0].double(), exact, rtol=1e-5, atol=1e-4)
        fit = fit_profile(std, list(snapshots), steps)
        made = sum(weight * value for weight, value in zip(fit.weights, snapshots.values()))
        wandered = torch.stack(history).std()
        assert (made - exact).square().mean().sqrt() < fit.error / 10 * wandered  # a tenth and less was measured
        assert fit.error < {16: 0.04, 64: 0.003}[count]
