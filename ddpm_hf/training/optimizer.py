"""The optimizer and the course of the learning rate."""

import torch
from diffusers.optimization import get_scheduler
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from ddpm_hf.config import TrainingConfig
from ddpm_hf.training.muon import Muon


def has_fused_adam(device: torch.device) -> bool:
    """Return whether PyTorch has Adam's fused form for a device. It is the fastest on a CPU and on a GPU."""
    return device.type in _get_fused_kernels_supported_devices()


def skips_by_itself(device: torch.device) -> bool:
    """Return whether the optimizer skips an update if its flag `found_inf`, on the device, says so.

    Only the fused form knows the flag. On Apple's GPUs PyTorch 2.13 ignores it, and 2.6 refuses it. On a CPU it is not
    needed: there the host knows the gradient already.
    """
    return has_fused_adam(device) and device.type not in ("cpu", "mps")


def make_optimizer(unet: torch.nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    """Make the optimizer of the parameters that learn, for a network that is or will be on this device."""
    options = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
        "fused": has_fused_adam(device),
    }
    if config.optimizer == "muon":
        return Muon(unet, **options)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind([p for p in unet.parameters() if p.requires_grad], **options)


def make_lr_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig):
    """Make the course of the learning rate. It counts optimizer steps, not micro-batches."""
    warmup, total = config.lr_warmup_steps, config.total_steps
    return get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=total)
