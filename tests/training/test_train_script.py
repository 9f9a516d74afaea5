"""train_ddpm.py from end to end, at sizes that take seconds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import equal, metrics

from ddpm_hf import DDPMPipelineCustom
from ddpm_hf.pictures import loss_curve
from ddpm_hf.training import run_folder

ROOT = Path(__file__).parents[2]


def test_a_run_leaves_a_pipeline_samples_and_numbers(train, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "loss_curve", loss_curve)
    folder = train()
    images = DDPMPipelineCustom.from_pretrained(folder)(batch_size=16, num_inference_steps=3).images
    assert [(i.mode, i.size) for i in images] == [("L", (28, 28))] * 16
    assert Image.open(folder / "samples" / "step-000004.png").size == (513, 513)
    assert Image.open(folder / "loss.png").size == (800, 480)
    assert [m["step"] for m in metrics(folder)] == [1, 2, 3, 4]
    assert metrics(folder)[0]["loss"] == pytest.approx(1, abs=0.3)  # the network starts at zero, and eps ~ N(0, 1)
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Trained 4 steps in ") for line in said)
    for name, what in (("", "the model"), ("samples", "pictures that it draws"), ("loss.png", "the loss")):
        assert any(line.split() == [str(folder / name), *what.split()] for line in said)
    assert said[-1] == f"Draw more with: ddpm-hf sample {folder}"


def test_weights_are_a_function_of_options_and_seed(train):
    first = train("first")
    again = train("again", save_images_steps=1, save_model_steps=1, eval_batch_size=5, logging_steps=2)
    other = train("other", seed=1)
    assert equal(first, again)
    assert not equal(first, other)
    assert len(list((again / "samples").iterdir())) == 4


def test_accumulation_equals_a_larger_batch(train):
    """Two micro-batches of 4 hold other noise than one of 8, so the data must be the same and the loss alike."""
    accumulated = metrics(train("a", gradient_accumulation_steps=2, max_train_steps=2))
    whole = metrics(train("b", train_batch_size=8, max_train_steps=2))
    for a, b in zip(accumulated, whole):
        assert a["epoch"] == b["epoch"]
        assert a["learning_rate"] == b["learning_rate"]
        assert a["loss"] == pytest.approx(b["loss"], rel=0.1)


def test_without_moving_average(train):
    assert not equal(train("live", "--no_use_ema"), train("averaged"))


def test_batch_larger_than_the_data(train, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.new("RGB", (30, 28), (i, 0, 0)).save(tmp_path / "in" / f"{i}.jpg")
    folder = train(train_data_dir=tmp_path / "in", train_batch_size=8)
    assert metrics(folder)[-1]["epoch"] == pytest.approx(4 * 8 / 3, abs=1e-4)


def test_dry_run_writes_nothing(train, capsys):
    folder = train("dry", "--dry_run")
    assert not folder.exists()
    text = capsys.readouterr().out
    assert json.loads(text[text.index("\n{") :])["train_batch_size"] == 4
    assert "10,000 images, 4 steps of 4 images (0.0 epochs)" in text
    for row in ("network", "step", "memory", "run", "disk"):
        assert f"\n  {row} " in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_data_dir": "/no/such/folder"}, "/no/such/folder: there is no such folder"),
        (
            {"resolution": 32},
            "10,000 of 10,000 images have fewer pixels than --resolution 32; the smallest: image 0 (28x28)",
        ),
        ({"output_dir": Path(__file__, "run")}, f"--output_dir {Path(__file__, 'run')} cannot be written"),
    ],
)
def test_bad_input_ends_in_one_line(train, options, message):
    with pytest.raises(SystemExit) as stop:
        train("bad", **options)
    assert message in stop.value.code
    assert "\n" not in stop.value.code


def test_a_trained_model_is_not_overwritten_by_accident(train):
    folder = train()
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(SystemExit, match="holds a trained model and no checkpoint"):
        train()
    train("run", "--overwrite_output_dir")


def test_full_disk_at_the_last_save(train, tmp_path, monkeypatch):
    def save_pretrained(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DDPMPipelineCustom, "save_pretrained", save_pretrained)
    with pytest.raises(SystemExit, match=r"cannot save the pipeline in .*No space left on device"):
        train(save_model_steps=2)
    assert not (tmp_path / "run" / "model_index.json").exists()


@pytest.mark.slow
def test_accelerate_launch_and_ctrl_c(tmp_path):
    """A run with the defaults is interrupted. It saves the model and says where it stopped."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "train_ddpm.py"]
    command = [*launcher, "--output_dir", str(tmp_path / "run"), "--ddpm_num_inference_steps", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics_file = tmp_path / "run" / "metrics.jsonl"
    while not (metrics_file.exists() and metrics_file.read_text()):
        time.sleep(0.1)
        assert process.poll() is None, process.stdout.read()
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(child, signal.SIGINT)
    text = process.communicate(timeout=300)[0]
    assert "Stopped at step" in text
    images = DDPMPipelineCustom.from_pretrained(tmp_path / "run")(2, num_inference_steps=2).images
    assert len(images) == 2


@pytest.mark.slow
def test_annotated_experiment_on_a_folder_like_celeba(forks, tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "celeba").mkdir()
    for i in range(7):
        Image.fromarray(random.integers(0, 256, (218, 178, 3), dtype=np.uint8)).save(tmp_path / "celeba" / f"{i}.jpg")
    flags = ["--preset", "annotated", "--max_train_steps", 2, "--train_data_dir", tmp_path / "celeba"]
    flags += ["--output_dir", tmp_path / "run", "--ddpm_num_inference_steps", 2, "--eval_batch_size", 2]
    flags += ["--train_batch_size", 4]  # the network has 168 M parameters
    done = forks.run("train_ddpm.py", *flags, timeout=600)
    assert done.returncode == 0, done.stderr
    pipeline = DDPMPipelineCustom.from_pretrained(tmp_path / "run")
    with pytest.warns(UserWarning, match="fixed_large"):
        images = pipeline(2, num_inference_steps=2).images
    assert [(i.mode, i.size) for i in images] == [("RGB", (32, 32))] * 2


def test_measuring_changes_nothing_in_the_weights(train):
    options = {"eval_steps": 2, "eval_num_images": 3, "eval_metrics": "bpd"}
    measured = train("measured", **options)
    assert equal(measured, train("plain"))
    lines = [json.loads(line) for line in (measured / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(line["bpd"] > 0 for line in lines)
    with pytest.raises(SystemExit, match="--metrics fids: expected some of bpd, fid"):
        train("bad", **{**options, "eval_metrics": "bpd,fids"})
