"""Numbers and pictures in TensorBoard, read back by its own reader."""

import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddpm_hf.config import TrainingConfig
from ddpm_hf.training.trackers import start_trackers


def test_tensorboard_holds_options_losses_and_samples(train):
    options = {"logger": "tensorboard", "save_images_steps": 2, "run_name": "third try"}
    folder = train("run", "--value_range", "0", "255", **options)
    files = list((folder / "logs" / "third try" / "ddpm_hf").glob("*tfevents*"))
    events = EventAccumulator(str(files[0]))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("samples")][-1] == 4
    options = next((folder / "logs").rglob("hparams.yml")).read_text()
    assert "learning_rate: 0.008" in options


def test_a_logger_that_is_not_installed(train, monkeypatch, tmp_path):
    monkeypatch.setattr("ddpm_hf.training.trackers.is_wandb_available", lambda: False)
    with pytest.raises(SystemExit, match="--logger wandb is not installed: pip install wandb"):
        train(logger="wandb")
    assert not (tmp_path / "run").exists()


def test_trackers_see_no_token_on_the_command_line(train):
    train(logger="none", hub_token="hf_secret")
    assert "hf_secret" not in " ".join(sys.argv)
    assert "hf_***" in sys.argv


def test_trackers_see_no_token_in_any_form(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--hub_token=secret", "of another form", "--proxy=http://me:word@x.org"]
    )
    config = TrainingConfig()
    config.hub_token = "of another form"
    told = []
    start_trackers(SimpleNamespace(init_trackers=lambda *arguments: told.append(arguments)), config)
    assert told[0][2] == {"wandb": {"name": "ddpm-mnist-mini"}}
    assert sys.argv == ["train.py", "--hub_token=***", "hf_***", "--proxy=http://***@x.org"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_name": "a"}, "--run_name a is the name at the trackers; pass --logger, too"),
        ({"run_name": "../a", "logger": "wandb"}, "--run_name ../a: expected letters, digits, and"),
    ],
)
def test_names_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)
