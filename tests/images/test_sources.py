"""Finding the training images, bringing them to size, and keeping them decoded."""

import os
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from platforms import needs_linux
from raw_png import raw_png

from ddpm_hf.command_line import parse_command_line
from ddpm_hf.images.cache import load_images
from ddpm_hf.images.decoding import fit_image
from ddpm_hf.images.sources import load_dataset
from ddpm_hf.images.stored import read_heif
from ddpm_hf.images.survey import common_mode


def configure(tmp_path, *flags):
    return parse_command_line([*flags, "--cache_dir", str(tmp_path / "cache")])[0]


def load(config):
    """Return all images, `(N, H, W, C)`, and the list of those left out."""
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
    monkeypatch.setattr("ddpm_hf.images.decoding.fit_image", None)  # decoding them again would fail
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
    """Cut out the 140 x 140 pixels in the middle of 178 x 218, and refuse other sizes."""
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
        (
            lambda folder: (folder.mkdir(), (folder / "a.heic").write_text("a")),
            "only .heic .pip install pillow-heif",
        ),
        (lambda folder: save_pictures(folder, size=(30, 20)), "30x20 pixels are fewer than --resolution 64"),
        (lambda folder: (folder.mkdir(), (folder / "broken.png").write_bytes(b"no png")), "broken.png"),
    ],
)
def test_bad_folders(tmp_path, prepare, message):
    prepare(tmp_path / "in")
    with pytest.raises(ValueError, match=message):
        load(configure(tmp_path, "--train_data_dir", str(tmp_path / "in")))


# ---- Folders of pictures -------------------------------------------------------------------------------------------


def names(dataset, folder):
    return [Path(row["image"]["path"]).relative_to(folder).as_posix() for row in dataset]


def from_folder(tmp_path, *flags):
    return configure(tmp_path, "--train_data_dir", str(tmp_path / "in"), "--resolution", "8", *flags)


