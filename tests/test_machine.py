"""Precision, threads and signals of a run."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from ddpm_hf.precision import choose_mixed_precision
from ddpm_hf.processes import OnAnyProcess, use_all_cores
from ddpm_hf.signals import note_signals


def test_mixed_precision_auto(monkeypatch):
    assert choose_mixed_precision("fp16") == "fp16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for fast, wanted in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert choose_mixed_precision("auto") == wanted


@pytest.mark.parametrize(("generation", "wanted"), [(7, "no"), (8, "bf16")])
def test_bf16_is_not_emulated(generation, wanted, monkeypatch):
    """GPUs before Ampere (compute capability 8) emulate bf16 slowly, and torch calls that support too."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=generation))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert torch.cuda.is_bf16_supported()
    assert choose_mixed_precision("auto") == wanted


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}, 6),  # the default of `accelerate launch`
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, 3),
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "4"}, None),
        ({"OMP_NUM_THREADS": "1"}, None),
    ],
)
def test_a_launched_run_uses_all_cores(environment, threads, monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6), raising=False)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    use_all_cores()
    assert asked == ([threads] if threads else [])


@pytest.mark.parametrize("platform_has_it", [True, False])
def test_signals_ask_the_run_to_end(platform_has_it, monkeypatch):
    """Windows has no SIGUSR1."""
    handlers = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if platform_has_it else [])]
    if not platform_has_it:
        monkeypatch.delattr(signal, "SIGUSR1")
    received = note_signals()
    assert list(handlers) == numbers and received == []
    handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert received == [signal.SIGTERM]
    assert handlers[signal.SIGINT] is signal.default_int_handler  # a second Ctrl-C ends the run at once


def test_a_signal_is_told_a_step_later_and_no_step_waits(monkeypatch):
    """The other process gets a signal in the second step. The sum of a step is there when it is waited for."""
    others, waited = iter([0.0, 1.0, 1.0]), []

    def all_reduce(flags, async_op):
        assert async_op
        sum_of_all = flags + next(others)
        return SimpleNamespace(wait=lambda: waited.append(flags.copy_(sum_of_all)))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    one, two = (SimpleNamespace(device=torch.device("cpu"), num_processes=n) for n in (1, 2))
    on_any_process = OnAnyProcess(two)
    assert [(on_any_process(False), len(waited)) for _ in range(3)] == [(False, 0), (False, 1), (True, 2)]
    assert [OnAnyProcess(one)(flag) for flag in (False, True)] == [False, True]
