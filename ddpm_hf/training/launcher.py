"""Start accelerate, as the options and its launcher or configuration say, and end it."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from ddpm_hf.config import TrainingConfig
from ddpm_hf.hardware import keep_freed_memory
from ddpm_hf.precision import check_mixed_precision, choose_mixed_precision, contradiction
from ddpm_hf.processes import this_process, use_all_cores
from ddpm_hf.training.sharding import check_sharding
from ddpm_hf.training.state import RunState
from ddpm_hf.training.trackers import tracking_options


def start_accelerator(config: TrainingConfig) -> Accelerator:
    """Return the accelerator of a run; `config.mixed_precision` is decided here, if it is "auto".

    Raises:
        ValueError: If accelerate is configured for something unsupported, if the device cannot train in the precision,
            or if the logger is not installed.
    """
    device = this_process().device
    use_all_cores()
    keep_freed_memory()
    torch.backends.cudnn.deterministic = True  # else float32 gradients are summed in another order each time
    config.mixed_precision = choose_mixed_precision(config.mixed_precision)
    check_device(device)
    check_mixed_precision(config.mixed_precision, device, trains=True)
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.gradient_accumulation_steps),
            **tracking_options(config),
        )
    except ValueError as error:
        if "already been initialized" not in str(error):
            raise
        raise ValueError(
            f"--mixed_precision {config.mixed_precision}: this process has used accelerate with another precision, and "
            "cannot change it; start a new one. In a notebook, restart the kernel."
        ) from error
    check_sharding(accelerator)
    return accelerator


def check_device(device: torch.device):
    """Raise a ValueError if PyTorch cannot seed random numbers on this device, as on a TPU."""
    try:
        torch.Generator(device)
    except RuntimeError:
        raise ValueError(
            f"accelerate chose the device {device}, where PyTorch has no random generators to seed. Set "
            "ACCELERATE_USE_CPU=true to train on the CPU."
        ) from None


def check_launcher(config: TrainingConfig) -> list[str]:
    """Compare the options with those of accelerate's launcher or configuration.

    Returns:
        `list[str]`: Notes for the user. Where the two contradict each other, the options of train_ddpm.py are used.

    Raises:
        ValueError: If accelerate is configured for something unsupported.
    """
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise ValueError(
            f"accelerate asks for the dynamo backend {backend}; choose none there, and pass --compile to train_ddpm.py."
        )
    downcast = os.environ.get("ACCELERATE_DOWNCAST_BF16", "no").lower()
    if downcast not in ("", "no", "false", "0"):
        raise ValueError(
            f"ACCELERATE_DOWNCAST_BF16 is {downcast}, which is for TPUs; unset it, and choose --mixed_precision bf16."
        )
    # On CPUs, `accelerate launch --num_processes 2` sets MASTER_PORT but starts one process.
    is_alone = "MASTER_PORT" in os.environ and "RANK" not in os.environ and not torch.accelerator.is_available()
    hint = "This is one process; for several on CPUs: accelerate launch --multi_gpu --num_processes N ..."
    notes = [hint] * is_alone + (contradiction(config.mixed_precision) if config.mixed_precision != "auto" else [])
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", str(config.gradient_accumulation_steps))
    if steps != str(config.gradient_accumulation_steps):
        used = f"--gradient_accumulation_steps {config.gradient_accumulation_steps}"
        notes.append(f"{used} is used; accelerate was told {steps}.")
    return notes


def end_processes(accelerator: Accelerator, state: RunState):
    """Let the processes end together."""
    accelerator.wait_for_everyone()
    # The wrapped model has to go before the group of processes: freed after it, it can wait for ever (PyTorch 2.13).
    del state.model
    accelerator.free_memory()
    accelerator.end_training()
