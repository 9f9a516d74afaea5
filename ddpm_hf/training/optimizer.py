"""The optimizer and the course of the learning rate."""

import torch
from diffusers.optimization import get_scheduler

from ddpm_hf.config import TrainingConfig
from ddpm_hf.training.muon import Muon


def make_optimizer(unet: torch.nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimizer of the parameters that learn. Adam's fused form is the fastest on a CPU and on a GPU."""
    options = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
        "fused": True,
    }
    if config.optimizer == "muon":
        return Muon(unet, **options)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind([p for p in unet.parameters() if p.requires_grad], **options)


def make_lr_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig):
    """Make the course of the learning rate. It counts optimizer steps, not micro-batches."""
    warmup, total = config.lr_warmup_steps, config.total_steps
    return get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=total)
