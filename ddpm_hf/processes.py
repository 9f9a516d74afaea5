"""The processes of a run: which one this is, and how they work together."""

import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, parse_flag_from_env

from ddpm_hf.terminal import one_line


def use_all_cores():
    """Share the cores among this machine's processes, if `accelerate launch` left each process one thread.

    The launcher sets OMP_NUM_THREADS to 1 by default. Any other value is the user's wish.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def join_processes_on_cpus():
    """Connect processes on CPUs. Without this setting, accelerate leaves each of them alone."""
    if "RANK" in os.environ and not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"


def this_process() -> PartialState:
    """Return the rank of this process, the number of processes, and the device of this one."""
    join_processes_on_cpus()
    return PartialState(cpu=bool(parse_flag_from_env("ACCELERATE_USE_CPU")))


def together(compute: Callable[[], Any]) -> Any:
    """Return what this process computes. If one process fails, all of them raise an error, and none waits forever.

    Use this for everything that can fail on one process alone between two exchanges with the others.

    Raises:
        ValueError: If another process failed.
        Exception: The error of this process, if it failed itself.
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
    """Return what each process computes, in the order of their ranks. See [`together`]."""
    return gather_object([together(compute)])


class OnAnyProcess:
    """Tell after each step whether a flag is set on any process, so that all of them stop after the same step.

    With several processes, it tells about the flags of the step before. Their answer comes while this step is computed,
    so no step waits for it.

    Args:
        accelerator ([`~accelerate.Accelerator`]): The processes. All of them have to call this object at each step.
    """

    def __init__(self, accelerator: Accelerator):
        self.device, self.is_alone = accelerator.device, accelerator.num_processes == 1
        self.asked: tuple[Callable[[], Any], torch.Tensor] = (lambda: None, torch.tensor(0.0))

    def __call__(self, flag: bool) -> bool:
        if self.is_alone:
            return flag
        (wait, answer), self.asked = self.asked, self._ask(flag)
        wait()
        return bool(answer)

    def _ask(self, flag: bool) -> tuple[Callable[[], Any], torch.Tensor]:
        """Begin to sum the flags of all processes. The sum is there when the function returned has been called."""
        flags = torch.full((), float(flag), device=self.device)
        work = torch.distributed.all_reduce(flags, async_op=True)
        if self.device.type == "cpu":
            return work.wait, flags
        work.wait()  # the device copies when it has summed; the host goes on
        answer, copied = flags.to("cpu", non_blocking=True), torch.Event(self.device)
        copied.record()
        return copied.synchronize, answer
