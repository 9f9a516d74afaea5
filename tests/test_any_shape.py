"""Pictures that are no squares, all the way from a folder to the samples of a model."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import equal

from ddpm_hf import DDPMPipelineCustom, cli
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.convert import to_stock_pipeline
from ddpm_hf.demo.model import DemoModel
from ddpm_hf.hub.card import render_card
from ddpm_hf.images.batches import cut
from ddpm_hf.images.decoding import fit_image

sys.path.insert(0, str(Path(__file__).parent.parent / "pipelines"))
from ddpm_img2img import DDPMImg2ImgPipeline
from ddpm_inpainting import DDPMInpaintingPipeline
from ddpm_interpolation import DDPMInterpolationPipeline
from ddpm_progressive import DDPMProgressivePipeline

HEIGHT, WIDTH = 8, 12


def gradient(height, width):
    """Return a picture of two gradients, so that every part of it can be told from the others."""
    down, right = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([down * 255 // height, right * 255 // width, 0 * down], -1).astype(np.uint8))


@pytest.fixture
def pictures(tmp_path):
    """Return a folder of pictures of several shapes, all larger than 8x12."""
    sides, folder = random.Random(0), tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        gradient(sides.randint(8, 40), sides.randint(12, 40)).save(folder / f"{i}.png")
    return folder


def fit(picture, *flags):
    return fit_image(picture, parse_command_line(["--resolution", "8x12", *flags])[0])


@pytest.mark.parametrize(("height", "width"), [(8, 12), (16, 24), (9, 40), (40, 13), (8, 13)])
def test_pictures_are_shrunk_and_cut_without_distortion(height, width):
    """The centre of the picture is kept, and one side is kept whole."""
    scale = max(HEIGHT / height, WIDTH / width)
    pixels = fit(gradient(height, width))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    down, right = ((np.arange(side) + 0.5 - side / 2) / scale for side in (HEIGHT, WIDTH))
    np.testing.assert_allclose(pixels[2:-2, :, 0].mean(1), 255 * (0.5 + down[2:-2] / height), atol=20)
    np.testing.assert_allclose(pixels[:, 2:-2, 1].mean(0), 255 * (0.5 + right[2:-2] / width), atol=20)


def test_without_a_central_crop_each_batch_cuts_another_part():
    pixels = fit(gradient(16, 80), "--no_center_crop")
    assert pixels.shape == (HEIGHT, 40, 3)
    np.testing.assert_array_equal(cut(pixels, (HEIGHT, WIDTH), 0.99, 0.99), pixels[:, -WIDTH:])
    assert fit(gradient(80, 24), "--no_center_crop").shape == (40, WIDTH, 3)


def test_small_pictures_are_padded():
    pixels = fit(gradient(4, 12), "--image_fit", "pad")
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert not pixels[:2].any()
    assert pixels[5].any()
    with pytest.raises(ValueError, match=r"9x12 pixels \(height x width\) do not fit into --resolution 8x12"):
        fit(gradient(9, 12), "--image_fit", "pad")


@pytest.mark.parametrize(("height", "width"), [(7, 40), (40, 11)])
def test_pictures_that_are_too_small_are_named(height, width):
    with pytest.raises(
        ValueError, match=rf"{height}x{width} pixels \(height x width\) are fewer than --resolution 8x12"
    ):
        fit(gradient(height, width))


@pytest.mark.slow
def test_a_run(train, pictures, capsys):
    """Train, resume, sample, measure, show: everything has the height and the width that were asked for."""
    switches = ("--no_center_crop", "--random_flip")
    options = {"train_data_dir": pictures, "resolution": "8x12", "max_train_steps": 4, "checkpointing_steps": 2}
    options |= {"lr_scheduler": "constant", "eval_steps": 2, "eval_num_images": 4}
    whole = train("whole", *switches, **options)
    train("parts", *switches, **{**options, "max_train_steps": 2})
    assert equal(train("parts", *switches, **options), whole)
    with Image.open(whole / "samples" / "step-000004.png") as grid:
        factor = grid.width // (2 * WIDTH + 1)  # two columns and a gap
        assert grid.size == (factor * (2 * WIDTH + 1), factor * (2 * HEIGHT + 1))
    assert "8x12" in render_card(whole)
    assert json.loads((whole / "unet" / "config.json").read_text())["sample_size"] == [HEIGHT, WIDTH]
    assert "No metrics have been measured" in (whole / "README.md").read_text()
    cli.main(["evaluate", str(whole), "--num_images", "3", "--metrics", "bpd", "--bpd_timesteps", "2"])
    assert "bpd" in capsys.readouterr().out
    assert "| bpd |" in (whole / "README.md").read_text()  # the card is renewed at once


@pytest.fixture
def pipeline(train, pictures):
    pipeline = DDPMPipelineCustom.from_pretrained(train(train_data_dir=pictures, resolution="8x12", max_train_steps=1))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_every_pipeline_draws_it(pipeline):
    size, picture = (WIDTH, HEIGHT), gradient(16, 24)
    parts = (pipeline.unet, pipeline.scheduler)
    pipelines = [kind(*parts) for kind in (DDPMImg2ImgPipeline, DDPMInpaintingPipeline, DDPMInterpolationPipeline)]
    for each in (*pipelines, progressive := DDPMProgressivePipeline(*parts)):
        each.set_progress_bar_config(disable=True)
    img2img, inpainting, interpolation = pipelines
    assert pipeline(2, num_inference_steps=2).images[0].size == size
    assert to_stock_pipeline(pipeline)(1, num_inference_steps=2).images[0].size == size
    assert img2img(picture, num_inference_steps=2).images[0].size == size
    assert inpainting(picture, Image.new("L", (24, 16), 255), num_inference_steps=2).images[0].size == size
    assert interpolation(picture, picture, num_inference_steps=2).images[0].size == size
    assert progressive(1, num_inference_steps=2).images[0].size == size
    assert DemoModel(pipeline).size == size
