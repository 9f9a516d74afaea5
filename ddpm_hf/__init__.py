"""Denoising Diffusion Probabilistic Models (Ho et al. 2020, arXiv 2006.11239) for Hugging Face diffusers."""

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
