"""Schedulers that draw in place of the one of the training, with its betas."""

from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import SchedulerMixin

from ddpm_hf.schedulers import SCHEDULERS
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler


def make_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """Make a scheduler with the betas and the prediction type of another one.

    Args:
        name (`str`): A key of `SCHEDULERS`.
        config (`Mapping`): The configuration of the other scheduler.
    """
    offer = SCHEDULERS[name]
    if name == "ddpm":
        return DDPMLinearScheduler.from_config(config)
    settings = {**config, **betas_for_others(config), **offer.settings}
    # A DPM-Solver would take a learned variance to follow three channels.
    if offer.kind == "DPMSolverMultistepScheduler" and settings.get("variance_type") in ("learned", "learned_range"):
        settings["variance_type"] = None
    return getattr(diffusers, offer.kind).from_config(settings)


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
