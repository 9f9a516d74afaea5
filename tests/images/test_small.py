"""Pictures that are smaller than the resolution: all are found at once, before any is decoded."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from PIL import ImageOps

from ddpm_hf import cli
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.images.cache import load_images
from ddpm_hf.images.small import sort_out_small
from ddpm_hf.images.sources import load_dataset
from ddpm_hf.images.streaming import StreamedImages

SIZES = [(20, 20), (20, 6), (9, 8), (3, 30), (8, 8)]  # width and height; the second and fourth are small


def noise(width, height):
    random = np.random.default_rng(width * 100 + height)
    return PILImage.fromarray(random.integers(0, 256, (height, width), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for i, size in enumerate(SIZES):
        noise(*size).save(tmp_path / "in" / f"{i}.png")
    return tmp_path / "in"


def load(folder, *flags, resolution="8"):
    options = ("--train_data_dir", folder, "--resolution", resolution, "--cache_dir", folder.parent / "cache", *flags)
    config = parse_command_line([str(option) for option in options])[0]
    dataset, small = sort_out_small(load_dataset(config), config)
    return load_images(dataset, "L", config), small


def test_all_are_named_at_once_before_anything_is_decoded(folder, monkeypatch):
    monkeypatch.setattr("ddpm_hf.images.decoding.fit_image", None)
    with pytest.raises(ValueError, match="small") as error:
        load(folder)
    message = str(error.value)
    assert message.startswith("2 of 5 images have fewer pixels than --resolution 8; the smallest: ")
    assert f"{folder / '3.png'} (3x30), {folder / '1.png'} (20x6); all are listed in " in message
    assert all(way in message for way in ("--small_images upscale", "--small_images skip", "--image_fit pad"))
    listed = json.loads(Path(re.search(r"listed in (\S+\.json)", message)[1]).read_text())["small"]
    assert [(line["row"], line["height"], line["width"]) for line in listed] == [(3, 30, 3), (1, 6, 20)]


def test_they_are_enlarged(folder, capsys):
    images, small = load(folder, "--small_images", "upscale")
    assert (len(images), len(small)) == (5, 2)
    expected = ImageOps.fit(noise(3, 30), (8, 8), PILImage.Resampling.BICUBIC)
    np.testing.assert_array_equal(images[3][..., 0], expected)
    assert "They are enlarged (--small_images upscale)." in capsys.readouterr().out


def test_they_are_left_out(folder, capsys):
    images, small = load(folder, "--small_images", "skip")
    assert (len(images), len(small)) == (3, 2)
    np.testing.assert_array_equal(images[2][..., 0], noise(8, 8))
    assert "They are left out (--small_images skip)." in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"^5 of 5 images .* --small_images skip leaves none; lower --resolution"):
        load(folder, "--small_images", "skip", resolution="32")


def test_without_small_ones_the_option_changes_nothing(folder, monkeypatch):
    for name in ("1.png", "3.png"):
        (folder / name).unlink()
    first, _ = load(folder)
    monkeypatch.setattr("ddpm_hf.images.small.opened", None)  # the headers are read once
    for choice in ("upscale", "skip"):
        images, small = load(folder, "--small_images", choice)
        assert (images.folder, small) == (first.folder, [])


def test_a_broken_list_is_made_again(folder, capsys):
    load(folder, "--small_images", "skip")
    (listed,) = (folder.parent / "cache" / "ddpm_hf" / "small").iterdir()
    listed.write_text("{")
    assert len(load(folder, "--small_images", "skip")[1]) == 2
    assert "The headers are read again." in capsys.readouterr().out


@pytest.mark.parametrize(("size", "is_small"), [((8, 12), False), ((12, 8), True), ((12, 7), True)])
def test_a_picture_that_lies_on_its_side_counts_upright(tmp_path, size, is_small):
    """The orientation 6 exchanges height and width, so a picture of 8x12 pixels is one of 12x8."""
    (tmp_path / "in").mkdir()
    exif = PILImage.Exif()
    exif[0x0112] = 6
    noise(*size).save(tmp_path / "in" / "a.png", exif=exif)
    images, small = load(tmp_path / "in", "--small_images", "upscale", resolution="8x12")
    assert [(line["height"], line["width"]) for line in small] == ([size] if is_small else [])
    assert images[0].shape == (8, 12, 1)


def test_padding_takes_them_as_they_are(folder):
    images, small = load(folder, "--image_fit", "pad", resolution="32")
    assert (len(images), small) == (5, [])
    with pytest.raises(SystemExit):
        parse_command_line(["--image_fit", "pad", "--small_images", "skip"])


def test_broken_pictures_are_left_to_the_decoder(folder):
    (folder / "broken.png").write_bytes(b"no png")
    images, small = load(folder, "--small_images", "skip", "--max_unreadable", "0.5")
    assert (len(images), len(small), len(images.unreadable)) == (3, 2, 1)


@pytest.fixture
def parquet(tmp_path):
    pictures = [noise(*size) for size in SIZES]
    (tmp_path / "set").mkdir()
    rows = Dataset.from_dict({"image": pictures}, Features({"image": Image()}))
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    return tmp_path / "set"


def stream(folder, buffer_size, *flags, resolution="8"):
    flags = ["--dataset_name", folder, "--streaming", "--streaming_buffer_size", buffer_size, *flags]
    flags += ["--cache_dir", folder.parent / "cache", "--resolution", resolution]
    config = parse_command_line([str(flag) for flag in flags])[0]
    return StreamedImages(load_dataset(config), "L", config)


def test_a_stream(parquet, capsys):
    images = stream(parquet, 5, "--small_images", "upscale")
    assert [(line["height"], line["width"]) for line in images.small] == [(6, 20), (30, 3)]
    assert "2 of the first 5 images have fewer pixels than --resolution 8" in capsys.readouterr().out
    images = stream(parquet, 3, "--small_images", "skip")
    taken = [image[..., 0].tolist() for image in images.take(range(3))[0]]
    assert np.asarray(noise(8, 8)).tolist() in taken
    assert "They are left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="2 of 5 images have fewer pixels than --resolution 8; the smallest"):
        stream(parquet, 3)
    with pytest.raises(ValueError, match="--small_images skip leaves none"):
        stream(parquet, 3, "--small_images", "skip", resolution="32")


def test_a_run_lists_them_and_measures_without_them(folder, train):
    options = {"train_data_dir": folder, "resolution": 8, "small_images": "skip", "max_train_steps": 2}
    run = train(**options)
    lines = [json.loads(line) for line in (run / "small_images.jsonl").read_text().splitlines()]
    assert sorted(line["row"] for line in lines) == [1, 3]
    assert json.loads((run / "run.json").read_text())["images"] == 3
    train(**{**options, "max_train_steps": 3})  # goes on
    cli.main(["evaluate", str(run), "--num_images", "2", "--metrics", "bpd", "--bpd_timesteps", "2"])
    assert json.loads((run / "evaluation.json").read_text())["bpd"]["reference_images"] == 3