@needs_linux
def test_other_files_are_named(tmp_path, capsys):
    folder = save_pictures(tmp_path / "in")
    save_pictures(tmp_path / "elsewhere")
    for name in ("a.npy", "b.npy", "c.hEiC", "d.tar", "e", "notes.txt", ".DS_Store", ".1.png", "metadata.csv"):
        (folder / name).write_bytes(b"?")
    for name in (b"\xff.png", b"line\nbreak.a b"):
        (folder / os.fsdecode(name)).write_bytes(b"?")
    (folder / "empty.png").mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(folder)
    (folder / "gone.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    assert len(load_dataset(from_folder(tmp_path))) == 3
    assert capsys.readouterr().out == (
        "Left out of pictures: 1 .heic (pip install pillow-heif reads them), 2 .npy, 1 .tar (unpack it, or use .zip), "
        "1 broken link, 1 empty folder, 1 file of another kind, 1 hidden picture, 2 linked folders (name one itself, "
        "or copy its pictures), 1 misnamed file (the name is not UTF-8), 1 special file, 1 suffixless file.\n"
    )


def test_heic_is_read_where_pillow_heif_is(tmp_path, monkeypatch):
    """A stand-in for the module makes .heic another name of PNG."""

    class PillowHeif:
        @staticmethod
        def register_heif_opener():
            PILImage.register_extensions("PNG", [".heic"])

    monkeypatch.setitem(sys.modules, "pillow_heif", PillowHeif)
    monkeypatch.setattr(PILImage, "EXTENSION", dict(PILImage.EXTENSION))
    folder = save_pictures(tmp_path / "in", 2)
    (folder / "0.png").rename(folder / "0.heic")
    read_heif()
    assert len(load(from_folder(tmp_path))[0]) == 2


def test_pictures_in_archives(tmp_path, capsys):
    folder = save_pictures(tmp_path / "in")
    with zipfile.ZipFile(folder / "more.ZIP", "w") as archive, tarfile.open(folder / "tar.tar.gz", "w:gz") as tar:
        for name in ("1.png", "deep/2.png", "__MACOSX/._1.png"):
            archive.write(folder / "0.png", name)
            tar.add(folder / "0.png", name)
    (folder / "broken.zip").write_bytes(b"PK")
    pixels, unreadable = load(from_folder(tmp_path))
    assert unreadable == []
    assert len(pixels) == 5
    np.testing.assert_array_equal(pixels[3:], pixels[[0, 0]])
    said = capsys.readouterr().out
    assert "1 .gz (unpack it, or use .zip), 1 broken archive, 'broken.zip' (File is not a zip file)" in said


def test_samples_of_runs_are_left_out(tmp_path, capsys):
    folder = save_pictures(tmp_path / "in")
    save_pictures(folder / "mine" / "samples", 2)
    save_pictures(folder / "run" / "samples", 4)
    config = from_folder(tmp_path, "--output_dir", str(folder / "mine"))
    (folder / "run" / "config.json").write_text(config.to_json())
    assert len(load_dataset(config)) == 3
    assert "Left out of pictures: 6 run pictures (in the folders of runs)." in capsys.readouterr().out
    config.train_data_dir = str(folder / "run")
    with pytest.raises(ValueError, match=r"in.run is the folder of a run"):
        load_dataset(config)


@pytest.mark.parametrize(
    ("flags", "count", "said"),
    [
        ([], 3, "--dataset_split train takes the pictures of .* in train .3.; not those in test .2., val .1.\\."),
        (["--dataset_split", "validation"], 1, "in val .1."),
        (["--dataset_split", "train+test"], 5, "in test .2., train .3.; not those in val"),
        (["--dataset_split", "dev+train+test"], 6, None),
    ],
)
def test_splits_of_a_folder(tmp_path, capsys, flags, count, said):
    for split, number in (("train", 3), ("test", 2), ("val", 1)):
        save_pictures(tmp_path / "in" / split, number)
    assert len(load_dataset(from_folder(tmp_path, *flags))) == count
    out = capsys.readouterr().out
    assert re.search(said, out) if said else not out


def test_missing_splits(tmp_path):
    save_pictures(tmp_path / "in" / "train")
    with pytest.raises(ValueError, match=r"--dataset_split test: .* holds the folders train"):
        load_dataset(from_folder(tmp_path, "--dataset_split", "test"))
    save_pictures(tmp_path / "in" / "cat")
    assert len(load_dataset(from_folder(tmp_path))) == 6
    with pytest.raises(ValueError, match=r"--dataset_split test: .* is not sorted into folders of splits"):
        load_dataset(from_folder(tmp_path, "--dataset_split", "test"))
    Dataset.from_dict({"image": [None]}, Features({"image": Image()})).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="--dataset_split test cannot be loaded: expected one of its splits, train"):
        load_dataset(configure(tmp_path, "--dataset_name", str(tmp_path / "saved"), "--dataset_split", "test"))


@pytest.mark.parametrize("text", ["file_name,text\n0.png,a\n", "file_name\ngone.png\n", '"', ""])
def test_metadata_drops_no_pictures(tmp_path, text):
    (save_pictures(tmp_path / "in") / "metadata.csv").write_text(text)
    assert len(load_dataset(from_folder(tmp_path))) == 3


def test_a_folder_of_pictures_as_a_data_set(tmp_path, capsys):
    """`datasets` reads the folder by its own rules, and a note says so."""
    (save_pictures(tmp_path / "in") / "metadata.csv").write_text("file_name,text\n0.png,a\n")
    name = ("--dataset_name", str(tmp_path / "in"))
    assert len(load_dataset(configure(tmp_path, *name))) == 1
    assert "where a metadata file lists pictures, `datasets` reads only these" in capsys.readouterr().out
    (tmp_path / "in" / "metadata.csv").write_text('"')
    with pytest.raises(ValueError, match=r"--dataset_split train cannot be loaded: .*EOF inside string"):
        load_dataset(configure(tmp_path, *name, "--cache_dir", str(tmp_path / "other")))


