"""Loading, decoding and planning of the training data."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

from ddpm_hf.config import parse_command_line
from ddpm_hf.data import BatchPlan, common_mode, fit_image, load_dataset, load_pixels


def configure(tmp_path, *flags):
    return parse_command_line([*flags, "--cache_dir", str(tmp_path / "cache")])[0]


def load(config):
    dataset = load_dataset(config)
    return load_pixels(dataset, common_mode(dataset), config)


def save_pictures(folder, count=3, size=(20, 16), mode="RGB", suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
        PILImage.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}{suffix}")
    return folder


def test_embedded_digits(tmp_path):
    config = configure(tmp_path)
    pixels = load(config)
    assert pixels.shape == (10_000, 28, 28, 1)
    assert pixels.dtype == np.uint8
    assert isinstance(pixels, np.memmap)
    first = load_dataset(config).cast_column("image", Image())[0]["image"]
    np.testing.assert_array_equal(pixels[0, :, :, 0], np.asarray(first))


def test_decoded_images_are_kept_for_the_next_run(tmp_path, monkeypatch):
    config = configure(tmp_path)
    first = load(config)
    monkeypatch.setattr("ddpm_hf.data.fit_image", None)  # decoding again would fail
    np.testing.assert_array_equal(load(config), first)
    monkeypatch.undo()
    padded = load(configure(tmp_path, "--resolution", "32", "--image_fit", "pad"))
    np.testing.assert_array_equal(padded[:, 2:-2, 2:-2], first)
    assert padded.sum() == first.sum()


def test_folder_of_pictures(tmp_path):
    save_pictures(tmp_path / "in" / "a b [c]", 3)
    save_pictures(tmp_path / "in" / "deeper" / "still", 2, suffix=".BMP")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    pixels = load(configure(tmp_path, "--train_data_dir", str(tmp_path / "in"), "--resolution", "8"))
    assert pixels.shape == (5, 8, 8, 3)


def test_greyscale_stays_greyscale(tmp_path):
    save_pictures(tmp_path / "grey", mode="L")
    assert load(configure(tmp_path, "--train_data_dir", str(tmp_path / "grey"), "--resolution", "8")).shape[-1] == 1


def test_columns_of_a_local_parquet_folder(tmp_path):
    pictures = [PILImage.new("RGB", (8, 8), (i, 0, 255)) for i in range(4)]
    features = Features({"img": Image(), "label": ClassLabel(names=["a", "b"])})
    (tmp_path / "cifar").mkdir()
    Dataset.from_dict({"img": pictures, "label": [0, 1, 0, 1]}, features).to_parquet(
        tmp_path / "cifar" / "train.parquet"
    )
    name = ("--dataset_name", str(tmp_path / "cifar"))
    pixels = load(configure(tmp_path, *name, "--resolution", "8"))
    np.testing.assert_array_equal(pixels[:, 0, 0], [(i, 0, 255) for i in range(4)])
    with pytest.raises(ValueError, match=r"--image_column label: .*\['img'\]"):
        load(configure(tmp_path, *name, "--image_column", "label"))
    with pytest.raises(ValueError, match="--dataset_split test"):
        load(configure(tmp_path, *name, "--dataset_split", "test"))


def test_crop_shrinks_the_short_side_and_cuts_out_the_centre():
    picture = np.random.default_rng(0).integers(0, 256, (4, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_image(PILImage.fromarray(picture), 4, "crop"), picture[:, 4:8])
    stripes = np.repeat(np.array([[0, 90, 180]], dtype=np.uint8), 40, axis=1).repeat(40, axis=0)
    shrunk = fit_image(PILImage.fromarray(stripes), 10, "crop")
    assert shrunk.shape == (10, 10)
    assert (shrunk[:, 3:-3] == 90).all()


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


# ---- The batch plan -------------------------------------------------------------------------------------------------


def make_plan(count=10, batch_size=4, seed=0, random_flip=False):
    pixels = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1) * np.array([[[1], [0]]], dtype=np.uint8)
    return BatchPlan(pixels, batch_size, torch.ones(1000), seed, random_flip, torch.device("cpu"))


def images_of(plan, g):
    return ((plan.micro_batch(g)[0][:, 0].amax((1, 2)) + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 25])
def test_every_image_comes_once_in_an_epoch(batch_size):
    plan = make_plan(10, batch_size)
    seen = [image for g in range(30 // batch_size + 1) for image in images_of(plan, g)]
    for epoch in range(len(seen) // 10):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_a_micro_batch_is_a_function_of_seed_and_number():
    first, again, other = make_plan(seed=1), make_plan(seed=1), make_plan(seed=2)
    again.micro_batch(7)  # whatever was asked for before
    torch.randn(3)
    for a, b in zip(first.micro_batch(5), again.micro_batch(5)):
        assert torch.equal(a, b)
    assert not torch.equal(first.micro_batch(5)[2], other.micro_batch(5)[2])
    assert not torch.equal(first.micro_batch(5)[2], first.micro_batch(6)[2])


def test_distributions():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 1), dtype=np.uint8)
    plan = BatchPlan(pixels, 2000, torch.ones(10), 0, True, torch.device("cpu"))
    x_0, t, eps = plan.micro_batch(0)
    assert x_0.shape == eps.shape == (2000, 1, 4, 4)
    assert x_0.min() == -1
    assert x_0.max() == 1
    assert eps.mean().item() == pytest.approx(0, abs=0.03)
    assert eps.std().item() == pytest.approx(1, abs=0.03)
    assert torch.bincount(t, minlength=10).min() > 140
    weighted = BatchPlan(pixels, 2000, torch.tensor([0.0, 1.0, 3.0]), 0, True, torch.device("cpu")).micro_batch(0)[1]
    assert (torch.bincount(weighted) / 2000).tolist() == pytest.approx([0, 0.25, 0.75], abs=0.03)
    plain = BatchPlan(pixels, 2000, torch.ones(10), 0, False, torch.device("cpu")).micro_batch(0)[0]
    mirrored = (x_0 != plain).flatten(1).any(1)
    assert torch.equal(x_0[mirrored], plain[mirrored].flip(-1))
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.05)
