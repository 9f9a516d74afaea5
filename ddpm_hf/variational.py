"""Parts of the variational bound that its evaluation and the training of a variance share (arXiv 2006.11239, eq. 8)."""

import torch

from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler, between_log_variances


def log_variances(
    scheduler: DDPMLinearScheduler, t: torch.Tensor, predicted_variance: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return log sigma_t^2 of the model's reverse steps.

    At t = 0, sampling adds no noise, and the decoder needs a variance above zero. In place of beta_tilde, which is zero
    there, it is beta_tilde of t = 1, as in the code of Ho et al. ("posterior_log_variance_clipped").

    Args:
        scheduler ([`DDPMLinearScheduler`]): The scheduler.
        t (`torch.Tensor`, `(batch, 1, 1, 1)`): Timesteps in [0, T).
        predicted_variance (`torch.Tensor`, `(batch, channels, height, width)`, *optional*): The network's, if it is
            learned.
        dtype (`torch.dtype`): Of the computation, float64 or float32.

    Returns:
        `torch.Tensor`: Of the shape of t, broadcast with `predicted_variance`.

    Raises:
        ValueError: If the type of the variance is unknown.
    """
    kind = scheduler.config.variance_type
    if kind == "learned":
        return scheduler.variance(t, predicted_variance, dtype=dtype).clamp(min=1e-20).log()
    small = scheduler.variance(t.clamp(min=1), variance_type="fixed_small", dtype=dtype).log()
    if kind == "learned_range":
        assert predicted_variance is not None
        large = scheduler.variance(t, variance_type="fixed_large", dtype=dtype).log()
        return between_log_variances(predicted_variance, small, large)
    return torch.where(t == 0, small, scheduler.variance(t, dtype=dtype).log())


def normal_kl(
    mean_1: torch.Tensor, log_variance_1: torch.Tensor, mean_2: torch.Tensor, log_variance_2: torch.Tensor
) -> torch.Tensor:
    """Return KL(N(mean_1, variance_1) || N(mean_2, variance_2)) elementwise, in nats."""
    difference = log_variance_2 - log_variance_1
    return 0.5 * (difference + (-difference).exp() - 1 + (mean_1 - mean_2) ** 2 * (-log_variance_2).exp())