def test_metadata_with_several_pictures_a_row(tmp_path):
    folder = save_pictures(tmp_path / "in")
    (folder / "metadata.jsonl").write_text('{"image_file_name": "0.png", "mask_file_name": "1.png"}\n')
    assert names(load_dataset(from_folder(tmp_path, "--image_column", "mask")), folder) == ["1.png"]
    with pytest.raises(ValueError, match=r"--image_column x: the data set's image columns are \['image', .*'mask'"):
        load_dataset(from_folder(tmp_path, "--image_column", "x"))


@pytest.mark.parametrize(
    ("kind", "largest", "white"),
    [
        ("uint16", 4095, 4095),
        ("uint16", 1000, 1023),
        ("uint16", 16000, 16383),
        ("uint16", 60000, 65535),
        ("int32", 200, 255),
        ("float32", 1, 1),
        ("float32", 2, 255),
    ],
)
def test_white_is_one_for_the_data_set(tmp_path, capsys, kind, largest, white):
    """The second picture is dark. Alone it would be scaled by another white."""
    (tmp_path / "in").mkdir()
    for i, number in enumerate((largest, largest / 4)):
        PILImage.fromarray(np.full((8, 8), number).astype(kind)).save(tmp_path / "in" / f"{i}.tif")
    pixels, _ = load(from_folder(tmp_path))
    expected = [round(255 * float(np.array(number).astype(kind)) / white) for number in (largest, largest / 4)]
    assert pixels[:, 0, 0, 0].tolist() == expected
    assert ("White is " in capsys.readouterr().out) == (white not in (65535, 1))


def test_a_brighter_picture_than_those_looked_at_is_refused(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for i, number in enumerate((4000, 4096)):
        PILImage.fromarray(np.full((8, 8), number, dtype=np.uint16)).save(tmp_path / "in" / f"{i}.png")
    monkeypatch.setattr("ddpm_hf.images.survey.examples", lambda dataset: dataset.select([0]))
    (line,) = load(from_folder(tmp_path, "--max_unreadable", "0.5"))[1]
    assert line["image"].endswith("1.png")
    assert "expected numbers from 0 to 4095, found 4096 to 4096" in line["reason"]


def test_dark_colours_of_sixteen_bits_are_noted(tmp_path, capsys):
    """The picture has 16 bits a colour, of which the lower 12 are set. Pillow cannot write it."""
    row = b"\0" + (4095).to_bytes(2, "big") * 3 * 8
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(raw_png(8, 8, 16, 2, row * 8))
    load(from_folder(tmp_path))
    assert "The pictures of 16 bits a colour are nearly black" in capsys.readouterr().out


@pytest.mark.parametrize("inside", [False, True])
def test_a_picture_of_any_size_is_not_read_whole(tmp_path, monkeypatch, inside):
    monkeypatch.setattr("ddpm_hf.images.stored.MOST_BYTES", 1000)
    folder = save_pictures(tmp_path / "in", 2, size=(8, 8))
    (folder / "bomb.png").write_bytes(bytes(10_000))
    if inside:
        with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(folder / "bomb.png", "bomb.png")
        (folder / "bomb.png").unlink()
    (line,) = load(from_folder(tmp_path, "--max_unreadable", "0.5"))[1]
    assert line["reason"] == "the file has more than 1,000 bytes"


# ---- The decoded images --------------------------------------------------------------------------------------------


def open_cache(config):
    dataset = load_dataset(config)
    return load_images(dataset, common_mode(dataset), config)


def swap_bytes(path, at=100):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


SPOIL = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "changed": swap_bytes,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"}"),
    "removed": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "JSON": lambda path: path.write_text('{"files": {"pixels.bin": 3}}'),
}


@pytest.mark.parametrize("name", ["pixels.bin", "index.npy", "labels.npy", "unreadable.jsonl", "manifest.json"])
@pytest.mark.parametrize("how", SPOIL)
def test_a_spoilt_cache_is_named_and_made_again(tmp_path, capsys, name, how):
    for kind in ("cat", "dog"):
        save_pictures(tmp_path / "in" / kind)
    (tmp_path / "in" / "dog" / "broken.png").write_bytes(b"broken")
    config = from_folder(tmp_path, "--class_conditional", "--max_unreadable", "0.5")
    first = open_cache(config)
    SPOIL[how](first.folder / name)
    again = open_cache(config)
    said = capsys.readouterr().out
    assert "The cache of decoded images is spoilt: " in said
    assert name in said or (name, how) == (
        "manifest.json",
        "changed",
    )  # the hash of another file
    np.testing.assert_array_equal(np.stack(list(first if name != "pixels.bin" else again)), np.stack(list(again)))
    assert again.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(again.unreadable) == 1
    assert again.fingerprint == first.fingerprint
    assert [path.name for path in again.folder.parent.iterdir()] == [again.folder.name]
    open_cache(config)
    assert not capsys.readouterr().out


