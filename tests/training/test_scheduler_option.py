"""Training with `--scheduler`: the same weights, drawn and saved with another scheduler."""

import typing

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from runs import equal

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.config import TrainingConfig
from ddpm_hf.hub.card import render_card
from ddpm_hf.option_fields import kinds_of
from ddpm_hf.other_schedulers import name_of
from ddpm_hf.pictures import image_grid
from ddpm_hf.sampling import Drawing, draw_images, open_model, pictures_in_order
from ddpm_hf.schedulers import SCHEDULERS


def test_a_run_draws_and_is_saved_with_its_scheduler(train):
    plain = train("plain")
    run = train("other", scheduler="sde-dpmsolver++", ddpm_num_inference_steps=None, save_images_steps=4)
    assert equal(plain, run)  # the training is the same

    own = DPMSolverMultistepScheduler.from_pretrained(run, subfolder="scheduler")
    trained = DDPMLinearScheduler.from_pretrained(plain, subfolder="scheduler")
    assert own.config.algorithm_type == "sde-dpmsolver++" and own.config.timestep_spacing == "trailing"
    torch.testing.assert_close(own.alphas_cumprod, trained.alphas_cumprod)
    pipeline = DDPMPipelineCustom.from_pretrained(run)
    assert name_of(pipeline.scheduler) == "sde-dpmsolver++" and pipeline.default_num_inference_steps == 20
    drawn = pictures_in_order(pipeline, draw_images(pipeline, range(3), Drawing(num_inference_steps=20)))
    np.testing.assert_array_equal(
        np.asarray(image_grid(drawn)), np.asarray(Image.open(run / "samples/step-000004.png"))
    )
    assert "20 denoising steps of DPM-Solver++, stochastic, seed" in render_card(run)
    checkpoint = open_model(str(run), "latest", None, None)
    assert name_of(checkpoint.scheduler) == "sde-dpmsolver++" and checkpoint.default_num_inference_steps == 20

    back = open_model(str(run), None, "ddpm", None).scheduler
    for key in ("num_train_timesteps", "beta_schedule", "prediction_type", "variance_type", "clip_sample"):
        assert back.config[key] == trained.config[key]
    tuned = train("tuned", pretrained_model_name_or_path=run, model_config_name_or_path=None, max_train_steps=1)
    scheduler = DDPMLinearScheduler.from_pretrained(tuned, subfolder="scheduler")
    assert scheduler.config.clip_sample == trained.config.clip_sample


def test_the_scheduler_chooses_the_steps_unless_they_are_given(tmp_path):
    def steps(*flags):
        return parse_command_line(list(flags))[0].ddpm_num_inference_steps

    assert steps() == 100
    for name in typing.get_args(kinds_of(TrainingConfig)["scheduler"]):
        assert steps("--scheduler", name) == SCHEDULERS[name].steps
        assert steps("--scheduler", name, "--train_data_dir", "pictures") == SCHEDULERS[name].steps
    assert steps("--scheduler", "ddim", "--ddpm_num_inference_steps", "7") == 7
    file = tmp_path / "options.json"
    file.write_text('{"ddpm_num_inference_steps": 300}')
    assert steps("--config", str(file)) == 300
    assert steps("--config", str(file), "--scheduler", "ddpm") == 300
    assert steps("--config", str(file), "--scheduler", "dpmsolver++") == 20
    file.write_text('{"scheduler": "ddim", "ddpm_num_inference_steps": 30}')
    assert steps("--config", str(file)) == 30
    assert steps("--config", str(file), "--scheduler", "ddpm") == 100


def test_a_run_that_goes_on_with_another_scheduler_takes_its_steps(train):
    of_auto = {"preset": "auto", "model_size": "tiny", "model_config_name_or_path": None}
    for scheduler, steps in (("sde-dpmsolver++", 20), ("ddim", 50), ("ddpm", 100)):
        drawn = {"ddpm_num_inference_steps": None, "eval_batch_size": 1, "scheduler": scheduler}
        run = train(max_train_steps=steps // 10, **drawn, **of_auto)
        assert DDPMPipelineCustom.from_pretrained(run).default_num_inference_steps == steps
