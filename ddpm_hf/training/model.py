"""The network and the scheduler that the options of a run describe."""

from copy import deepcopy

import torch
from diffusers import DDIMScheduler, SchedulerMixin

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.augment import NUM_LABELS
from ddpm_hf.other_schedulers import betas_for_others, make_scheduler
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler
from ddpm_hf.unet_ddpm import DDPMUNetModel


def make_model(config: TrainingConfig, channels: int) -> tuple[DDPMUNetModel, DDPMLinearScheduler]:
    """Make the network, with initial weights from the seed, and the scheduler that the options describe."""
    size = config.size if isinstance(config.resolution, str) else config.resolution
    torch.manual_seed(config.seed)
    outputs = channels * (1 + (config.variance_type == "learned_range"))  # a prediction, and perhaps a variance
    unet = DDPMUNetModel(**config.model, sample_size=size, in_channels=channels, out_channels=outputs)
    if config.augment:
        unet.add_augment_embedding(NUM_LABELS)
    options = {
        "num_train_timesteps": config.ddpm_num_steps,
        "beta_schedule": config.ddpm_beta_schedule,
        "prediction_type": config.prediction_type,
        "variance_type": config.variance_type,
        "clip_sample": config.clip_sample,
    }
    # The settings that are no options, such as `beta_end`, are those of the base.
    return unet, DDPMLinearScheduler(**{**config.base.get("scheduler", {}), **options})


def how_to_draw(
    config: TrainingConfig, scheduler: DDPMLinearScheduler
) -> tuple[SchedulerMixin, int, dict[str, float | None] | None]:
    """Return the other arguments of a run's pipeline, beside the network: scheduler, steps, and about a student.

    A student takes DDIM steps. Its predictions of x_0 are neither clipped nor thresholded, since those that it learned
    from may leave [-1, 1].

    Args:
        config ([`TrainingConfig`]): The options.
        scheduler ([`DDPMLinearScheduler`]): Of the training.
    """
    steps = config.ddpm_num_inference_steps
    if config.distill_steps is None:
        # A copy, since drawing sets its timesteps, and the bound of a learned variance needs all.
        own = deepcopy(scheduler)
        is_own = config.scheduler == "ddpm"
        return own if is_own else make_scheduler(config.scheduler, own.config, steps), steps, None
    of_student = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True, "thresholding": False}
    about = {"steps": config.distill_steps, "guidance_scale": config.distill_guidance_scale}
    settings = {**scheduler.config, **betas_for_others(scheduler.config), **of_student}
    return DDIMScheduler.from_config(settings), config.distill_steps, about
