"""What `accelerate launch` or its configuration asks for."""

import os

import torch

from ddpm_hf.config import TrainingConfig
from ddpm_hf.precision import wished_precision


def check_launcher(config: TrainingConfig) -> list[str]:
    """Compare the options with what accelerate was told, by its launcher or its configuration.

    Returns:
        `list[str]`: What the user should know: where they contradict each other, the options of train_ddpm.py are used.

    Raises:
        ValueError: If accelerate was told something that is not supported here.
    """
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise ValueError(
            f"accelerate asks for the dynamo backend {backend}; choose none there, and pass --compile to train_ddpm.py."
        )
    # On CPUs, `accelerate launch --num_processes 2` sets this up and starts one process.
    is_alone = "MASTER_PORT" in os.environ and "RANK" not in os.environ and not torch.accelerator.is_available()
    hint = "This is one process; for several on CPUs: accelerate launch --multi_gpu --num_processes N ..."
    told = {
        "mixed_precision": wished_precision() if config.mixed_precision != "auto" else None,
        "gradient_accumulation_steps": os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"),
    }
    return [hint] * is_alone + [
        f"--{name} {getattr(config, name)} is used; accelerate was told {wish}."
        for name, wish in told.items()
        if wish is not None and wish != str(getattr(config, name))
    ]
