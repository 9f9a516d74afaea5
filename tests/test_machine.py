"""Precision, optimizer, threads and signals of a run, as its machine has them."""

import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from ddpm_hf.command_line import parse_command_line
from ddpm_hf.hardware import describe_machine
from ddpm_hf.precision import check_mixed_precision, choose_mixed_precision
from ddpm_hf.processes import OnAnyProcess, use_all_cores
from ddpm_hf.signals import note_signals
from ddpm_hf.training.launcher import check_device
from ddpm_hf.training.optimizer import has_fused_adam, make_optimizer, skips_by_itself


@pytest.fixture
def machine(monkeypatch):
    """Let PyTorch say that this machine has a kind of device."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)

    def has(kind):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind != "cpu")
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))

    return has


@pytest.mark.parametrize(("kind", "asked"), [("cpu", torch.cpu), ("xpu", torch.xpu), ("mps", None)])
def test_mixed_precision_auto(kind, asked, machine, monkeypatch):
    machine(kind)
    assert choose_mixed_precision("fp16") == "fp16"
    for fast in (True, False):
        if asked:
            name = "_is_avx512_bf16_supported" if kind == "cpu" else "is_bf16_supported"
            monkeypatch.setattr(asked, name, lambda *_, fast=fast: fast)
        assert choose_mixed_precision("auto") == ("bf16" if fast and asked else "no")


@pytest.mark.parametrize(("generation", "wanted"), [(7, "no"), (8, "bf16")])
def test_bf16_is_not_emulated(generation, wanted, machine, monkeypatch):
    """GPUs before Ampere (compute capability 8) emulate bf16 slowly, and torch calls that support too."""
    machine("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=generation))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert torch.cuda.is_bf16_supported()
    assert choose_mixed_precision("auto") == wanted


@pytest.mark.parametrize(
    ("precision", "device", "trains", "message"),
    [
        ("fp16", "cpu", True, "training with mixed precision fp16 needs a GPU; choose another --mixed_precision"),
        ("fp16", "cpu", False, None),
        ("fp16", "mps", True, None),
        ("bf16", "mps", False, "bf16 on an Apple GPU needs macOS 14"),
        ("bf16", "meta", False, "PyTorch has no mixed precision on the device meta"),
        ("no", "meta", True, None),
    ],
)
def test_a_precision_that_the_device_lacks(precision, device, trains, message, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: False)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_mixed_precision(precision, torch.device(device), trains)


def test_a_device_without_random_generators():
    check_device(torch.device("cpu"))
    with pytest.raises(ValueError, match=r"chose the device meta, .* ACCELERATE_USE_CPU=true"):
        check_device(torch.device("meta"))


@pytest.mark.parametrize(
    ("device", "fused", "by_itself"),
    [("cpu", True, False), ("cuda", True, True), ("xpu", True, True), ("mps", True, False), ("xla", False, False)],
)
def test_which_devices_skip_updates(device, fused, by_itself):
    assert (has_fused_adam(torch.device(device)), skips_by_itself(torch.device(device))) == (fused, by_itself)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_optimizer_of_plain_operations_steps_like_the_fused_one(optimizer):
    weights = []
    for device in ("cpu", "xla"):
        config, _ = parse_command_line(["--optimizer", optimizer])
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3), torch.nn.GroupNorm(1, 2))
        adam = make_optimizer(model, config, torch.device(device))
        for _ in range(3):
            model(torch.randn(1, 2, 4, 4)).square().sum().backward()
            adam.step()
        weights.append(torch.cat([weight.flatten() for weight in model.parameters()]))
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(
    ("device", "system", "expected"),
    [("cuda", "Linux", "a card"), ("xpu", "Linux", "a card"), ("mps", "Darwin", "Apple M9, GPU (mps)")],
)
def test_the_hardware_is_named(device, system, expected, monkeypatch):
    for library in (torch.cuda, torch.xpu):
        monkeypatch.setattr(library, "get_device_name", lambda device: "a card")
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("subprocess.check_output", lambda *command, text: "Apple M9\n")
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=1)
    assert describe_machine(accelerator)["hardware"] == expected


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
    monkeypatch.setattr(signal, "SIGUSR1", 10, raising=False)
    if not platform_has_it:
        monkeypatch.delattr(signal, "SIGUSR1")
    numbers = [signal.SIGINT, signal.SIGTERM, *([10] if platform_has_it else [])]
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
