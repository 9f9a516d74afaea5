"""The precision that a network computes in."""

import os
from typing import Literal

import torch
from accelerate.utils import parse_flag_from_env


def choose_mixed_precision(choice: Literal["auto", "no", "bf16", "fp16"]) -> Literal["no", "bf16", "fp16"]:
    """Return the precision of a run, with `"auto"` resolved.

    `"auto"` is the setting of accelerate, if it has one. Otherwise it is bf16 on hardware that computes in it: newer
    GPUs, and CPUs with AMX or AVX512-BF16. It is no on all other hardware.

    Raises:
        ValueError: If accelerate is set to a precision that is not supported here.
    """
    if choice != "auto":
        return choice
    match wished_precision():
        case "bf16" | "fp16" as wish:
            return wish
        case str(wish):
            raise ValueError(f"accelerate asks for mixed precision {wish}; expected no, bf16 or fp16.")
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    fast = torch.cuda.is_bf16_supported(False) if on_gpu else torch.cpu._is_avx512_bf16_supported()
    return "bf16" if fast else "no"


def wished_precision() -> str | None:
    """Return the precision that `accelerate launch` or its configuration asks for; its default, `no`, is no wish."""
    wish = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    return None if wish == "no" else wish


def autocast(device: torch.device, mixed_precision: str) -> torch.autocast:
    """Return a context in which networks on this device compute in "bf16", "fp16" or "no" (their own type)."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}[mixed_precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
