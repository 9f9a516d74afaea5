"""Training data of any depth and number of channels, all the way from files to the samples of a model."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, List, Value
from diffusers import DiffusionPipeline
from images import deep_files
from PIL import Image
from runs import equal, weights

from ddpm_hf import DDPMPipelineCustom, cli
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.demo.model import DemoModel
from ddpm_hf.hub.card import render_card
from ddpm_hf.images.cache import load_images
from ddpm_hf.images.small import sort_out_small
from ddpm_hf.images.sources import load_dataset
from ddpm_hf.images.streaming import StreamedImages
from ddpm_hf.images.survey import choose_format
from ddpm_hf.pipeline_ddpm_custom import _in_form
from ddpm_hf.pixel_format import EIGHT_BITS, PixelFormat
from ddpm_hf.sample_folder import read_sample, save_sample

sys.path.insert(0, str(Path(__file__).parent.parent / "pipelines"))
from ddpm_img2img import DDPMImg2ImgPipeline
from ddpm_progressive import DDPMProgressivePipeline

KINDS = sorted(deep_files.FLAGS)
CPU = torch.device("cpu")


def configure(folder, *flags, source="--train_data_dir"):
    options = (source, folder, "--resolution", "8x12", "--cache_dir", folder.parent / "cache", *flags)
    return parse_command_line([str(option) for option in options])[0]


def load(folder, *flags, source="--train_data_dir"):
    config = configure(folder, *flags, source=source)
    dataset, _ = sort_out_small(load_dataset(config), config)
    form = choose_format(dataset, config)
    return np.stack(list(load_images(dataset, form, config))), form


def drawn(pixels, form):
    """What the pipeline would return if the network drew these pixels."""
    x_0 = form.to_x_0(pixels, CPU)
    assert x_0.abs().max() <= 1
    return _in_form((x_0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(), form.settings()["pixel_format"])


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_out_as_they_went_in(tmp_path, kind):
    """From the files to the cache, to x_0, to samples, to files: every pixel is as it was, without a network."""
    data = deep_files.write(tmp_path / "in", kind)
    pixels, form = load(tmp_path / "in", *deep_files.FLAGS[kind])
    np.testing.assert_array_equal(pixels, data)
    assert pixels.dtype == data.dtype
    for sample, array in zip(drawn(pixels, form), data, strict=True):
        save_sample(sample, tmp_path / f"out{form.suffix}")
        again = read_sample(tmp_path / f"out{form.suffix}")
        assert again.dtype == array.dtype
        np.testing.assert_allclose(again, array, rtol=0, atol=1e-7 if array.dtype == np.float32 else 0)
    modes = {"RGBA": "RGBA", "16-bit grey": "I;16"}
    assert getattr(sample, "mode", None) == modes.get(kind)


def test_in_256_levels_unless_the_precision_is_asked_for(tmp_path):
    data = deep_files.write(tmp_path / "in", "CT")
    pixels, form = load(tmp_path / "in", "--value_range", "-1000", "3000")
    np.testing.assert_array_equal(pixels, np.round((data + 1000) * (255 / 4000)).astype(np.uint8))
    assert form.has_256_levels
    samples = np.stack(drawn(pixels, form))
    assert samples.dtype == np.int16
    assert np.abs(samples.astype(int) - data).max() <= 4000 / 255 / 2 + 1


def test_without_the_new_options_nothing_changes(tmp_path):
    """16 bits become 8 as before, and no key is added to the network's configuration."""
    data = deep_files.write(tmp_path / "in", "16-bit grey")
    pixels, form = load(tmp_path / "in")
    np.testing.assert_array_equal(pixels, np.round(data / 257).astype(np.uint8))
    assert form.settings() == {}
    assert PixelFormat.of_model({"in_channels": 3}) == EIGHT_BITS
    colour = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    expected = torch.from_numpy(colour).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(EIGHT_BITS.to_x_0(colour, CPU), expected)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_pictures_in_any_mode(tmp_path, mode, channels):
    deep_files.write(tmp_path / "in", "RGBA")
    pixels, form = load(tmp_path / "in", "--image_mode", mode)
    assert (pixels.shape[-1], form.mode) == (channels, mode)
    if "A" in mode:
        with Image.open(tmp_path / "in" / "0.png") as picture:
            np.testing.assert_array_equal(pixels[0], np.asarray(picture.convert(mode)))


