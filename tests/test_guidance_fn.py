"""Guidance by a function: a closed form, the formula at one step, parts of a batch, and bad functions."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from oracles import GaussianDenoiser

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel, pipeline_ddpm_custom


def generator():
    return torch.Generator().manual_seed(0)


def quiet(unet, scheduler):
    pipeline = DDPMPipelineCustom(unet.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_unet(out_channels=1):
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1}
    labels = {"class_names": ("a", "b"), "num_class_embeds": 3}
    torch.manual_seed(0)
    return DDPMUNetModel(out_channels=out_channels, norm_num_groups=4, zero_init=False, **sizes, **blocks, **labels)


@pytest.mark.parametrize("name", ["DDPMLinearScheduler", *(kind.name for kind in KarrasDiffusionSchedulers)])
def test_a_linear_loss_moves_the_mean(name):
    """p(x) exp(s x) is N(mean + std^2 s, std^2) for p(x) = N(mean, std^2), here of each pixel."""
    scheduler = DDPMLinearScheduler(clip_sample=False)
    if name != "DDPMLinearScheduler":
        scheduler = getattr(diffusers, name).from_config(scheduler.config)
    pipeline = quiet(GaussianDenoiser(-0.2, 0.2), scheduler)
    options = {"guidance_fn": lambda x_0, t: -x_0.sum((1, 2, 3)), "guidance_fn_scale": 7.5, "output_type": "pt"}
    images = pipeline(64, generator(), 50, **options).images * 2 - 1
    assert images.mean().item() == pytest.approx(0.1, abs=0.02)
    assert images.std().item() == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
def test_the_prediction_at_one_step(prediction_type, variance_type):
    """With labels and their guidance, the x_0 predicted is x_0 - s sigma^2 / alpha g, by finite differences."""
    options = {"prediction_type": prediction_type, "variance_type": variance_type, "clip_sample": False}
    scheduler = DDPMLinearScheduler(50, **options)
    unet = small_unet(2 if variance_type == "learned_range" else 1).double()
    pipeline = quiet(unet, scheduler)
    pipeline._images_at_once = 2
    x_t, t = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=generator()), torch.tensor(20)
    plain = pipeline._network([0, 1, 0], 2.0)

    def loss(x_0, t):
        return (x_0 - 0.3).pow(2).sum((1, 2, 3)) / 100

    def predicted(output):
        return scheduler.predict_x_0(output[:, :1], t, x_t)

    seen = []
    guided = pipeline._guided_by(lambda x_0, t: seen.append(x_0) or loss(x_0, t), [0.7], [0, 1, 0], 2.0)
    with torch.no_grad():
        output = guided(x_t, t)
        x_0, moved = predicted(plain(x_t, t)), predicted(output)
        direction = torch.randn(x_t.shape, dtype=torch.float64, generator=generator())
        slopes = []
        for h in (1e-3, -1e-3):
            model_output = plain(x_t + h * direction, t)
            slopes.append(loss(scheduler.predict_x_0(model_output[:, :1], t, x_t + h * direction), t) / 2e-3)
    alpha_bar = scheduler.alphas_cumprod[20].item()
    g = (x_0 - moved) * alpha_bar**0.5 / (1 - alpha_bar) / 0.7
    torch.testing.assert_close((g * direction).sum((1, 2, 3)), slopes[0] - slopes[1], rtol=1e-3, atol=1e-5)
    assert [len(part) for part in seen] == [2, 1]
    torch.testing.assert_close(torch.cat(seen).double(), x_0, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(output[:, 1:], plain(x_t, t)[:, 1:], rtol=0, atol=1e-12)


def test_a_scale_for_each_step_and_any_part_of_a_batch(monkeypatch):
    pipeline = quiet(small_unet(), DDPMLinearScheduler(50))

    def draw(**options):
        return pipeline(5, generator(), 3, "pt", class_labels="a", **options).images

    def loss(x_0, t):
        return (x_0 - 1).abs().mean((1, 2, 3))

    unguided, guided = draw(), draw(guidance_fn=loss, guidance_fn_scale=[0, 500.0, 0])
    assert torch.equal(draw(guidance_fn=loss, guidance_fn_scale=0), unguided)
    assert guided.mean() > unguided.mean() + 0.01
    monkeypatch.setattr(pipeline_ddpm_custom, "CPU_PIXELS", 2 * 64)
    parts = draw(guidance_fn=loss, guidance_fn_scale=[0, 500.0, 0])
    torch.testing.assert_close(parts, guided, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_fn": 3}, "`guidance_fn=3`; expected a function"),
        (
            {"guidance_fn": lambda x_0, t: x_0.mean()},
            r"shape \(\); expected the loss of each image",
        ),
        ({"guidance_fn": lambda x_0, t: x_0.detach().sum((1, 2, 3))}, "without a gradient"),
        ({"guidance_fn": lambda x_0, t: 1.0}, "returned 1.0; expected the loss"),
        ({"guidance_fn": len, "guidance_fn_scale": "2"}, "`guidance_fn_scale='2'`; expected a finite number"),
        ({"guidance_fn": len, "guidance_fn_scale": [1.0]}, "has 1 numbers; expected one, or one for each of 3"),
        ({"guidance_fn_scale": 2.0}, "`guidance_fn_scale=2.0` belongs to `guidance_fn`"),
    ],
)
def test_bad_functions(options, message):
    pipeline = quiet(small_unet(), DDPMLinearScheduler(50))
    with pytest.raises(ValueError, match=message):
        pipeline(2, generator(), 3, **options)


def test_a_schedule_that_begins_without_a_signal():
    """There the gradient would have an infinite factor."""
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    pipeline = quiet(small_unet(), DDPMLinearScheduler(50, **options))
    plain, led = (
        pipeline(2, generator(), 3, "pt", class_labels="a", **more).images
        for more in ({}, {"guidance_fn": lambda x_0, t: x_0.mean((1, 2, 3)), "guidance_fn_scale": np.full(3, 50.0)})
    )
    assert led.isfinite().all() and led.mean() < plain.mean()


def test_the_loss_sees_what_the_step_takes():
    seen = []
    pipeline = quiet(small_unet(), DDPMLinearScheduler(50))
    pipeline(2, generator(), 3, guidance_fn=lambda x_0, t: seen.append(x_0) or x_0.mean((1, 2, 3)))
    assert all(x_0.abs().max() <= 1 for x_0 in seen)
    with torch.inference_mode(), pytest.raises(ValueError, match="needs gradients"):
        pipeline(2, guidance_fn=len)
