"""Checkpoints are written beside the training: the step that was copied, in order, and no error ends the run."""

import threading

import pytest
import torch
from safetensors.torch import load_file

from ddpm_hf.training import checkpoint_writer
from ddpm_hf.training.checkpoint_writer import CheckpointWriter

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
