"""Training in two processes, on CPUs, over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import metrics
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent


def launch(processes, flags):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, str(ROOT / "train_ddpm.py"), *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def assert_close_runs(a, b, last="step-000020"):
    for name in ("model", "ema"):
        first, second = (load_file(folder / "checkpoints" / last / f"{name}.safetensors") for folder in (a, b))
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-5, msg=f"{name} {key}")
    for one, two in zip(metrics(a), metrics(b), strict=True):
        assert one["epoch"] == two["epoch"]
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)


@pytest.mark.slow
def test_two_processes_equal_twice_the_accumulation(train, small, tmp_path):
    """Also when the number of processes changes on the way, 1 -> 2 -> 1."""
    one = train("one", max_train_steps=20, gradient_accumulation_steps=2)
    done = launch(2, small("two", max_train_steps=20))
    assert done.returncode == 0, done.stderr
    assert "20 steps of 8 images" in done.stdout
    assert_close_runs(one, tmp_path / "two")

    constant = {"lr_scheduler": "constant_with_warmup"}  # it does not depend on max_train_steps
    whole = train("whole", max_train_steps=20, gradient_accumulation_steps=2, **constant)
    train("mixed", max_train_steps=5, gradient_accumulation_steps=2, **constant)
    done = launch(2, small("mixed", max_train_steps=12, **constant))
    assert "Going on from" in done.stdout, done.stderr
    train("mixed", max_train_steps=20, gradient_accumulation_steps=2, **constant)
    assert_close_runs(whole, tmp_path / "mixed")


@pytest.mark.slow
def test_an_error_on_one_process_ends_all(small):
    done = launch(2, small("bad", output_dir="/proc/run"))
    assert done.returncode != 0
    assert "--output_dir /proc/run cannot be written" in done.stderr
