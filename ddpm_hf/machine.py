"""What a run asks of the machine: threads, memory, precision, and word of the signals that end it."""

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from diffusers import ModelMixin
from tqdm.auto import tqdm

import ddpm_hf
from ddpm_hf.tokens import one_line


def choose_mixed_precision(choice: str) -> str:
    """Resolve `"auto"`: what accelerate was told; else bf16 on GPUs that compute in it and on CPUs with AMX or
    AVX512-BF16, and no on others.

    Raises:
        ValueError: If accelerate was told something that is not supported here.
    """
    if choice != "auto":
        return choice
    if wish := wished_precision():
        if wish not in ("bf16", "fp16"):
            raise ValueError(f"accelerate asks for mixed precision {wish}; expected no, bf16 or fp16.")
        return wish
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    fast = torch.cuda.is_bf16_supported(False) if on_gpu else torch.cpu._is_avx512_bf16_supported()
    return "bf16" if fast else "no"


def wished_precision() -> str | None:
    """The mixed precision that `accelerate launch` or its configuration asks for; its `no` counts as not set."""
    wish = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    return None if wish == "no" else wish


def autocast(device: torch.device, mixed_precision: str) -> torch.autocast:
    """The context in which networks on this device compute in "bf16", "fp16" or "no" (their own type)."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}[mixed_precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def use_all_cores():
    """Share the cores out over this machine's processes, where `accelerate launch` left each its default, one thread.

    It sets OMP_NUM_THREADS to 1 when nobody says otherwise; any other value is the user's wish.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def join_processes_on_cpus():
    """Let processes on CPUs know of each other, which accelerate does only when it is told to."""
    if "RANK" in os.environ and not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"


def this_process() -> PartialState:
    """Which of the processes this is, and its device."""
    join_processes_on_cpus()
    return PartialState(cpu=bool(parse_flag_from_env("ACCELERATE_USE_CPU")))


def describe_machine(accelerator: Accelerator) -> dict:
    """The hardware and the versions of a run, for run.json."""
    if accelerator.device.type == "cuda":
        hardware = torch.cuda.get_device_name(accelerator.device)
    else:
        hardware = f"{_processor_name()}, CPU threads: {torch.get_num_threads()}"
    versions = {"ddpm_hf": ddpm_hf.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
    return {"hardware": hardware, "processes": accelerator.num_processes, "versions": versions}


def _processor_name() -> str:
    with suppress(OSError, StopIteration):  # Linux tells it here, and on x86 only
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def keep_freed_memory():
    """Let glibc keep freed memory for the next step, instead of faulting it in again: 1.2 times faster on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def compile_blocks(unet: ModelMixin):
    """Compile the blocks that repeat, in place, so the names of the weights stay; at the first step, for a minute."""
    torch._dynamo.config.recompile_limit = 128  # blocks of one class differ in their shapes, each to be compiled
    unet.compile_repeated_blocks(dynamic=False)


def note_signals() -> list[int]:
    """A list that is empty until Ctrl-C, SIGTERM or SIGUSR1 (the clusters' warnings) asks the run to save and end."""
    received = []

    def note(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
        tqdm.write(f"{signal.Signals(number).name}: saving after this step ...")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, note)
    return received


def together(compute: Callable[[], Any]) -> Any:
    """What this process computes. If one of the processes fails, all raise an error, and none waits for it for ever.

    Whatever can fail on one process alone between two exchanges with the others has to go through this.
    """
    try:
        result, failure = compute(), None
    except Exception as error:
        result, failure = None, error
    reasons = gather_object([failure and one_line(failure)])
    if failure:
        raise failure
    for i, reason in enumerate(reasons):
        if reason is not None:
            raise ValueError(f"process {i}: {reason}")
    return result


def gathered(compute: Callable[[], Any]) -> list:
    """What each process computes, in their order; see [`together`]."""
    return gather_object([together(compute)])


def on_any_process(flag: bool, accelerator: Accelerator) -> bool:
    """Whether the flag is set on some process, so that all of them stop after the same step."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)))


@contextmanager
def one_line_errors():
    """End the process with one line, instead of a traceback, on what is wrong with the options or the disk."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"train_ddpm.py: error: {one_line(error)}.")
