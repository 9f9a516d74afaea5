"""Decoding of pictures: of every mode, and broken in every way."""

import io
import json
import os
import zipfile

import fsspec
import numpy as np
import pytest
from PIL import Image
from platforms import needs_pipes
from raw_png import raw_png

from ddpm_hf.command_line import parse_command_line
from ddpm_hf.images.decoding import decode_image, is_greyscale, to_eight_bits
from ddpm_hf.images.stored import UnreadableImage

GREY = np.random.default_rng(0).integers(0, 256, (12, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (12, 8, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(2).integers(0, 256, (12, 8, 1), dtype=np.uint8)


def stored(image, form="PNG", **options):
    """Return an image as `datasets` gives it, undecoded."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return {"bytes": file.getvalue(), "path": None}


def decoded(image, mode):
    config = parse_command_line(["--resolution", "8"])[0]
    return decode_image(image, mode, config)


# ---- Modes ---------------------------------------------------------------------------------------------------------


def on_white(colours, alpha):
    a = alpha / 255
    return colours * a + 255 * (1 - a)


def palette_with_transparency():
    image = Image.fromarray(COLOUR).quantize(16)
    image.info["transparency"] = 3
    return image


RGBA = Image.fromarray(np.concatenate([COLOUR, ALPHA], axis=2))
GREYS = COLOUR @ np.array([0.299, 0.587, 0.114])
PALETTE = palette_with_transparency()
PALETTE_COLOURS = np.asarray(PALETTE.convert("RGB"), dtype=float)
PALETTE_COLOURS[np.asarray(PALETTE) == 3] = 255


@pytest.mark.parametrize(
    ("image", "mode", "expected"),
    [
        (Image.fromarray(GREY > 99), "L", (GREY > 99) * 255.0),
        (Image.fromarray(GREY), "L", GREY),
        (Image.fromarray(GREY), "RGB", GREY[..., None].repeat(3, axis=2)),
        (Image.fromarray(np.concatenate([GREY[..., None], ALPHA], axis=2)), "L", on_white(GREY, ALPHA[..., 0])),
        (Image.fromarray(COLOUR), "RGB", COLOUR),
        (Image.fromarray(COLOUR), "L", GREYS),
        (RGBA, "RGB", on_white(COLOUR, ALPHA)),
        (PALETTE, "RGB", PALETTE_COLOURS),
        (Image.fromarray(COLOUR).convert("CMYK"), "RGB", COLOUR),
        (Image.fromarray(COLOUR).convert("YCbCr"), "RGB", COLOUR),
        (Image.fromarray(GREY.astype(np.uint16) * 257), "L", GREY),
        (Image.fromarray(GREY.astype(">u2") * 257), "L", GREY),
        (Image.fromarray(GREY.astype(np.int32) * 257), "RGB", GREY[..., None].repeat(3, axis=2)),
        (Image.fromarray(GREY.astype(np.float32) / 255), "L", GREY),
        (Image.fromarray(GREY.astype(np.float32)), "L", GREY),
    ],
)
def test_any_mode_becomes_eight_bits(image, mode, expected):
    assert np.abs(np.asarray(to_eight_bits(image, mode), dtype=float) - expected).max() <= 3  # YCbCr rounds
    assert to_eight_bits(image, mode).mode == mode


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_lab_and_hsv(mode):
    """Pillow converts these modes only through RGB."""
    for image in (Image.fromarray(COLOUR, "RGB").convert("HSV"), Image.new("LAB", (8, 12))):
        assert to_eight_bits(image, mode).mode == mode


@pytest.mark.parametrize("numbers", [[[-1.0, 0.5]], [[0.0, 300.0]], [[float("nan"), 0.5]]])
def test_numbers_of_an_unknown_range_are_refused(numbers):
    with pytest.raises(ValueError, match="expected numbers from 0 to"):
        to_eight_bits(Image.fromarray(np.array(numbers, dtype=np.float32)), "L")


def test_pictures_are_turned_upright():
    """EXIF orientation 6: the picture has to be turned to the right by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = stored(Image.fromarray(COLOUR), "PNG", exif=exif)
    np.testing.assert_array_equal(decoded(image, "RGB"), np.rot90(COLOUR, -1)[:, 2:-2])


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.fromarray(COLOUR[:8]), Image.new("RGB", (8, 8), "red")]
    image = stored(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decoded(image, "RGB"), COLOUR[:8])


def test_headers_tell_greyscale():
    assert is_greyscale(stored(Image.fromarray(GREY)))
    assert is_greyscale(stored(Image.fromarray(GREY.astype(np.uint16) * 257)))
    assert is_greyscale(stored(Image.fromarray(GREY.astype(np.float32)), "TIFF"))
    assert not is_greyscale(stored(RGBA))


# ---- Broken pictures -----------------------------------------------------------------------------------------------


JPEG, PNG = (stored(Image.fromarray(COLOUR.repeat(5, 0).repeat(5, 1)), form)["bytes"] for form in ("JPEG", "PNG"))
BROKEN = {
    "empty": b"",
    "text": b"this is no picture",
    "cut JPEG": JPEG[: len(JPEG) // 2],
    "cut PNG": PNG[: len(PNG) // 2],
    "cut header": PNG[:20],
    "garbled PNG": PNG[:60] + bytes(len(PNG) - 120) + PNG[-60:],
    "bomb": raw_png(40_000, 40_000, 8, 0, b"0"),  # a few bytes
    "nan": stored(Image.fromarray(np.full((12, 8), np.nan, dtype=np.float32)), "TIFF")["bytes"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_unreadable(name):
    with pytest.raises(UnreadableImage) as error:
        decoded({"bytes": BROKEN[name], "path": None}, "RGB")
    assert str(error.value)
    assert "0x" not in str(error.value)  # no address in memory, so that every run gives the same reason


def test_missing_images(tmp_path):
    for image in (None, {"bytes": None, "path": None}, {"bytes": None, "path": str(tmp_path / "gone.png")}):
        with pytest.raises(UnreadableImage):
            decoded(image, "L")


def test_paths_of_datasets(tmp_path):
    """Read from ZIP files and addresses, written as `datasets` writes them; memory:// stands for hf://."""
    picture = stored(Image.fromarray(COLOUR[:8]))["bytes"]
    fsspec.filesystem("memory").pipe("/a.png", picture)
    for i in (0, 1):  # the second archive replaces the first
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("deep/ä :.png", picture)
            archive.writestr(f"{i}.png", picture)
        for path in (f"zip://deep/ä :.png::{tmp_path}/a.zip", f"zip://{i}.png::{tmp_path}/a.zip", "memory://a.png"):
            image = decoded({"bytes": None, "path": path}, "RGB")
            np.testing.assert_array_equal(image, COLOUR[:8])
    for path in (f"zip://gone.png::{tmp_path}/a.zip", f"zip://a.png::{tmp_path}/b.zip", "memory://b.png"):
        with pytest.raises(UnreadableImage):
            decoded({"bytes": None, "path": path}, "RGB")


@needs_pipes
def test_pipes_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(UnreadableImage, match="there is no such file"):
            decoded({"bytes": None, "path": str(tmp_path / name)}, "L")


# ---- A hostile folder ----------------------------------------------------------------------------------------------

NAMES = ["plain", "two words", "🦔 hedgehog", "line\nbreak", "[1-3]*?", "100%", "dots..", "ümlaut", '"quoted"', "#hash"]


def good_pictures():
    """Return a picture of each mode and format, as bytes with a suffix."""
    colour = Image.fromarray(COLOUR)
    exif = Image.Exif()
    exif[0x0112] = 8
    images = [
        (Image.fromarray(GREY > 99), "PNG", {}),
        (Image.fromarray(GREY), "PNG", {}),
        (Image.fromarray(np.concatenate([GREY[..., None], ALPHA], axis=2)), "PNG", {}),
        (PALETTE, "PNG", {"transparency": 3}),
        (palette_with_transparency(), "GIF", {}),
        (colour, "JPEG", {"exif": exif}),
        (colour, "BMP", {}),
        (RGBA, "WEBP", {}),
        (RGBA, "PNG", {}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour.convert("CMYK"), "TIFF", {}),
        (Image.fromarray(GREY.astype(np.uint16) * 257), "PNG", {}),
        (Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF", {}),
        (Image.fromarray(GREY.astype(np.float32)), "TIFF", {}),
        (colour, "GIF", {"save_all": True, "append_images": [Image.new("RGB", (8, 12))]}),
        (colour, "WEBP", {"save_all": True, "append_images": [Image.new("RGB", (8, 12))]}),
    ]
    return [(stored(image, form, **options)["bytes"], f".{form.lower()}") for image, form, options in images]


def hostile_folder(folder, count=300):
    """Write a folder in which every fifth picture is broken. Return the paths of these."""
    good, broken = good_pictures(), list(BROKEN.values())
    bad = set()
    for i in range(count):
        data, suffix = (broken[i // 5 % len(broken)], ".png") if i % 5 == 0 else good[i % len(good)]
        path = folder / f"{i % 7}" / f"{NAMES[i % len(NAMES)]} {i}{suffix.upper() if i % 2 else suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        bad |= {str(path)} if i % 5 == 0 else set()
    return bad


def test_a_folder_of_hostile_files_trains_and_lists_what_is_left_out(tmp_path, train, capsys):
    bad = hostile_folder(tmp_path / "hostile")
    options = {"train_data_dir": tmp_path / "hostile", "resolution": 8}
    with pytest.raises(SystemExit, match=r"60 of 300 images cannot be read, and --max_unreadable 0.01 allows 3"):
        train(**options)
    folder = train(**options, max_unreadable=0.2)
    noted = [json.loads(line) for line in (folder / "unreadable_images.jsonl").read_text().splitlines()]
    assert {line["image"] for line in noted} == bad
    assert len(noted) == 60
    assert all(line["reason"] for line in noted)
    assert "60 images cannot be read and are left out" in capsys.readouterr().out
    assert (folder / "model_index.json").exists()
