"""Loading, decoding and planning of the training data."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from ddpm_hf.config import parse_command_line
from ddpm_hf.data import common_mode, load_dataset
from ddpm_hf.decoding import fit_image
from ddpm_hf.image_cache import load_images


def configure(tmp_path, *flags):
    return parse_command_line([*flags, "--cache_dir", str(tmp_path / "cache")])[0]


def load(config):
    """All images, `(N, H, W, C)`, and those left out."""
    dataset = load_dataset(config)
    images = load_images(dataset, common_mode(dataset), config)
    return np.stack(list(images)), images.unreadable


def save_pictures(folder, count=3, size=(20, 16), mode="RGB", suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
        PILImage.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}{suffix}")
    return folder


def test_embedded_digits(tmp_path):
    config = configure(tmp_path)
    pixels, _ = load(config)
    assert pixels.shape == (10_000, 28, 28, 1)
    assert pixels.dtype == np.uint8
    first = load_dataset(config).cast_column("image", Image())[0]["image"]
    np.testing.assert_array_equal(pixels[0, :, :, 0], np.asarray(first))


def test_decoded_images_are_kept_for_the_next_run(tmp_path, monkeypatch):
    config = configure(tmp_path)
    first, _ = load(config)
    monkeypatch.setattr("ddpm_hf.decoding.fit_image", None)  # decoding again would fail
    np.testing.assert_array_equal(load(config)[0], first)
    monkeypatch.undo()
    padded, _ = load(configure(tmp_path, "--resolution", "32", "--image_fit", "pad"))
    np.testing.assert_array_equal(padded[:, 2:-2, 2:-2], first)
    assert padded.sum() == first.sum()


def test_folder_of_pictures(tmp_path):
    save_pictures(tmp_path / "in" / "a b [c]", 3)
    save_pictures(tmp_path / "in" / "deeper" / "still", 2, suffix=".BMP")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    pixels, _ = load(configure(tmp_path, "--train_data_dir", str(tmp_path / "in"), "--resolution", "8"))
    assert pixels.shape == (5, 8, 8, 3)


def test_greyscale_stays_greyscale(tmp_path):
    save_pictures(tmp_path / "grey", mode="L")
    assert load(configure(tmp_path, "--train_data_dir", str(tmp_path / "grey"), "--resolution", "8"))[0].shape[-1] == 1


def test_columns_of_a_local_parquet_folder(tmp_path):
    pictures = [PILImage.new("RGB", (8, 8), (i, 0, 255)) for i in range(4)]
    features = Features({"img": Image(), "label": ClassLabel(names=["a", "b"])})
    (tmp_path / "cifar").mkdir()
    Dataset.from_dict({"img": pictures, "label": [0, 1, 0, 1]}, features).to_parquet(
        tmp_path / "cifar" / "train.parquet"
    )
    name = ("--dataset_name", str(tmp_path / "cifar"))
    pixels, _ = load(configure(tmp_path, *name, "--resolution", "8"))
    np.testing.assert_array_equal(pixels[:, 0, 0], [(i, 0, 255) for i in range(4)])
    with pytest.raises(ValueError, match=r"--image_column label: .*\['img'\]"):
        load(configure(tmp_path, *name, "--image_column", "label"))
    with pytest.raises(ValueError, match="--dataset_split test"):
        load(configure(tmp_path, *name, "--dataset_split", "test"))


def fit(picture, resolution, *flags):
    config = parse_command_line(list(flags))[0]
    config.resolution = resolution
    return fit_image(PILImage.fromarray(picture), config)


def test_crop_shrinks_the_short_side_and_cuts_out_the_centre():
    picture = np.random.default_rng(0).integers(0, 256, (4, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit(picture, 4), picture[:, 4:8])
    stripes = np.repeat(np.array([[0, 90, 180]], dtype=np.uint8), 40, axis=1).repeat(40, axis=0)
    shrunk = fit(stripes, 10)
    assert shrunk.shape == (10, 10)
    assert (shrunk[:, 3:-3] == 90).all()


def test_for_random_crops_the_long_side_stays():
    picture = np.random.default_rng(0).integers(0, 256, (4, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit(picture, 4, "--no_center_crop"), picture)
    assert fit(picture.repeat(10, axis=0).repeat(10, axis=1), 8, "--no_center_crop").shape == (8, 24, 3)


def test_celeba_crop():
    """Of 178 x 218 pixels, the 140 in the middle; other pictures are no CelebA."""
    picture = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit(picture, 140, "--celeba_crop"), picture[39:179, 19:159])
    assert parse_command_line(["--preset", "celeba-64"])[0].celeba_crop
    with pytest.raises(ValueError, match=r"200x218 pixels, .*--no_celeba_crop"):
        fit(np.zeros((218, 200, 3), dtype=np.uint8), 64, "--celeba_crop")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "there is no such folder"),
        (lambda folder: folder.mkdir(), "found no files"),
        (lambda folder: (folder.mkdir(), (folder / "a.txt").write_text("a")), "found only .txt"),
        (lambda folder: save_pictures(folder, size=(30, 20)), "30x20 pixels are fewer than --resolution 28"),
        (lambda folder: (folder.mkdir(), (folder / "broken.png").write_bytes(b"no png")), "broken.png"),
    ],
)
def test_bad_folders(tmp_path, prepare, message):
    prepare(tmp_path / "in")
    with pytest.raises(ValueError, match=message):
        load(configure(tmp_path, "--train_data_dir", str(tmp_path / "in")))
