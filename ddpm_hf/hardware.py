"""The hardware of a run: its name, its memory, and networks compiled for it."""

import ctypes
import platform
from contextlib import suppress
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator
from diffusers import ModelMixin

import ddpm_hf


def describe_machine(accelerator: Accelerator) -> dict:
    """Return the hardware, the number of processes and the versions of a run, for run.json."""
    if accelerator.device.type == "cuda":
        hardware = torch.cuda.get_device_name(accelerator.device)
    else:
        hardware = f"{_processor_name()}, CPU threads: {torch.get_num_threads()}"
    versions = {"ddpm_hf": ddpm_hf.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
    return {"hardware": hardware, "processes": accelerator.num_processes, "versions": versions}


def _processor_name() -> str:
    with suppress(OSError, StopIteration):  # this file exists on Linux, and has the name on x86 only
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def keep_freed_memory():
    """Tell glibc to keep freed memory for the next step. Training on a CPU is then 1.2 times as fast."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of the machine or of a device does not suffice."""
    told = ("DefaultCPUAllocator", "out of memory")  # by PyTorch on CPUs, and on Apple's and Intel's GPUs
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in told)


def compile_blocks(unet: ModelMixin):
    """Compile the repeated blocks in place, so the names of the weights stay. The first step then takes a minute."""
    torch._dynamo.config.recompile_limit = 128  # blocks of one class differ in shape, and each shape is compiled
    unet.compile_repeated_blocks(dynamic=False)
