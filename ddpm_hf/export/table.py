"""The reverse process as a table: the numbers of each denoising step, for programs that know no scheduler.

A step of DDPM (arXiv 2006.11239, Algorithm 2) or of DDIM (arXiv 2010.02502, eq. 12 with sigma = 0) is

    x_0     = clip(x_0_from_sample x_t + x_0_from_output output)
    x_{t-1} = next_from_x_0 x_0 + next_from_sample x_t + next_from_output output + std z,

where `output` is what the network predicts at x_t and t, and z is noise. A learned variance replaces `std` by
`exp((low + (v + 1) / 2 (high - low)) / 2)`, where v are further channels of the network's output.
"""

import copy

import torch
from diffusers import DDIMScheduler, SchedulerMixin

from ddpm_hf.pipeline_ddpm_custom import check_timesteps
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler


def check_exportable(scheduler: SchedulerMixin):
    """Raise a ValueError if the steps of a scheduler are no such table.

    Args:
        scheduler ([`DDPMLinearScheduler`] or another of diffusers): The scheduler.
    """
    if not isinstance(scheduler, (DDPMLinearScheduler, DDIMScheduler)):
        raise ValueError(f"{type(scheduler).__name__} cannot be exported: pass --scheduler ddim, or ddpm.")
    if scheduler.config.thresholding:
        raise ValueError("A scheduler with `thresholding` cannot be exported, since it sorts the pixels.")
    if isinstance(scheduler, DDPMLinearScheduler) and scheduler.config.variance_type == "learned":
        raise ValueError("`variance_type='learned'` cannot be exported with DDPM: pass --scheduler ddim.")


def table_of(scheduler: SchedulerMixin, steps: int) -> dict[str, list]:
    """Return the table of a scheduler.

    Args:
        scheduler ([`DDPMLinearScheduler`] or [`~diffusers.DDIMScheduler`]): Its timesteps are set.
        steps (`int`): Denoising steps.

    Returns:
        `dict`: `"timesteps"`; the columns of the equations above, without the ones that do not apply; and
        `"alpha_next"` and `"sigma_next"`, with which `alpha x_0 + sigma eps` is as noisy as x_{t-1}. Each is a list
        with a number for each step.

    Raises:
        ValueError: See [`check_exportable`].
    """
    check_exportable(scheduler)
    scheduler.set_timesteps(steps)
    check_timesteps(scheduler, steps)
    columns = _of_ddim(scheduler) if isinstance(scheduler, DDIMScheduler) else _of_ddpm(scheduler)
    numbers = {name: column.flatten().tolist() for name, column in columns.items()}
    return {"timesteps": scheduler.timesteps.tolist(), **numbers}


def clip_of(scheduler: SchedulerMixin) -> float | None:
    """Return the bound of the clipped x_0, or None if it is not clipped."""
    return scheduler.config.clip_sample_range if scheduler.config.clip_sample else None


def _of_ddpm(scheduler: DDPMLinearScheduler) -> dict[str, torch.Tensor]:
    t = scheduler.timesteps
    one, zero = torch.ones(len(t), 1), torch.zeros(len(t), 1)
    columns = {
        "alpha_next": scheduler.add_noise(one, zero, scheduler.previous_timestep(t)),
        "sigma_next": scheduler.add_noise(zero, one, scheduler.previous_timestep(t)),
        "x_0_from_sample": scheduler.predict_x_0(zero, t, one),
        "x_0_from_output": scheduler.predict_x_0(one, t, zero),
        "next_from_x_0": scheduler.posterior_mean_variance(one, zero, t)[0],
        "next_from_sample": scheduler.posterior_mean_variance(zero, one, t)[0],
        "next_from_output": zero,
    }
    if scheduler.config.variance_type != "learned_range":
        std = scheduler.variance(t).clamp(min=1e-20).sqrt()
        return columns | {"std": std.where(t > 0, 0)}  # Algorithm 2 adds no noise at the last step
    bounds = {"log_variance_low": "fixed_small", "log_variance_high": "fixed_large"}
    return columns | {name: scheduler.variance(t, variance_type=kind).log() for name, kind in bounds.items()}


def _of_ddim(scheduler: DDIMScheduler) -> dict[str, torch.Tensor]:
    # A step without clipping is linear, so it is known from what it makes of (1, 0) and of (0, 1).
    linear = copy.deepcopy(scheduler)
    linear.register_to_config(clip_sample=False)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    of_sample = [linear.step(zero, t, one) for t in linear.timesteps]
    of_output = [linear.step(one, t, zero) for t in linear.timesteps]
    before = linear.timesteps - len(linear.alphas_cumprod) // len(linear.timesteps)
    alpha_bar = linear.alphas_cumprod.double()[before.clamp(min=0)].where(before >= 0, linear.final_alpha_cumprod)
    from_sample, from_output = (
        torch.cat([each.pred_original_sample for each in steps]) for steps in (of_sample, of_output)
    )
    next_of_sample, next_of_output = (
        torch.cat([each.prev_sample for each in steps]) for steps in (of_sample, of_output)
    )
    return {
        "alpha_next": alpha_bar.sqrt(),
        "sigma_next": (1 - alpha_bar).sqrt(),
        "x_0_from_sample": from_sample,
        "x_0_from_output": from_output,
        "next_from_x_0": alpha_bar.sqrt(),
        "next_from_sample": next_of_sample - alpha_bar.sqrt() * from_sample,
        "next_from_output": next_of_output - alpha_bar.sqrt() * from_output,
        "std": torch.zeros_like(alpha_bar),
    }
