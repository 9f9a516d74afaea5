"""The hardware of a run: its name, its memory, and networks compiled for it."""

import ctypes
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
            hardware = f"{processor_name()}, CPU threads: {torch.get_num_threads()}"
        case kind:
            hardware = f"{processor_name()}, GPU ({kind})"
    versions = {"ddpm_hf": ddpm_hf.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
    return {"hardware": hardware, "processes": accelerator.num_processes, "versions": versions}


def processor_name() -> str:
    """Return the name of the processor, as far as the system tells it."""
    if platform.system() == "Darwin":
        with suppress(OSError, subprocess.CalledProcessError):
            return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    with suppress(OSError, StopIteration):  # this file exists on Linux, and has the name on x86 only
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
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


def compile_network(unet: ModelMixin, device: torch.device, processes: int = 1):
    """Compile a network in place, so the names of the weights stay. The first step then takes a minute or more.

    On one GPU it is compiled as a whole, since what lies between the blocks is then fused, too. Several processes send
    the gradients of a block while those of the next one are computed, so they compile each block by itself. CPUs do the
    same, since the whole takes longer to compile there and is no faster.
    """
    torch._dynamo.config.recompile_limit = 128  # each shape of a batch or of a block is compiled by itself
    if device.type == "cpu" or processes > 1:
        unet.compile_repeated_blocks(dynamic=False)
    else:
        unet.compile(dynamic=False)


@contextmanager
def called_as_it_is(unet: ModelMixin) -> Iterator[None]:
    """Call a network without its compiled form while the context is open.

    Batches of samples and of held-out images have other shapes, and the whole would be compiled for each of them.
    """
    compiled, unet._compiled_call_impl = unet._compiled_call_impl, None
    try:
        yield
    finally:
        unet._compiled_call_impl = compiled
