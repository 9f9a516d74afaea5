"""The schedulers that `--scheduler` and the demo offer in place of the saved one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FEW_STEPS = 50  # for DDPM


def ends_below_zero(T: int, steps: int) -> bool:
    """Return whether diffusers, by rounding, adds a timestep of -1 to so many "trailing" ones; first to 61 of 1,000."""
    return math.ceil(T / (T / steps)) != steps


@dataclass(frozen=True)
class Offer:
    """A scheduler, and how it draws well.

    Args:
        kind (`str`): Its class in diffusers; DDPMLinearScheduler is this package's.
        name (`str`): Its name in the literature, for the demo.
        steps (`int`): Denoising steps that suffice, if the model says nothing else.
        fewest (`int`): Fewest steps that it can take.
        settings (`Mapping`): Those over the settings of the model; docs/schedulers.md has the measurements.
        in_whole_steps (`bool`): Whether a step goes down by `T // steps` timesteps, wherever the next one begins.
        takes_x_0 (`bool`): Whether it knows networks that predict x_0, `prediction_type="sample"`.
        takes_zero_snr (`bool`): Whether it knows `rescale_betas_zero_snr`.
    """

    kind: str
    name: str
    steps: int = 20
    fewest: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    in_whole_steps: bool = False
    takes_x_0: bool = True
    takes_zero_snr: bool = True

    def spacing(self, T: int, steps: int) -> str:
        """Return the `timestep_spacing` for so many of T steps.

        The noise begins at T with "trailing" timesteps. With "leading" ones, many steps of a DPM-Solver or UniPC would
        all begin below. "trailing" timesteps are wrong if they [`ends_below_zero`]. If they are no whole number apart,
        they do not fit a scheduler `in_whole_steps`.
        """
        if self.in_whole_steps:
            return "leading" if T % steps else "trailing"
        return "linspace" if ends_below_zero(T, steps) else "trailing"


_ORDER_2 = {"solver_order": 2}  # the default of diffusers; the model may have been saved with another
SCHEDULERS = {
    "ddpm": Offer("DDPMLinearScheduler", "DDPM", 100),  # as the model draws without --scheduler
    "ddim": Offer("DDIMScheduler", "DDIM", 50, in_whole_steps=True),
    "dpmsolver++": Offer(
        "DPMSolverMultistepScheduler", "DPM-Solver++", settings={"algorithm_type": "dpmsolver++", "solver_order": 3}
    ),
    "sde-dpmsolver++": Offer(
        "DPMSolverMultistepScheduler",
        "DPM-Solver++, stochastic",
        settings={**_ORDER_2, "algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": Offer("UniPCMultistepScheduler", "UniPC", settings=_ORDER_2),
    "euler": Offer("EulerDiscreteScheduler", "Euler"),
    "euler_a": Offer("EulerAncestralDiscreteScheduler", "Euler ancestral", takes_x_0=False),
    "heun": Offer("HeunDiscreteScheduler", "Heun", takes_zero_snr=False),
    "pndm": Offer("PNDMScheduler", "PNDM", 50, fewest=4, in_whole_steps=True, takes_x_0=False, takes_zero_snr=False),
}
