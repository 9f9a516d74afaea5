"""The memory of a step: as a tracker of PyTorch counts it, and what a run says if there is too little."""

import re
from types import SimpleNamespace

import pytest
import torch
from runs import metrics
from torch.distributed._tools.mem_tracker import MemTracker

import ddpm_hf.train as loop
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.precision import autocast
from ddpm_hf.training import out_of_memory
from ddpm_hf.training.ema import MovingAverage, PowerAverage
from ddpm_hf.training.memory import peak_memory, surely_enough
from ddpm_hf.training.model import make_model
from ddpm_hf.training.objective import denoising_loss
from ddpm_hf.training.optimizer import make_optimizer
from ddpm_hf.training.out_of_memory import StepMemory

CPU = torch.device("cpu")


def tracked_peak(config):
    """The peak of real steps, as PyTorch's own tracker counts it."""
    unet, scheduler = make_model(config, 1)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer, averages = make_optimizer(unet.train(), config, CPU), [MovingAverage(unet, 1.0, 1.0, 0.9)]
    averages += [PowerAverage(unet, std) for std in (0.05, 0.1) if config.posthoc_ema]
    tracker = MemTracker()
    tracker.track_external(unet, optimizer, *(tensor for average in averages for tensor in average.average))
    with tracker:
        for step in (1, 2):  # the moments are there in the second one
            for _ in range(config.gradient_accumulation_steps):
                tracker.reset_mod_stats()
                x_0, eps = (torch.zeros(config.train_batch_size, 1, *config.size) for _ in range(2))
                t = torch.zeros(len(x_0), dtype=torch.long)
                with autocast(CPU, config.mixed_precision):
                    losses = denoising_loss(unet, scheduler, x_0, t, eps)
                losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            for average in averages:
                average.update(step)
    return tracker.get_tracker_snapshot("peak")[CPU]["Total"]


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--gradient_checkpointing --optimizer muon --posthoc_ema",
        "--mixed_precision bf16 --gradient_accumulation_steps 2 --train_batch_size 2",
    ],
)
def test_the_peak_is_that_of_real_steps(small, flags):
    config, _ = parse_command_line([*small("x", train_batch_size=16), *flags.split()])
    assert peak_memory(config, 1, "cpu") == pytest.approx(tracked_peak(config), rel=0.02)


def test_copies_that_are_made_elsewhere_count(small):
    """Several processes exchange gradients through a copy. GPUs copy the input of a group norm, to float32."""
    config, _ = parse_command_line([*small("x", train_batch_size=16), "--mixed_precision", "bf16"])
    alone = peak_memory(config, 1, "cpu")
    assert peak_memory(config, 1, "cpu", processes=2) - alone == 4 * make_model(config, 1)[0].num_parameters()
    assert 1.3 < peak_memory(config, 1, "cuda") / alone < 2.5


@pytest.mark.parametrize("flags", ["--preset cifar10 --resolution 32 --optimizer muon", "--resolution 8"])
def test_the_quick_answer_is_on_the_safe_side(flags):
    config, _ = parse_command_line([*flags.split(), "--mixed_precision", "no"])
    unet = make_model(config, 3)[0]
    assert surely_enough(config, unet) > 2 * peak_memory(config, 3, "cuda")


# ---- Too little memory ----------------------------------------------------------------------------------------------


def megabytes_of_a_step(config, channels, device_type, processes):
    """A network of 4 MB and, for each image, 1 MB or a quarter of it."""
    return int(4e6 + 1e6 * config.train_batch_size / (4 if config.gradient_checkpointing else 1))


@pytest.mark.parametrize(
    ("there", "flags", "advice"),
    [
        (50, "", "pass --gradient_checkpointing (about 20 MB), or --train_batch_size 16 {4} (about 20 MB)"),
        (70, "", "pass --gradient_checkpointing (about 20 MB), or --train_batch_size 32 {2} (about 36 MB)"),
        (20, "", "pass --train_batch_size 4 {16} (about 8 MB)"),
        (8, "", "pass --gradient_checkpointing --train_batch_size 2 {32} (about 4 MB)"),
        (12, "--gradient_checkpointing", "pass --train_batch_size 8 {8} (about 6 MB)"),
        (5, "", "not even one image at a time fits; take a smaller network, or a lower --resolution"),
    ],
)
def test_what_fits_is_named_and_nothing_else(small, monkeypatch, there, flags, advice):
    """On a CPU, 1.7 times the memory of the tensors has to be there."""
    monkeypatch.setattr(out_of_memory, "peak_memory", megabytes_of_a_step)
    monkeypatch.setattr(out_of_memory, "checkpoint_memory", lambda *_: 0)
    monkeypatch.setattr(out_of_memory, "memory_there", lambda device: there * 1e6)
    config, _ = parse_command_line([*small("x", train_batch_size=64), *flags.split()])
    machine = SimpleNamespace(device=CPU, num_processes=1, distributed_type=None)
    message = StepMemory(config, 1, machine).describe_lack()
    needed = (
        "with --gradient_checkpointing at 28 pixels needs about 20 MB" if flags else "at 28 pixels needs about 68 MB"
    )
    besides = ", besides what libraries take" if there == 70 else ""
    advice = re.sub(r"{(\d+)}", r"--gradient_accumulation_steps \1", advice)
    assert message == f"--train_batch_size 64 {needed} of memory{besides}, and this machine has {there} MB: {advice}"


def test_a_run_that_cannot_fit_is_refused_before_it_begins(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(out_of_memory, "peak_memory", megabytes_of_a_step)
    monkeypatch.setattr(out_of_memory, "memory_there", lambda device: 60e6)
    with pytest.raises(SystemExit, match=r"needs about .* and this machine has 60 MB: pass --gradient_checkpointing"):
        train(train_batch_size=64)
    assert not (tmp_path / "run" / "config.json").exists()
    train("run", "--dry_run", train_batch_size=64)
    assert "  memory   --train_batch_size 64 at 28 pixels needs about" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["gpu", "cpu"],
)
def test_a_run_that_ran_out_of_memory_goes_on_as_its_error_says(train, monkeypatch, error):
    calls = []

    def full(*args):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return denoising_loss(*args)

    options = {"lr_scheduler": "constant", "checkpointing_steps": 2, "train_batch_size": 8}
    monkeypatch.setattr(loop, "denoising_loss", full)
    monkeypatch.setattr(out_of_memory, "peak_memory", megabytes_of_a_step)
    with pytest.raises(SystemExit) as stop:
        train(**options)
    message = stop.value.code
    assert "--train_batch_size 8 at 28 pixels needs about" in message
    assert ", besides what libraries take, and this machine has" in message
    assert re.search(r"Then the run goes on from .*/checkpoints/step-000002\.$", message)
    split = re.search(r"--train_batch_size \d+ --gradient_accumulation_steps \d+", message)[0].split()
    folder = train(**{**options, **dict(zip((flag[2:] for flag in split[::2]), split[1::2]))})
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]


def test_other_errors_stay_as_they_are(train, monkeypatch):
    monkeypatch.setattr(loop, "denoising_loss", lambda *args: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        train()