def test_other_sizes_are_resized_as_pictures_are(tmp_path):
    (tmp_path / "in").mkdir()
    ramp = np.linspace(0, 255, 24).astype(np.uint8) * np.ones((16, 1), dtype=np.uint8)
    Image.fromarray(ramp).save(tmp_path / "in" / "a.png")
    expected, _ = load(tmp_path / "in")
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "deep" / "a.npy", ramp.astype(np.float32))
    pixels, _ = load(tmp_path / "deep", "--preserve_input_precision")
    np.testing.assert_allclose(pixels, expected, atol=1)
    padded, _ = load(tmp_path / "deep", "--value_range", "-5", "300", "--image_fit", "pad", "--resolution", "16x32")
    assert padded[0, 0, 0] == 0  # "black" is the lower end of the range


@pytest.mark.parametrize("features", [Array3D((8, 12, 2), "int16"), List(List(List(Value("float64"))))])
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_arrays(tmp_path, features, streaming):
    data = np.random.default_rng(0).integers(-50, 51, (6, 8, 12, 2))
    (tmp_path / "set").mkdir()
    Dataset.from_dict({"scan": data.tolist()}, Features({"scan": features})).to_parquet(
        tmp_path / "set" / "train.parquet"
    )
    flags = ("--value_range", "-50", "50", "--preserve_input_precision")
    if streaming:
        flags += ("--streaming", "--streaming_buffer_size", "6", "--max_train_steps", "1")
        config = configure(tmp_path / "set", *flags, source="--dataset_name")
        dataset = load_dataset(config)
        form = choose_format(dataset, config)
        images = StreamedImages(dataset, form, config)
        pixels = np.stack([image for _, image in sorted(zip(images.block.order, images.take(range(6))[0]))])
    else:
        pixels, form = load(tmp_path / "set", *flags, source="--dataset_name")
    assert form.dtype == ("int16" if isinstance(features, Array3D) else "float32")
    np.testing.assert_array_equal(pixels, data)


# ---- Bad input -----------------------------------------------------------------------------------------------------


def put(folder, **arrays):
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def zeros(*shape, dtype=np.float32, value=0.0):
    return np.full(shape, value, dtype=dtype)


