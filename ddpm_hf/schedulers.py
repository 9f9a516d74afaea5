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
