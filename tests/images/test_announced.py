"""A dry run tells what a data set on the Hub says about itself, and downloads no pictures."""

import datasets
import pytest

from ddpm_hf.command_line import parse_command_line
from ddpm_hf.images import announced
from ddpm_hf.images.announced import announced_images


def options(*flags):
    return parse_command_line(["--dataset_name", "alice/pets", "--resolution", "16", *flags, "--dry_run"])[0]


class Builder:
    """What `load_dataset_builder` returns: the information of the card."""

    cache_dir = "/no/such/folder"
    info = datasets.DatasetInfo(
        features=datasets.Features(
            photo=datasets.Image(), kind=datasets.ClassLabel(names=["cat", "dog"]), caption=datasets.Value("string")
        ),
        splits=[{"name": "train", "num_examples": 1200}, {"name": "test", "num_examples": 90}],
    )


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(announced, "why_unreachable", lambda *args: None)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *args, **kwargs: Builder)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(announced, "why_unreachable", lambda *args: "no network")


def test_the_hub_tells_sizes_and_classes(told):
    found = announced_images(options("--class_conditional", "--validation_split", "test"))
    assert (found.count, found.count_of_split, found.form.channels) == (1200, 90, 3)
    assert found.dataset.features["label"].names == ["cat", "dog"]
    assert announced_images(options("--image_mode", "L")).form.channels == 1
    assert announced_images(options("--streaming", "--max_train_steps", "5")).count is None
    assert announced_images(options("--dataset_split", "train+test")).count is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_split", "tset"], "--dataset_name alice/pets has no split tset; expected one of train, test"),
        (["--image_column", "picture"], r"--image_column picture: the data set's image columns are \['photo'\]"),
    ],
)
def test_what_the_hub_tells_is_checked(told, flags, message):
    with pytest.raises(ValueError, match=message):
        announced_images(options(*flags))


def test_without_the_hub_the_rest_is_told(offline, capsys):
    assert announced_images(options("--image_column", "photo")).dataset.column_names == ["image"]
    capsys.readouterr()
    found = announced_images(options("--class_conditional"))
    assert found.count is None and "label" not in found.dataset.features
    said = capsys.readouterr().out
    assert "Not known: the number of images and the classes, since the Hub cannot be reached (no network)." in said
