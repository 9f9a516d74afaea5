"""Which images are held out, and what is left."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from PIL import Image

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.held_out import count_images, held_out_numbers, load_split, part_images
from ddpm_hf.images.sources import load_dataset
from ddpm_hf.images.survey import choose_format
from ddpm_hf.pixel_format import PixelFormat


def test_the_partition_is_a_fixed_function_of_seed_and_images():
    """Pinned: another choice in a later version would train on what was held out."""
    assert held_out_numbers(10, 3, seed=0, fingerprint="abc").tolist() == [3, 4, 5]
    assert held_out_numbers(1000, 100, 0, "abc").tolist() != held_out_numbers(1000, 100, 1, "abc").tolist()
    assert held_out_numbers(1000, 100, 0, "abc").tolist() != held_out_numbers(1000, 100, 0, "abd").tolist()


def test_the_parts_are_disjoint_and_complete():
    images = SimpleNamespace(folder="x", fingerprint="abc", form=None, unreadable=[], labels=np.arange(10) * 2)
    whole = type("Cache", (), {"__len__": lambda _: 10, "__getitem__": lambda _, i: int(i) * 7, **vars(images)})()
    trained_on, held_out = part_images(whole, 3, 0, "abc")
    assert (len(trained_on), len(held_out)) == (7, 3)
    assert sorted([*trained_on.numbers, *held_out.numbers]) == list(range(10))
    assert [held_out[i] for i in range(3)] == [7 * n for n in (3, 4, 5)]
    assert held_out.labels.tolist() == [6, 8, 10]
    assert len({whole.fingerprint, trained_on.fingerprint, held_out.fingerprint}) == 3
    with pytest.raises(ValueError, match=r"10 pictures can be read, .* holds out 10; none is left to train on"):
        part_images(whole, 10, 0, "abc")


@pytest.mark.parametrize(
    ("total", "fraction", "expected"),
    [
        (10, 0.25, (8, 2)),
        (2, 0.5, (1, 1)),
        (10, 0.01, "0.01 of 10 pictures holds out none; one picture is 0.1 of them"),
        (10, 0.99, "0.99 of 10 pictures leaves none to train on"),
        (1, 0.5, "0.5 of 1 pictures holds out none"),
    ],
)
def test_counts_are_known_before_anything_is_decoded(total, fraction, expected):
    config = TrainingConfig(validation_fraction=fraction)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            count_images(total, None, config)
    else:
        assert count_images(total, None, config) == expected


def save(folder, shade, count=1, mode="L"):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new(mode, (8, 8), shade).save(folder / f"{i}.png")


def load(tmp_path, **options):
    config = TrainingConfig(train_data_dir=str(tmp_path), resolution=8, cache_dir=str(tmp_path / "cache"), **options)
    dataset = load_dataset(config)
    return dataset, load_split(dataset, choose_format(dataset, config), config)


def test_a_split_of_a_sorted_folder(tmp_path, capsys):
    save(tmp_path / "train" / "cat", 10, 2)
    save(tmp_path / "train" / "dog", 20)
    save(tmp_path / "val" / "dog", 30, 2)
    save(tmp_path / "val" / "eel", 40)
    dataset, split = load(tmp_path, validation_split="validation", class_conditional=True)
    assert (len(dataset), len(split)) == (3, 3)
    assert split.features["label"].names == ["cat", "dog"]
    assert split["label"] == [1, 1, -1]  # the numbers of the training pictures
    said = capsys.readouterr().out + capsys.readouterr().err
    assert "no training picture is of eel" in said
    assert "--validation_split validation takes the pictures" in said
    with pytest.raises(ValueError, match=r"--validation_split test: .* holds the folders train, val"):
        load(tmp_path, validation_split="test")
    with pytest.raises(ValueError, match="--validation_split val: 3 of its pictures are trained on, too"):
        load(tmp_path, validation_split="val", dataset_split="train+validation")


def test_a_split_of_other_pictures_is_refused(tmp_path):
    save(tmp_path / "train", 10)
    save(tmp_path / "val", 20, mode="RGB")
    with pytest.raises(ValueError, match="val holds colour pictures, and those to train on are greyscale"):
        load(tmp_path, validation_split="val")


def test_a_split_of_a_saved_data_set(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    rows = {name: {"image": [Image.new("L", (8, 8), i) for i in range(n)]} for name, n in (("train", 3), ("test", 2))}
    saved = {name: datasets.Dataset.from_dict(columns, features) for name, columns in rows.items()}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    config = TrainingConfig(dataset_name=str(tmp_path / "saved"), resolution=8, validation_split="test")
    dataset = load_dataset(config)
    split = load_split(dataset, PixelFormat("L", 1), config)
    assert count_images(len(dataset), len(split), config) == (3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 0.1, "validation_split": "test"}, "both hold images out; pass one of them"),
        ({"validation_fraction": 0}, "--validation_fraction 0: expected more than 0 and less than 1"),
        ({"validation_fraction": 1.0}, "--validation_fraction 1.0: expected more than 0 and less than 1"),
        ({"validation_fraction": 1.5}, "--validation_fraction 1.5: expected 0 to 1"),
        ({"validation_split": "test"}, "the embedded digits have no splits"),
        ({"validation_split": "train", "dataset_name": "a/b"}, "the images of train are trained on"),
        ({"validation_split": "train[:9%]", "dataset_name": "a/b"}, "are trained on"),
        ({"validation_split": "test", "dataset_name": "a/b", "dataset_split": "train+test"}, "images of test are"),
        ({"validation_steps": 5}, "--validation_steps needs images held out"),
        ({"keep_best": "loss"}, "--keep_best loss needs images held out"),
        ({"keep_best": "fid"}, "--keep_best fid needs --eval_steps, and fid among --eval_metrics"),
        ({"keep_best": "recall", "eval_steps": 5, "eval_metrics": "bpd,fid"}, "and prdc among --eval_metrics"),
        ({"keep_best": "best"}, "--keep_best best: expected one of none, loss"),
        (
            {"streaming": True, "dataset_name": "a/b", "max_train_steps": 5, "validation_fraction": 0.5},
            "--validation_fraction keeps the images held out on the disk, and --streaming leaves none",
        ),
    ],
)
def test_options_that_do_not_fit_together(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


def test_slices_of_one_split_fit_together():
    halves = {"validation_split": "train[90%:]", "dataset_split": "train[:90%]", "dataset_name": "a/b"}
    assert TrainingConfig(**halves).validation_split == "train[90%:]"
