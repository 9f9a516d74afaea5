"""The hardware of a run: its name, its memory, and networks compiled for it."""

import ctypes
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator
from diffusers import ModelMixin

import ddpm_hf


def describe_machine(accelerator: Accelerator) -> dict:
    """Return the hardware, the number of processes and the versions of a run, for run.json."""
    match accelerator.device.type:
        case "cuda":
            hardware = torch.cuda.get_device_name(accelerator.device)
        case "xpu":
            hardware = torch.xpu.get_device_name(accelerator.device)
        case "cpu":
            hardware = f"{_processor_name()}, CPU threads: {torch.get_num_threads()}"
        case kind:
            hardware = f"{_processor_name()}, GPU ({kind})"
    versions = {"ddpm_hf": ddpm_hf.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
    return {"hardware": hardware, "processes": accelerator.num_processes, "versions": versions}


def _processor_name() -> str:
    if platform.system() == "Darwin":
        with suppress(OSError, subprocess.CalledProcessError):
            return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
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


def compile_blocks(unet: ModelMixin):
    """Compile the repeated blocks in place, so the names of the weights stay. The first step then takes a minute."""
    torch._dynamo.config.recompile_limit = 128  # blocks of one class differ in shape, and each shape is compiled
    unet.compile_repeated_blocks(dynamic=False)
