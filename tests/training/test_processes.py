"""Training in two processes, on CPUs, over gloo.

One pair is started by accelerate. The others are forks, as a cluster starts them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import metrics, weights
from safetensors.torch import load_file

from ddpm_hf.checkpoint import find_checkpoint
from ddpm_hf.training import validation

ROOT = Path(__file__).parents[2]


SCRIPT = ROOT / "train_ddpm.py"
# As the script, with fewer pairs of the held-out loss.
FEW_PAIRS = """
from ddpm_hf.training import validation
import train_ddpm
validation.PAIRS = 24
train_ddpm.start_training()
"""


def launch_two(flags):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", "0"]  # any that is free
    command, environment = [*launcher, str(SCRIPT), *flags], {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def assert_close_runs(a, b, last="step-000020"):
    names = [f"checkpoints/{last}/model.safetensors", f"checkpoints/{last}/ema.safetensors"]
    names += [path.relative_to(a).as_posix() for path in a.glob(f"checkpoints/{last}/history.safetensors")]
    names += [path.relative_to(a).as_posix() for path in a.glob(f"posthoc_ema/{last}/*.safetensors")]
    for name in names:
        first, second = (load_file(folder / name) for folder in (a, b))
        assert first.keys() == second.keys()
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-5, msg=f"{name} {key}")
    for one, two in zip(metrics(a), metrics(b), strict=True):
        assert one["epoch"] == two["epoch"]
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)


@pytest.mark.slow
def test_two_processes_equal_twice_the_accumulation(train, small, forks, tmp_path, monkeypatch):
    """Also when the number of processes changes on the way, 1 -> 2 -> 1. The processes share the held-out loss.

    Both runs draw timesteps by their losses, from step 7 or so, and keep two more averages.
    """
    by_loss = {"timestep_sampling": "loss_second_moment", "ddpm_num_steps": 4, "posthoc_ema": 2}
    held_out = {"validation_fraction": 0.001, "validation_steps": 10, "keep_best": "loss", **by_loss}
    monkeypatch.setattr(validation, "PAIRS", 24)
    one = train("one", max_train_steps=20, gradient_accumulation_steps=2, **held_out)
    codes, said = forks.run_two("-c", FEW_PAIRS, *small("two", max_train_steps=20, **held_out))
    assert codes == [0, 0], said
    assert "20 steps of 8 images" in said
    assert_close_runs(one, tmp_path / "two")
    assert said.count("held-out loss") == 2  # from one process
    for a, b in zip(metrics(one), metrics(tmp_path / "two"), strict=True):
        assert {key for key in a if key.startswith("val_")} == {key for key in b if key.startswith("val_")}
        assert a.get("val_loss") == pytest.approx(b.get("val_loss"), abs=1e-5)
        assert a.get("val_loss_q1") == pytest.approx(b.get("val_loss_q1"), abs=1e-5)
    best = [json.loads((folder / "best" / "best.json").read_text()) for folder in (one, tmp_path / "two")]
    assert best[0]["step"] == best[1]["step"]

    constant = {"lr_scheduler": "constant_with_warmup", **by_loss}  # it does not depend on max_train_steps
    whole = train("whole", max_train_steps=20, gradient_accumulation_steps=2, **constant)
    train("mixed", max_train_steps=5, gradient_accumulation_steps=2, **constant)
    done = launch_two(small("mixed", max_train_steps=12, **constant))
    assert "Going on from" in done.stdout, done.stderr
    train("mixed", max_train_steps=20, gradient_accumulation_steps=2, **constant)
    assert_close_runs(whole, tmp_path / "mixed")


@pytest.mark.slow
def test_a_sharded_run_equals_a_whole_one(train, small, forks, tmp_path):
    """Under FSDP each process holds a part of every tensor, also of the layer that only the training has.

    Muon needs whole matrices. A run goes on with it or without it.
    """
    fsdp, constant = ROOT / "tests" / "fsdp_on_cpus.py", {"lr_scheduler": "constant_with_warmup", "optimizer": "muon"}
    constant["posthoc_ema"] = 2
    whole = train("whole", "--augment", max_train_steps=20, gradient_accumulation_steps=2, **constant)
    train("sharded", "--augment", max_train_steps=5, gradient_accumulation_steps=2, **constant)
    for more in ({"max_train_steps": 12}, {"max_train_steps": 20, "save_images_steps": 15}):
        codes, said = forks.run_two(fsdp, *small("sharded", "--augment", **more, **constant))
        assert codes == [0, 0] and "Going on from" in said, said
    assert_close_runs(whole, tmp_path / "sharded")
    assert weights(whole).keys() == weights(tmp_path / "sharded").keys()
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path / "sharded")[name], weight, rtol=0, atol=1e-5)


EXTRACTOR = """
import os
calls = 0
def features(images):
    global calls
    calls += 1
    if calls > 1 and os.environ["RANK"] == "1":
        raise RuntimeError("no such layer")
    return images.float().mean((1, 2, 3))[:, None]
"""


@pytest.mark.slow
def test_a_measurement_that_fails_on_one_process_stops_none(small, forks, tmp_path):
    """The extractor works on the batch that is tried before the first step; then the main one cannot draw."""
    (tmp_path / "half_broken.py").write_text(EXTRACTOR)
    options = {"eval_metrics": "fid,bpd", "eval_features": "half_broken:features", "eval_num_images": 4}
    options |= {"eval_steps": 1, "lr_scheduler": "constant"}
    codes, said = forks.run_two(SCRIPT, *small("run", max_train_steps=2, **options), cwd=tmp_path)
    assert codes == [0, 0], said
    assert said.count("Could not measure the model: process 1: --features half_broken:features fails") == 2
    assert "Trained 2 steps" in said
    (tmp_path / "run" / "evaluation-samples").write_text("no folder")
    codes, said = forks.run_two(SCRIPT, *small("run", max_train_steps=3, **options), cwd=tmp_path)
    assert codes == [0, 0], said
    assert said.count("Could not measure the model:") == 4  # at steps 2, once more, and 3, by both
    assert "Trained 1 steps" in said


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(small, forks, tmp_path):
    """And the run goes on."""
    flags = small("run", max_train_steps=100_000, lr_scheduler="constant", save_images_steps=100_000)
    processes = forks.start_two(SCRIPT, *flags)
    file = tmp_path / "run" / "metrics.jsonl"
    while not (file.exists() and len(file.read_text().splitlines()) > 3):
        time.sleep(0.1)
        assert processes[0].poll() is None, processes[0].stderr
    os.kill(processes[1].pid, signal.SIGUSR1)
    assert [process.wait().returncode for process in processes] == [0, 0], processes[0].stderr
    assert "Stopped at step" in processes[0].stdout
    step = metrics(tmp_path / "run")[-1]["step"]
    assert find_checkpoint(tmp_path / "run" / "checkpoints", "latest")[0].name == f"step-{step:06d}"

    flags[flags.index("--max_train_steps") + 1] = str(step + 3)
    assert "Going on from" in forks.run_two(SCRIPT, *flags)[1]
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, step + 4))


@pytest.mark.slow
def test_an_error_on_one_process_ends_all(small, forks):
    codes, said = forks.run_two(SCRIPT, *small("bad", output_dir="/proc/run"))
    assert 0 not in codes
    assert "--output_dir /proc/run cannot be written" in said
