"""The schedulers that `--scheduler` and the demo offer in place of the saved one."""

from typing import Any

# The classes of diffusers; DDPMLinearScheduler is this package's.
SCHEDULERS = {
    "ddpm": "DDPMLinearScheduler",
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",
}
# Settings with which each draws best in few steps, over those of the model; docs/schedulers.md has the measurements.
FEW_STEPS = 50
SETTINGS: dict[str, dict[str, Any]] = {
    "ddpm": {},
    "ddim": {"timestep_spacing": "trailing"},
    "dpmsolver++": {"timestep_spacing": "trailing", "solver_order": 3},
    "unipc": {"timestep_spacing": "trailing"},
    "euler": {"timestep_spacing": "trailing"},
    "euler_a": {"timestep_spacing": "trailing"},
    "heun": {"timestep_spacing": "trailing"},
    "pndm": {"timestep_spacing": "trailing"},
}
# For the demo: the name in the literature, and denoising steps that suffice (docs/schedulers.md has measurements). The
# steps of DDPM depend on the model.
NAMES_AND_STEPS: dict[str, tuple[str, int | None]] = {
    "ddpm": ("DDPM", None),
    "ddim": ("DDIM", 50),
    "dpmsolver++": ("DPM-Solver++", 20),
    "unipc": ("UniPC", 20),
    "euler": ("Euler", 20),
    "euler_a": ("Euler ancestral", 20),
    "heun": ("Heun", 20),
    "pndm": ("PNDM", 20),
}
