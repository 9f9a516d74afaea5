"""The precision that a network computes in."""

import os
from typing import Literal

import torch
from accelerate.utils import parse_flag_from_env


def choose_mixed_precision(choice: Literal["auto", "no", "bf16", "fp16"]) -> Literal["no", "bf16", "fp16"]:
    """Return the precision of a run, with `"auto"` resolved.

    `"auto"` is the setting of accelerate, if it has one. Otherwise it is bf16 on hardware that computes in it: newer
    GPUs of NVIDIA, AMD and Intel, and CPUs with AMX or AVX512-BF16. It is no on all other hardware.

    Raises:
        ValueError: If accelerate is set to a precision that is not supported here.
    """
    if choice != "auto":
        return choice
    match wished_precision():
        case "bf16" | "fp16" as wish:
            return wish
        case str(wish):
            raise ValueError(
                f"accelerate asks for mixed precision {wish}; expected no, bf16 or fp16. Choose one of them there, or "
                "with --mixed_precision here."
            )
    on_gpu = torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    device = torch.accelerator.current_accelerator() if on_gpu else None
    return "bf16" if computes_in_bf16(device or torch.device("cpu")) else "no"


def precision_to_draw_in(choice: Literal["auto", "no", "bf16", "fp16"] | None) -> Literal["no", "bf16", "fp16"]:
    """Return the precision of samples: the choice, or the setting of accelerate, or no.

    Raises:
        ValueError: If accelerate is set to a precision that is not supported here.
    """
    if choice is None:
        choice = "auto" if wished_precision() else "no"
    return choose_mixed_precision(choice)


def wished_precision() -> str | None:
    """Return the precision that `accelerate launch` or its configuration asks for; its default, `no`, is no wish."""
    wish = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    return None if wish == "no" else wish


def contradiction(precision: str) -> list[str]:
    """Return a note if accelerate was told another precision than this one, which is used; else nothing."""
    wish = wished_precision()
    told = wish is not None and wish != precision
    return [f"--mixed_precision {precision} is used; accelerate was told {wish}."] * told


def check_mixed_precision(precision: str, device: torch.device, trains: bool = False):
    """Raise a ValueError if a network on this device cannot compute in a precision, or not train in it."""
    advice = "choose another --mixed_precision, here or of accelerate; no works everywhere."
    if precision == "fp16" and trains and device.type == "cpu":
        raise ValueError(f"training with mixed precision fp16 needs a GPU; {advice}")
    if precision == "bf16" and device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise ValueError(f"mixed precision bf16 on an Apple GPU needs macOS 14; {advice}")
    if precision != "no" and not torch.amp.is_autocast_available(device.type):
        raise ValueError(f"PyTorch has no mixed precision on the device {device}; {advice}")


def autocast(device: torch.device, mixed_precision: str) -> torch.autocast:
    """Return a context in which networks on this device compute in "bf16", "fp16" or "no" (their own type)."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}[mixed_precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether a device is known to compute in bf16, and not only to emulate it."""
    match device.type:
        case "cuda":
            return torch.cuda.is_bf16_supported(False)
        case "xpu":
            return torch.xpu.is_bf16_supported(False)
        case "cpu":
            return torch.cpu._is_avx512_bf16_supported()
    return False  # an Apple GPU does not tell
