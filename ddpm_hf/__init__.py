"""Denoising Diffusion Probabilistic Models (Ho et al. 2020, arXiv 2006.11239) for Hugging Face diffusers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
    from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler, DDPMLinearSchedulerOutput
    from ddpm_hf.unet_ddpm import DDPMUNetModel, DDPMUNetOutput

__version__ = "0.1.0"
__all__ = [
    "DDPMLinearScheduler",
    "DDPMLinearSchedulerOutput",
    "DDPMPipelineCustom",
    "DDPMUNetModel",
    "DDPMUNetOutput",
]

# The classes need torch and diffusers, which take seconds to import. So each is imported when it is first asked for.
_HOMES = {
    "DDPMLinearScheduler": "scheduling_ddpm_linear",
    "DDPMLinearSchedulerOutput": "scheduling_ddpm_linear",
    "DDPMPipelineCustom": "pipeline_ddpm_custom",
    "DDPMUNetModel": "unet_ddpm",
    "DDPMUNetOutput": "unet_ddpm",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
