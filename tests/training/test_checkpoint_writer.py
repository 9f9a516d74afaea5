"""Checkpoints are written beside the training: the step that was copied, in order, and no error ends the run."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddpm_hf.run_files import list_checkpoints
from ddpm_hf.training import checkpoint_writer
from ddpm_hf.training.checkpoint_writer import CheckpointWriter

ROOT = Path(__file__).parents[2]
write_checkpoint = checkpoint_writer.write_checkpoint


@pytest.fixture
def disk(monkeypatch):
    """A disk that writes nothing before this event is set."""
    ready = threading.Event()

    def slow(*arguments):
        assert ready.wait(60)
        write_checkpoint(*arguments)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", slow)
    return ready


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, disk):
    written = []
    writer = CheckpointWriter(tmp_path, 1, lambda: written.append(sorted(path.name for path in tmp_path.iterdir())))
    weight = torch.zeros(3)
    writer.write(1, {"model": {"weight": weight}}, {"step": 1})  # returns although the disk is not ready
    weight += 1
    assert not written
    threading.Timer(0.2, disk.set).start()
    writer.write(2, {"model": {"weight": weight}}, {"step": 2})  # waits for the first one
    assert written == [["step-000001"]]
    weight += 1
    writer.wait()
    assert written[1:] == [["step-000001", "step-000002"]]  # the older one went after that
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]
    assert load_file(tmp_path / "step-000002" / "model.safetensors")["weight"].tolist() == [1, 1, 1]


def test_an_error_is_said_and_the_older_checkpoint_stays(tmp_path, capsys):
    writer = CheckpointWriter(tmp_path, 1, lambda: None)
    writer.write(1, {"model": {"weight": torch.zeros(3)}}, {"step": 1})
    writer.write(2, {"model": {"weight": torch.zeros(3)}}, {"step": object()})
    writer.wait()
    assert "Could not save a checkpoint: " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


@pytest.mark.slow
def test_ctrl_c_while_a_checkpoint_is_waited_for(tmp_path):
    """The process ends at once with its exit code. Stopping the thread inside of safetensors would abort it."""
    code = f"""
import torch
from pathlib import Path
from ddpm_hf.ending import ending_at_once
from ddpm_hf.training.checkpoint_writer import CheckpointWriter

with ending_at_once():
    writer = CheckpointWriter(Path({str(tmp_path)!r}), 1, lambda: None)
    writer.write(1, {{"model": {{str(i): torch.zeros(2**24) for i in range(8)}}}}, {{"step": 1}})
    raise KeyboardInterrupt
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (130, "")
    assert not list_checkpoints(tmp_path)
