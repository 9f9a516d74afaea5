"""Data sets that are read as they come: the same guarantees as for those that are decoded once."""

import numpy as np
import pytest
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from runs import equal, metrics

from ddpm_hf.config import parse_command_line
from ddpm_hf.data import common_mode, load_dataset
from ddpm_hf.streaming import StreamedImages

COUNT, FILES = 60, 4


@pytest.fixture
def parquet(tmp_path):
    """A folder of four parquet files of 15 pictures; picture i is of the grey i."""
    (tmp_path / "set").mkdir()
    for file in range(FILES):
        pictures = [PILImage.new("L", (8, 8), i) for i in range(file, COUNT, FILES)]
        rows = Dataset.from_dict({"image": pictures}, Features({"image": Image()}))
        rows.to_parquet(tmp_path / "set" / f"train-{file:05d}.parquet")
    return tmp_path / "set"


def stream(folder, buffer_size=7, state=None, seed=0, max_unreadable=0.01):
    flags = ["--dataset_name", folder, "--streaming", "--streaming_buffer_size", buffer_size, "--resolution", 8]
    flags += ["--max_unreadable", max_unreadable]
    config = parse_command_line([str(flag) for flag in [*flags, "--seed", seed]])[0]
    dataset = load_dataset(config)
    assert common_mode(dataset) == "L"
    return StreamedImages(dataset, "L", config, state)


def greys(images, positions):
    return [int(image[0, 0, 0]) for image in images.take(positions)[0]]


@pytest.mark.parametrize("buffer_size", [1, 7, 20, 100])
def test_every_image_comes_once_in_an_epoch(parquet, buffer_size):
    """Epochs are whole where blocks end with them; 60 epochs of blocks always are."""
    epochs = buffer_size if COUNT % buffer_size else 1
    seen = greys(stream(parquet, buffer_size), range(COUNT * epochs))
    assert sorted(seen) == sorted(list(range(COUNT)) * epochs)
    assert seen != sorted(seen)
    assert seen == greys(stream(parquet, buffer_size), range(COUNT * epochs))
    assert seen != greys(stream(parquet, buffer_size, seed=1), range(COUNT * epochs))


def test_epochs_differ(parquet):
    seen = greys(stream(parquet, 60), range(180))
    assert seen[:60] != seen[60:120] != seen[120:]


@pytest.mark.parametrize("stop", [1, 7, 20, 61, 100])
def test_a_stream_goes_on_from_where_it_was(parquet, stop):
    whole = greys(stream(parquet), range(130))
    first = stream(parquet)
    greys(first, range(stop))
    assert greys(stream(parquet, state=first.state()), range(stop, 130)) == whole[stop:]


def test_what_cannot_be_read_is_left_out(parquet):
    broken = [{"bytes": b"broken", "path": "b.png"}, None]
    Dataset.from_dict({"image": broken}, Features({"image": Image()})).to_parquet(parquet / "train-broken.parquet")
    images = stream(parquet, 60, max_unreadable=0.1)
    assert sorted(greys(images, range(60))) == list(range(60))
    assert [line["reason"] for line in images.unreadable] == [
        "the file is no picture, or of an unknown format",
        "there is no image",
    ]
    with pytest.raises(
        ValueError, match=r"2 of 62 images cannot be read, and --max_unreadable 0.01 allows 0.*first block"
    ):
        stream(parquet, 60)


def test_a_run_over_a_stream_resumes_bit_for_bit(parquet, train):
    options = {
        "dataset_name": parquet,
        "resolution": 8,
        "streaming_buffer_size": 10,
        "checkpointing_steps": 3,
        "max_train_steps": 8,
        "lr_scheduler": "constant",
    }
    whole = train("whole", "--streaming", **options)
    train("parts", "--streaming", **{**options, "max_train_steps": 5})
    parts = train("parts", "--streaming", **options)
    assert equal(whole, parts)
    assert [m["loss"] for m in metrics(whole)] == [m["loss"] for m in metrics(parts)]
    assert np.isfinite([m["loss"] for m in metrics(whole)]).all()


@pytest.mark.parametrize("flags", [[], ["--train_data_dir", "pictures"], ["--dataset_name", "x", "--num_epochs", "3"]])
def test_a_stream_has_no_known_length(flags, capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--streaming", *flags])
    assert "--streaming reads a data set of unknown length" in capsys.readouterr().err
