"""Schedulers that draw in place of the one of the training, with its betas."""

from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, SchedulerMixin

from ddpm_hf.schedulers import SCHEDULERS, Offer
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler


def make_scheduler(name: str, config: Mapping[str, Any], steps: int) -> SchedulerMixin:
    """Make a scheduler with the betas and the prediction type of another one.

    Args:
        name (`str`): A key of `SCHEDULERS`.
        config (`Mapping`): The configuration of the other scheduler, see [`settings_of`].
        steps (`int`): Denoising steps, which decide about the spacing of the timesteps.

    Raises:
        ValueError: If it does not know such betas, or such a prediction.
    """
    offer = SCHEDULERS[name]
    _check_fit(offer, config)
    # Each is a keyword argument, since diffusers takes no settings of `config` that were defaults there.
    if name == "ddpm":
        variance = {key: config[key] for key in ("variance_type",) if key in config}
        return DDPMLinearScheduler.from_config(config, **variance, **spacing_for_ddpm(config))
    spacing = {"timestep_spacing": offer.spacing(config["num_train_timesteps"], steps)}
    settings = {**betas_for_others(config), **offer.settings, **spacing}
    # A DPM-Solver would take a learned variance to follow three channels.
    if offer.kind == "DPMSolverMultistepScheduler" and config.get("variance_type") in ("learned", "learned_range"):
        settings["variance_type"] = None
    try:
        return getattr(diffusers, offer.kind).from_config(config, **settings)
    except NotImplementedError as error:  # diffusers raises it for an unknown `beta_schedule`
        raise ValueError(str(error)) from error


def settings_of(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """Return the configuration of a pipeline's scheduler, for [`make_scheduler`].

    A scheduler without variances, such as a DPM-Solver, has forgotten that the network learned one.
    """
    settings = {key: value for key, value in pipeline.scheduler.config.items() if value is not None}
    network = pipeline.unet.config
    learns_variance = network.out_channels == 2 * network.in_channels
    return {"variance_type": "learned_range", **settings} if learns_variance else settings


def spacing_for_ddpm(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the setting with which a DDPM ends at t = 0, where it adds no noise, as Algorithm 2 does.

    The last of "trailing" timesteps, which others leave behind, is above 0. Only `fixed_small` has no variance there.
    """
    ends_above = config.get("timestep_spacing") == "trailing"
    is_small = config.get("variance_type", "fixed_small") in ("fixed_small", "fixed_small_log")
    return {"timestep_spacing": "leading"} if ends_above and not is_small else {}


def _check_fit(offer: Offer, config: Mapping[str, Any]):
    if "beta_schedule" not in config:
        raise ValueError(f"the scheduler of the model has no betas, which {offer.name} needs.")
    if config["prediction_type"] == "sample" and not offer.takes_x_0:
        raise ValueError(f"the network predicts x_0 (`sample`), and {offer.name} does not take that.")
    if config.get("rescale_betas_zero_snr") and not offer.takes_zero_snr:
        raise ValueError(f"the model has `rescale_betas_zero_snr`, and {offer.name} does not know it.")


def betas_for_others(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with which other schedulers have these betas, if they know the schedule by numbers only."""
    if config["beta_schedule"] not in ("laplace", "sigmoid"):
        return {}
    return {"beta_schedule": "linear", "trained_betas": DDPMLinearScheduler.from_config(config).betas.tolist()}


def name_of(scheduler: SchedulerMixin) -> str | None:
    """Return the key of a scheduler in `SCHEDULERS`; None if it is not there."""
    for name, offer in SCHEDULERS.items():
        variant = offer.settings.get("algorithm_type")
        if type(scheduler).__name__ == offer.kind and variant in (None, scheduler.config.get("algorithm_type")):
            return name
    return None


def describe_scheduler(scheduler: SchedulerMixin) -> str:
    """Return the class of a scheduler, and what else tells two of them apart."""
    kind = type(scheduler).__name__
    variant = scheduler.config.algorithm_type if kind == "DPMSolverMultistepScheduler" else "dpmsolver++"
    return kind if variant == "dpmsolver++" else f"{kind}, {variant}"
