"""Runs with --augment: exported models are plain ones, and equal the network that was trained."""

import json

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from runs import equal, weights
from safetensors.torch import load_file

from ddpm_hf import DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.config import TrainingConfig
from ddpm_hf.convert import to_stock_pipeline, to_unet2d
from ddpm_hf.hub.card import pictures_in, render_card
from ddpm_hf.sampling import Drawing, draw_images, open_model
from ddpm_hf.training.model import make_model

LAYER = "augment_embedding.weight"


def checkpoint(folder, name, step=4):
    return load_file(folder / "checkpoints" / f"step-{step:06d}" / f"{name}.safetensors")


def trained_unet(folder):
    """The network as it was trained, with its layer for the labels, at its averaged weights."""
    unet = DDPMUNetModel.from_pretrained(folder, subfolder="unet")
    unet.add_augment_embedding(9)
    unet.load_state_dict(checkpoint(folder, "model"))
    for i, parameter in enumerate(unet.parameters()):
        parameter.data.copy_(checkpoint(folder, "ema")[str(i)])
    return unet.eval()


def test_the_exported_model_is_a_plain_one(train, tmp_path):
    folder = train("run", "--augment")
    assert LAYER in checkpoint(folder, "model")
    assert checkpoint(folder, "model")[LAYER].any()

    # It equals the network that was trained, at labels of zero.
    exported, trained = DDPMUNetModel.from_pretrained(folder, subfolder="unet").eval(), trained_unet(folder)
    x_t, t = torch.randn(3, 1, 28, 28), torch.tensor([0, 40, 999])
    with torch.no_grad():
        expected = exported(x_t, t).sample
        zeros, ones = (trained(x_t, t, augment_labels=torch.full((3, 9), value)).sample for value in (0.0, 1.0))
        assert torch.equal(expected, zeros)
        assert torch.equal(expected, trained(x_t, t).sample)
        assert not torch.equal(expected, ones)
        stock = [to_unet2d(unet).eval()(x_t, t).sample for unet in (exported, trained)]
        assert torch.equal(*stock)

    # A checkpoint opens as the same model, and diffusers loads it after conversion.
    opened, saved = open_model(str(folder), "latest", None, None), DDPMPipelineCustom.from_pretrained(folder)
    assert opened.unet.state_dict().keys() == saved.unet.state_dict().keys()
    how = Drawing(num_inference_steps=2)
    images = [list(draw_images(pipeline, range(2), how)) for pipeline in (opened, saved)]
    assert images[0] == images[1]
    to_stock_pipeline(saved).save_pretrained(tmp_path / "stock")
    loaded = UNet2DModel.from_pretrained(tmp_path / "stock", subfolder="unet").eval()
    torch.testing.assert_close(loaded(x_t, t).sample, expected, rtol=0, atol=1e-5)
    card = render_card(folder)
    assert "augmented with probability 0.12" in card

    # What training sees can be looked at, and is not shared.
    with Image.open(folder / "augmented.png") as picture:
        assert picture.size == (2 * (10 * 29 - 1), 2 * (6 * 29 - 1))
        first = [np.asarray(picture.crop((58 * i, 0, 58 * i + 56, 56))) for i in range(10)]
    assert any((first[0] != other).any() for other in first)
    assert "augmented.png" not in pictures_in(card, folder)
    train("run", "--overwrite_output_dir", max_train_steps=1)
    assert not (folder / "augmented.png").exists()


def test_runs_go_on_exactly(train):
    options = {"lr_scheduler": "constant", "augment_probability": 0.5, "gradient_accumulation_steps": 2}
    switches = ("--augment", "--random_flip", "--gradient_checkpointing")
    whole = train("whole", *switches, **options)
    train("parts", *switches, max_train_steps=2, **options)
    parts = train("parts", *switches, **options)
    assert equal(whole, parts)
    for name in ("model", "ema", "optimizer"):
        first, second = checkpoint(whole, name), checkpoint(parts, name)
        assert all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(SystemExit, match="augment True -> False"):
        train("parts", "--random_flip", "--gradient_checkpointing", max_train_steps=5, **options)


def test_probability_zero_changes_no_bit(train):
    """Neither of what is exported, which does not know of the layer, nor of the layer, whose labels are always zero."""
    options = {"max_train_steps": 2, "learning_rate": 1e-2, "lr_warmup_steps": 0}
    augmented = train("augmented", "--augment", augment_probability=0, **options)
    plain = train("plain", **options)
    assert equal(augmented, plain)
    assert weights(augmented).keys() == weights(plain).keys()
    for name in ("unet/config.json", "model_index.json"):
        assert (augmented / name).read_bytes() == (plain / name).read_bytes()
    saved = json.loads((augmented / "config.json").read_text())
    initial, _ = make_model(TrainingConfig(**saved), channels=1)
    assert torch.equal(checkpoint(augmented, "model", step=2)[LAYER], initial.augment_embedding.weight)
    assert not torch.equal(checkpoint(augmented, "model", step=2)["conv_in.weight"], initial.conv_in.weight)


def test_labels_without_a_layer_are_refused():
    unet = DDPMUNetModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    with pytest.raises(ValueError, match="no layer for them"):
        unet(torch.zeros(1, 3, 8, 8), 0, augment_labels=torch.zeros(1, 9))