BAD = {
    "leaves the range": (
        {"a": zeros(8, 12), "b": zeros(8, 12, value=-7), "c": zeros(8, 12, value=9.5)},
        ["--value_range", "0", "5"],
        r"2 of 3 images looked at leave the range from 0 to 5 of --value_range: .*b.npy \(-7 to -7\), .*c.npy "
        r"\(9.5 to 9.5\); pass --value_range -7 9.5, which holds them",
    ),
    "NaN": (
        {"a": zeros(8, 12, value=np.nan)},
        ["--value_range", "0", "1"],
        r"a.npy \(NaN\); replace NaN and infinity by numbers",
    ),
    "NaN without a range": ({"a": zeros(8, 12, value=np.nan)}, [], "a.npy holds NaN; replace it"),
    "infinity": ({"a": zeros(8, 12, value=np.inf)}, [], "a.npy holds infinity; replace it"),
    "needs a range": ({"a": zeros(8, 12, value=-7)}, [], r"reach from -7 to -7, .*a.npy; pass --value_range LOW HIGH"),
    "channels": (
        {"a": zeros(8, 12, 5), "b": zeros(8, 12, 4)},
        [],
        "a.npy has 5 channels of float32, and .*b.npy has 4 channels of float32; keep those alike",
    ),
    "types": (
        {"a": zeros(8, 12), "b": zeros(8, 12, dtype=np.uint16)},
        [],
        "a.npy has 1 channels of float32, and .*b.npy",
    ),
    "mode": ({"a": zeros(8, 12, 5)}, ["--image_mode", "RGB"], "--image_mode RGB: .*a.npy has 5 channels of float32"),
    "channels first": ({"a": zeros(5, 64, 64)}, [], r"its shape is \(5, 64, 64\); expected the channels last"),
    "no numbers": ({"a": np.array([["a"] * 12] * 8)}, [], "it holds <U1; expected whole or floating-point numbers"),
    "small": ({"a": zeros(7, 12), "b": zeros(8, 12)}, [], r"1 of 2 images have fewer pixels than --resolution 8x12"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_refused_in_one_line(tmp_path, name):
    arrays, flags, message = BAD[name]
    put(tmp_path / "in", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "in", *flags)
    assert "\n" not in str(error.value)


def test_a_picture_that_was_not_looked_at(tmp_path):
    """Of more than a thousand pictures some are looked at before; the others are checked when they are read."""
    form = PixelFormat("bands", 1, "float32", 0, 1, "float32", ".npy")
    put(tmp_path / "in", a=zeros(8, 12), b=zeros(8, 12, value=2))
    config = configure(tmp_path / "in")
    with pytest.raises(ValueError, match=r"1 of 2 images leave the range .*b.npy \(2 to 2\); pass --value_range 0 2"):
        load_images(load_dataset(config), form, config)
    put(tmp_path / "in", b=zeros(8, 12, 3))
    with pytest.raises(ValueError, match=r"b.npy: 3 channels of float32, and others have 1 of float32"):
        load_images(load_dataset(config), form, config)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--value_range", "5", "3"], "--value_range 5 3: expected two numbers, the lower one first"),
        (["--value_range", "0", "nan"], "--value_range 0 nan: expected two numbers"),
        (["--image_mode", "CMYK"], "argument --image_mode: invalid choice: 'CMYK'"),
        (["--value_range", "1"], "--value_range: expected 2 arguments"),
    ],
)
def test_bad_options(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse_command_line(flags)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[-1000, 3000]", "-1000 3000"])
def test_a_range_in_a_file_of_options(tmp_path, text):
    (tmp_path / "options.yaml").write_text(f"value_range: {text}\n")
    assert parse_command_line(["--config", str(tmp_path / "options.yaml")])[0].value_range == [-1000, 3000]


def test_a_range_of_8_bit_pictures(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)).save(tmp_path / "in" / "a.png")
    pixels, form = load(tmp_path / "in", "--value_range", "0", "95")
    x_0 = form.to_x_0(pixels, CPU)
    assert (x_0.min(), x_0.max()) == (-1, 1)
    np.testing.assert_array_equal(np.asarray(drawn(pixels, form)[0]), pixels[0, ..., 0])
    with pytest.raises(ValueError, match=r"1 of 1 images leave the range from 0 to 90 .*a.png \(0 to 95\)"):
        load(tmp_path / "in", "--value_range", "0", "90")


# ---- Runs ----------------------------------------------------------------------------------------------------------

