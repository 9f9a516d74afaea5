"""The batches of a run."""

import torch

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.batches import BatchPlan, ShuffledImages
from ddpm_hf.images.streaming import StreamedImages
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler
from ddpm_hf.training.objective import timestep_weights
from ddpm_hf.unet_ddpm import DDPMUNetModel


def make_plan(
    images: ShuffledImages | StreamedImages,
    unet: DDPMUNetModel,
    scheduler: DDPMLinearScheduler,
    config: TrainingConfig,
    device: torch.device,
) -> BatchPlan:
    """The batches that the options describe, with labels if the network takes them."""
    often, names = timestep_weights(scheduler, config), unet.config.class_names
    options = (config.train_batch_size, often, config.seed, config.random_flip, device)
    return BatchPlan(images, *options, num_classes=names and len(names), cond_dropout=config.cond_dropout)
