"""Training in fp16 on a device where accelerate does not offer it."""

import torch

import ddpm_hf.prepare

START = ddpm_hf.prepare.start_accelerator


def started_in_fp16(config, scaler: torch.amp.GradScaler):
    """Start accelerate for a configuration, and let it train in fp16 with this scaler."""
    config.mixed_precision = "no"
    accelerator = START(config)
    config.mixed_precision = accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp, accelerator.scaler = True, scaler
    return accelerator
