"""Algorithm 1: what a training step draws, and what its gradient is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

import ddpm_hf.train as loop
from ddpm_hf import DDPMLinearScheduler
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.images.batches import Batches, ShuffledImages
from ddpm_hf.training.model import make_model
from ddpm_hf.training.objective import Objective, denoising_loss
from ddpm_hf.training.state import RunState

T = 10


@pytest.fixture
def make_run(small, monkeypatch):
    """Make what `train_step` needs, and a list that gets x_0, t, eps and the labels of each micro-batch."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)

    def make(*flags, batch_size=4, accumulation=1):
        config, _ = parse_command_line(small("run", *flags, ddpm_num_steps=T, max_train_steps=5))
        plugin = GradientAccumulationPlugin(num_steps=accumulation)
        accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
        unet, scheduler = make_model(config, channels=1)
        batches = Batches(
            ShuffledImages(pixels, config.seed), (8, 8), batch_size, config.seed, True, accelerator.device
        )
        objective = Objective(scheduler, config, accelerator.device)
        run = SimpleNamespace(
            config=config, accelerator=accelerator, scheduler=scheduler, batches=batches, objective=objective
        )
        run.teacher = None
        drawn = []

        def noting(unet, scheduler, *draws):
            drawn.append(draws)
            return denoising_loss(unet, scheduler, *draws)

        monkeypatch.setattr(loop, "denoising_loss", noting)
        return run, RunState(unet, config, accelerator), drawn

    return make


def test_what_a_step_draws(make_run):
    run, state, drawn = make_run("--timestep_sampling", "uniform", batch_size=2000)
    loop.train_step(run, state)
    x_0, t, eps, labels, augment_labels, is_bound = drawn[0]
    assert x_0.shape == eps.shape == (2000, 1, 8, 8)
    assert labels is augment_labels is None and not is_bound
    assert eps.mean().item() == pytest.approx(0, abs=0.02)
    assert eps.std().item() == pytest.approx(1, abs=0.02)
    assert torch.bincount(t, minlength=T).tolist() == pytest.approx([2000 / T] * T, abs=60)


def test_timesteps_follow_their_weights(monkeypatch):
    monkeypatch.setattr("ddpm_hf.training.objective.timestep_weights", lambda *_: torch.tensor([0.0, 1.0, 3.0]))
    objective = Objective(DDPMLinearScheduler(), parse_command_line([])[0], torch.device("cpu"))
    t = objective.draw_timesteps(2000, torch.Generator().manual_seed(0))
    assert (torch.bincount(t) / 2000).tolist() == pytest.approx([0, 0.25, 0.75], abs=0.03)


def test_a_micro_batch_is_a_function_of_seed_and_number(make_run):
    """Whatever was computed before: here the steps of one run are taken in another order by another."""
    run, state, drawn = make_run("--seed", "1")
    for _ in range(3):
        loop.train_step(run, state)
    again, state, drawn_again = make_run("--seed", "1")
    for state.micro_batches in (2, 0):
        torch.randn(3)
        loop.train_step(again, state)
    for a, b in zip([*drawn[2][:3], *drawn[0][:3]], [*drawn_again[0][:3], *drawn_again[1][:3]]):
        assert torch.equal(a, b)
    assert not torch.equal(drawn[0][2], drawn[1][2])
    other, state, drawn_other = make_run("--seed", "2")
    loop.train_step(other, state)
    assert not torch.equal(drawn[0][2], drawn_other[0][2])


def test_the_gradient_is_that_of_all_micro_batches(make_run):
    """The first step of Adam, against autograd's gradient of the mean loss over what was drawn."""
    run, state, drawn = make_run("--max_grad_norm", "0", "--optimizer", "adam", accumulation=3)
    parameters = list(state.unet.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    loop.train_step(run, state)
    assert (state.step, state.micro_batches, len(drawn)) == (1, 3, 3)
    moments = [state.optimizer.state[parameter]["exp_avg"] / (1 - run.config.adam_beta1) for parameter in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, before):
            parameter.copy_(value)
    draws = [torch.cat(parts) for parts in zip(*(each[:3] for each in drawn))]
    loss = denoising_loss(state.unet.train(), run.scheduler, *draws).mean()
    for moment, gradient in zip(moments, torch.autograd.grad(loss, parameters)):
        torch.testing.assert_close(moment, gradient, rtol=1e-3, atol=1e-6)
