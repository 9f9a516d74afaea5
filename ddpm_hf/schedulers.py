"""The schedulers that `--scheduler` and the demo offer in place of the saved one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FEW_STEPS = 50


@dataclass(frozen=True)
class Offer:
    """A scheduler, and how it draws well.

    Args:
        kind (`str`): Its class in diffusers; DDPMLinearScheduler is this package's.
        name (`str`): Its name in the literature, for the demo.
        steps (`int`): Denoising steps that suffice, if the model says nothing else.
        always (`Mapping`): Settings that make it this scheduler.
        fewest (`int`): Fewest steps that it can take.
        in_few_steps (`Mapping`): Settings over those of the model, for [`FEW_STEPS`] and fewer; docs/schedulers.md has
            the measurements.
    """

    kind: str
    name: str
    steps: int = 20
    fewest: int = 1
    always: Mapping[str, Any] = field(default_factory=dict)
    in_few_steps: Mapping[str, Any] = field(default_factory=lambda: {"timestep_spacing": "trailing"})

    def settings(self, steps: int | None) -> dict[str, Any]:
        """Return the settings over those of the model, for a number of denoising steps, if that is known."""
        return {**self.always, **(self.in_few_steps if steps and steps <= FEW_STEPS else {})}


SCHEDULERS = {
    "ddpm": Offer("DDPMLinearScheduler", "DDPM", 100, in_few_steps={}),  # as the model draws without --scheduler
    "ddim": Offer("DDIMScheduler", "DDIM", 50),
    "dpmsolver++": Offer(
        "DPMSolverMultistepScheduler",
        "DPM-Solver++",
        always={"algorithm_type": "dpmsolver++"},
        in_few_steps={"timestep_spacing": "trailing", "solver_order": 3},
    ),
    "sde-dpmsolver++": Offer(
        "DPMSolverMultistepScheduler",
        "DPM-Solver++, stochastic",
        always={"algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": Offer("UniPCMultistepScheduler", "UniPC"),
    "euler": Offer("EulerDiscreteScheduler", "Euler"),
    "euler_a": Offer("EulerAncestralDiscreteScheduler", "Euler ancestral"),
    "heun": Offer("HeunDiscreteScheduler", "Heun"),
    "pndm": Offer("PNDMScheduler", "PNDM", 50, fewest=4),
}
