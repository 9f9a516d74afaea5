"""Schedulers that `--scheduler` offers: settings, betas, and what each number of steps draws."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, HeunDiscreteScheduler

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.other_schedulers import make_scheduler, name_of, settings_of
from ddpm_hf.sampling import draw_with
from ddpm_hf.schedulers import SCHEDULERS


def pipeline_of(scheduler, **options):
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "norm_num_groups": 4}
    channels = {"in_channels": 1, "out_channels": 1, "block_out_channels": (8,)}
    return DDPMPipelineCustom(DDPMUNetModel(sample_size=8, **{**blocks, **channels, **options}), scheduler)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
def test_every_scheduler_has_the_betas_of_the_model(schedule):
    own = DDPMLinearScheduler(num_train_timesteps=20, beta_schedule=schedule)
    for name in SCHEDULERS:
        torch.testing.assert_close(make_scheduler(name, own.config, 10).alphas_cumprod, own.alphas_cumprod)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "ddpm"])
@pytest.mark.parametrize("saved", SCHEDULERS)
def test_a_scheduler_is_the_same_whichever_was_saved(name, saved):
    own = DDPMLinearScheduler()
    scheduler = make_scheduler(name, make_scheduler(saved, own.config, 20).config, 20)
    direct = make_scheduler(name, own.config, 20)
    for key in inspect.signature(type(direct).__init__).parameters.keys() - {"self"}:
        assert scheduler.config[key] == direct.config[key], key
    assert name_of(scheduler) == name
    for stock in (DDPMScheduler(), DPMSolverMultistepScheduler()):  # their other values are defaults
        scheduler = make_scheduler(name, stock.config, 20)
        assert {key: scheduler.config[key] for key in SCHEDULERS[name].settings} == SCHEDULERS[name].settings
        assert scheduler.config.timestep_spacing == "trailing"


@pytest.mark.parametrize("steps", [60, 61, 122, 150, 600])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_number_of_steps_draws_what_the_network_knows(name, steps):
    """Pixels are N(0.3, 0.25^2), and the noise that is to be expected in them is known exactly."""
    scheduler = make_scheduler(name, DDPMLinearScheduler(clip_sample=False).config, steps)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.min() >= 0
    noise_levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 64, 64, generator=generator) * scheduler.init_noise_sigma
    random = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, t)
        sigma = torch.from_numpy(np.interp(float(t), np.arange(1000), noise_levels)[None])
        alpha_bar = (1 / (1 + sigma**2)).float()
        variance = alpha_bar * 0.25**2 + 1 - alpha_bar
        eps = (1 - alpha_bar).sqrt() * (x_t - alpha_bar.sqrt() * 0.3) / variance
        x = scheduler.step(eps, t, x, **random).prev_sample
    assert abs(x.mean() - 0.3) < 0.02
    assert 0.205 < x.std() < 0.257  # few steps of the first order draw too little variance, never too much


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "ddpm"])
def test_a_timestep_of_minus_one_is_refused(name):
    """Where a scheduler that was made for 50 steps is called with 61."""
    pipeline = pipeline_of(make_scheduler(name, DDPMLinearScheduler().config, 50))
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match=r"`num_inference_steps=61`: .* would end at timestep -1 with"):
        pipeline(1, num_inference_steps=61)
    assert pipeline.scheduler.timesteps.min() < 0
    pipeline(1, num_inference_steps=10)


@pytest.mark.filterwarnings("ignore:With `variance_type='fixed_large'`, fewer than 100 steps")
def test_a_ddpm_after_another_scheduler_ends_without_noise():
    for variance_type in ("fixed_small", "fixed_large"):
        saved = make_scheduler("ddim", DDPMLinearScheduler(variance_type=variance_type).config, 50)
        scheduler = make_scheduler("ddpm", saved.config, 50)
        scheduler.set_timesteps(50)
        t, x = scheduler.timesteps[-1], torch.zeros(1, 1, 2, 2)
        ends = [scheduler.step(x, t, x, generator=torch.Generator().manual_seed(seed)).prev_sample for seed in (0, 1)]
        torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


def test_a_network_with_learned_variance_gets_it_back_after_a_dpm_solver():
    pipeline = pipeline_of(DDPMLinearScheduler(), out_channels=2)
    config = DDPMLinearScheduler(variance_type="learned_range").config
    pipeline.scheduler = make_scheduler("dpmsolver++", config, 20)
    assert make_scheduler("ddpm", settings_of(pipeline), 20).config.variance_type == "learned_range"
    pipeline = pipeline_of(DPMSolverMultistepScheduler())
    draw_with(pipeline, "here", "ddpm", 20)
    assert pipeline.scheduler.config.variance_type == "fixed_small"


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({"prediction_type": "sample"}, "euler_a", r"the network predicts x_0 \(`sample`\), and Euler ancestral does"),
        ({"prediction_type": "sample"}, "pndm", ".* and PNDM does not take that"),
        ({"rescale_betas_zero_snr": True}, "heun", "the model has `rescale_betas_zero_snr`, and Heun does not know it"),
    ],
)
def test_a_scheduler_that_does_not_fit_the_network_is_refused(settings, name, message):
    pipeline = pipeline_of(DDPMLinearScheduler(**settings))
    with pytest.raises(ValueError, match=f"--scheduler {name}: here cannot be drawn with it: {message}"):
        draw_with(pipeline, "here", name, 20)


def test_betas_that_a_scheduler_does_not_know_are_refused():
    for other in (EDMEulerScheduler(), HeunDiscreteScheduler(beta_schedule="exp")):
        pipeline = pipeline_of(other)
        with pytest.raises(ValueError, match="--scheduler ddim: here cannot be drawn with it: "):
            draw_with(pipeline, "here", "ddim", 20)
