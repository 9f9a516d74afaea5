"""The schedulers that `--scheduler` and the demo offer in place of the saved one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FEW_STEPS = 50  # for DDPM


@dataclass(frozen=True)
class Offer:
    """A scheduler, and how it draws well.

    Args:
        kind (`str`): Its class in diffusers; DDPMLinearScheduler is this package's.
        name (`str`): Its name in the literature, for the demo.
        steps (`int`): Denoising steps that suffice, if the model says nothing else.
        fewest (`int`): Fewest steps that it can take.
        settings (`Mapping`): Those over the settings of the model; docs/schedulers.md has the measurements.
    """

    kind: str
    name: str
    steps: int = 20
    fewest: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


# The noise begins at T with trailing timesteps. With others, many steps of a DPM-Solver or UniPC would all begin below.
_TRAILING = {"timestep_spacing": "trailing"}
_ORDER_2 = {**_TRAILING, "solver_order": 2}  # the default of diffusers; the model may have been saved with another
SCHEDULERS = {
    "ddpm": Offer("DDPMLinearScheduler", "DDPM", 100),  # as the model draws without --scheduler
    "ddim": Offer("DDIMScheduler", "DDIM", 50, settings=_TRAILING),
    "dpmsolver++": Offer(
        "DPMSolverMultistepScheduler",
        "DPM-Solver++",
        settings={**_TRAILING, "algorithm_type": "dpmsolver++", "solver_order": 3},
    ),
    "sde-dpmsolver++": Offer(
        "DPMSolverMultistepScheduler",
        "DPM-Solver++, stochastic",
        settings={**_ORDER_2, "algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": Offer("UniPCMultistepScheduler", "UniPC", settings=_ORDER_2),
    "euler": Offer("EulerDiscreteScheduler", "Euler", settings=_TRAILING),
    "euler_a": Offer("EulerAncestralDiscreteScheduler", "Euler ancestral", settings=_TRAILING),
    "heun": Offer("HeunDiscreteScheduler", "Heun", settings=_TRAILING),
    "pndm": Offer("PNDMScheduler", "PNDM", 50, fewest=4, settings=_TRAILING),
}