FEATURES = "import torch\ndef means(pixels): return pixels.float().mean((2, 3)).repeat(1, 3)[:, :2] + 0.5\n"
RUNS = [kind if kind == "5-band float" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", RUNS)
def test_a_run(tmp_path, train, kind, monkeypatch, capsys):
    """Train, resume, sample, evaluate and load back: samples have the form of the data."""
    data = deep_files.write(tmp_path / "in", kind)
    options = {"train_data_dir": tmp_path / "in", "resolution": "8x12", "max_train_steps": 3, "checkpointing_steps": 2}
    options |= {"lr_scheduler": "constant", "cache_dir": tmp_path / "cache"}
    whole = train("whole", *deep_files.FLAGS[kind], **options)
    train("parts", *deep_files.FLAGS[kind], **{**options, "max_train_steps": 2})
    assert equal(train("parts", *deep_files.FLAGS[kind], **options), whole)

    pipeline = DDPMPipelineCustom.from_pretrained(whole)
    form = PixelFormat.of_model(pipeline.unet.config)
    images = pipeline(2, num_inference_steps=2).images
    samples = [np.asarray(image).reshape(8, 12, -1) for image in images]
    assert {(sample.shape, sample.dtype) for sample in samples} == {(data.shape[1:], data.dtype)}
    stock = DiffusionPipeline.from_pretrained(whole, trust_remote_code=True)
    assert stock.unet.config["pixel_format"] == pipeline.unet.config["pixel_format"]
    pipeline.save_pretrained(tmp_path / "again")
    assert all(map(torch.equal, weights(tmp_path / "again").values(), weights(whole).values()))

    cli.main(
        ["sample", str(whole), "--num_images", "2", "--num_inference_steps", "2", "--output", str(tmp_path / "out")]
    )
    drawn_files = sorted(path for path in (tmp_path / "out").iterdir() if path.suffix == form.suffix)
    assert [read_sample(path).dtype for path in drawn_files] == [data.dtype] * 2
    cli.main(
        ["sample", str(whole), "--batch_size", "2", "--num_inference_steps", "2", "--output", str(tmp_path / "g.png")]
    )

    (tmp_path / "seen.py").write_text(FEATURES)
    monkeypatch.chdir(tmp_path)
    flags = ["--metrics", "fid", "--features", "seen:means", "--num_images", "4", "--num_inference_steps", "2"]
    cli.main(["evaluate", str(whole), *flags, "--cache_dir", str(tmp_path / "cache")])
    numbers = json.loads((whole / "evaluation.json").read_text())["fid"]
    assert np.isfinite(numbers["value"])
    assert f"compared is what can be seen with 8 bits of {form.describe()}" in numbers["note"]
    if not form.has_256_levels:
        with pytest.raises(SystemExit, match="--metrics bpd is the likelihood of pictures of 256 levels"):
            cli.main(["evaluate", str(whole), "--metrics", "bpd", "--cache_dir", str(tmp_path / "cache")])
        bound = {"loss_weighting": "vlb", "timestep_sampling": "uniform"}
        with pytest.raises(SystemExit, match="--loss_weighting vlb is the likelihood of pictures of 256 levels"):
            train("bound", *deep_files.FLAGS[kind], **options, **bound)

    card = render_card(whole)
    assert form.caption() in card
    demo = DemoModel(pipeline)
    assert not demo.takes_pictures
    assert demo.sample(1, 0, "ddim", 2)[0].size == demo.denoise(0, 2)[0][0].size == (12, 8)
    changing = DDPMImg2ImgPipeline(pipeline.unet, pipeline.scheduler)
    with pytest.raises(ValueError, match="this pipeline is for models of 8-bit pictures, grey or RGB"):
        changing(Image.new("L", (12, 8)))
    with pytest.raises(ValueError, match="pass `output_type='np'` or 'pt'"):
        DDPMProgressivePipeline(pipeline.unet, pipeline.scheduler)(num_inference_steps=2)


def test_another_range_does_not_resume():
    options = dataclasses.asdict(parse_command_line(["--value_range", "-1000", "3000"])[0])
    other = parse_command_line(["--value_range", "-1000", "4000"])[0]
    assert other.differences(options, same_pictures=True) == ["--value_range [-1000.0, 3000.0] -> [-1000.0, 4000.0]"]


# ---- For the eye ---------------------------------------------------------------------------------------------------


def test_pictures_of_other_data_name_what_they_show():
    bands = PixelFormat("bands", 5, "float32", 0, 2, "float32", ".tif")
    array = np.arange(40, dtype=np.float32).reshape(2, 4, 5) / 16
    seen = bands.picture_of(array)
    np.testing.assert_array_equal(np.asarray(seen), np.round(array[..., :3] * 127.5).clip(0, 255).astype(np.uint8))
    assert bands.caption() == "bands 1 to 3 of 5: black is 0, white 2"
    grid = np.asarray(bands.captioned(seen))
    assert grid.shape[0] > 8
    assert (grid[3:] < 99).any(), "the caption is missing"
    np.testing.assert_array_equal(grid[:2, :4], np.asarray(seen))
    assert EIGHT_BITS.captioned(seen) is seen
    alpha = PixelFormat("RGBA", 4)
    picture = np.array([[[9, 9, 9, 255], [0, 0, 0, 0]]], dtype=np.uint8)
    np.testing.assert_array_equal(alpha.eight_bits(picture, (0, 255)), [[[9, 9, 9], [255, 255, 255]]])