def test_a_read_that_is_cut_short_is_noticed(tmp_path):
    save_pictures(tmp_path / "in")
    images = open_cache(from_folder(tmp_path))
    os.truncate(images.folder / "pixels.bin", 400)
    assert images[1].shape == (8, 8, 3)
    with pytest.raises(OSError, match=r"pixels.bin was cut while it was in use: image 2 has 16 of 192 bytes"):
        images[2]


def test_everything_is_on_the_disk_before_the_cache_is_there(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("ddpm_hf.manifest.sync", lambda path: synced.append(path.name))
    monkeypatch.setattr("ddpm_hf.files.sync", lambda path: synced.append(path.name))
    save_pictures(tmp_path / "in")
    folder = open_cache(from_folder(tmp_path)).folder
    assert {"pixels.bin", "index.npy", "unreadable.jsonl", ".unfinished-manifest.json"} < set(synced)
    assert synced[-2].startswith(f"{folder.name}.")
    assert synced[-1] == folder.parent.name


def test_the_fingerprint_is_of_the_content(tmp_path):
    prints = []
    for name in ("here", "there"):
        save_pictures(tmp_path / name / "pictures" / name, 3)
        config = from_folder(tmp_path, "--cache_dir", str(tmp_path / name))
        config.train_data_dir = str(tmp_path / name)
        prints.append(open_cache(config).fingerprint)
    assert prints[0] == prints[1]
    save_pictures(tmp_path / "there", 1)
    assert open_cache(config).fingerprint != prints[0]


@pytest.mark.slow
def test_several_processes_make_a_cache_at_once(forks, tmp_path):
    save_pictures(tmp_path / "in", 50)
    config = from_folder(tmp_path)
    code = (
        f"import sys; sys.path.append({str(Path(__file__).parent)!r});"
        "from test_sources import *; config = configure(Path(sys.argv[1]), *sys.argv[2:]);"
        "print(open_cache(config).fingerprint)"
    )
    flags = ["--train_data_dir", config.train_data_dir, "--resolution", "8"]
    both = [forks.start("-c", code, tmp_path, *flags) for _ in range(2)]
    assert [process.wait().returncode for process in both] == [0, 0], both[0].stderr + both[1].stderr
    assert {process.stdout for process in both} == {open_cache(config).fingerprint + "\n"}


def test_a_faster_run_and_a_killed_one(tmp_path, monkeypatch):
    save_pictures(tmp_path / "in")
    config = from_folder(tmp_path)
    folder = open_cache(config).folder
    real, process = os.rename, subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, live = (folder.with_name(f"key.{platform.node()}.{pid}.0.tmp") for pid in (process.pid, os.getppid()))
    for path in (dead, live):
        path.mkdir()
        os.utime(path, (0, 0))
    kept = folder.rename(tmp_path / "kept")

    def overtaken(source, target):
        real(kept, target)
        real(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    assert len(open_cache(config)) == 3
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([folder.name, live.name])


def test_a_picture_beside_folders_of_splits_is_noted(tmp_path, capsys):
    for name in ("train", "test"):
        save_pictures(tmp_path / "in" / name, 2)
    flags = ("--train_data_dir", str(tmp_path / "in"), "--resolution", "8")
    assert len(load(configure(tmp_path, *flags))[0]) == 2
    (tmp_path / "in" / "train" / "0.png").rename(tmp_path / "in" / "0.png")
    assert len(load(configure(tmp_path, *flags))[0]) == 4
    assert "are taken, also those in test, train" in capsys.readouterr().out
