"""The schedulers that `--scheduler` and the demo offer in place of the saved one."""

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
