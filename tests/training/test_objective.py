"""The objective, the moving average, and the course of the learning rate."""

import math

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from oracles import GaussianDenoiser

from ddpm_hf import DDPMLinearScheduler
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.training.ema import MovingAverage
from ddpm_hf.training.meter import LossMeter
from ddpm_hf.training.objective import denoising_loss, loss_weights, timestep_weights
from ddpm_hf.training.optimizer import make_lr_scheduler, make_optimizer


def test_loss_of_the_exact_denoiser():
    """For N(mean, std^2) data the least possible loss at t is a std^2 / (a std^2 + 1 - a), with a = alpha_bar_t."""
    unet, scheduler = GaussianDenoiser(0.3, 0.2), DDPMLinearScheduler()
    x_0, eps = torch.randn(2, 20_000, 1, 1, 1)
    x_0 = 0.3 + 0.2 * x_0
    for t in (0, 100, 500, 999):
        a = scheduler.alphas_cumprod[t].item()
        least = a * 0.2**2 / (a * 0.2**2 + 1 - a)
        loss = denoising_loss(unet, scheduler, x_0, torch.full((20_000,), t), eps).mean()
        assert loss.item() == pytest.approx(least, rel=0.05)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_loss_has_the_target_of_the_prediction_type(prediction_type):
    """A network that predicts zero has the mean square of the target for its loss."""
    scheduler = DDPMLinearScheduler(prediction_type=prediction_type)
    x_0, eps = torch.randn(2, 4, 1, 8, 8)
    t = torch.tensor([0, 10, 500, 999])
    targets = {"epsilon": eps, "sample": x_0, "v_prediction": DDPMScheduler().get_velocity(x_0, eps, t)}
    loss = denoising_loss(lambda x, t, labels, return_dict: (torch.zeros_like(x),), scheduler, x_0, t, eps)
    torch.testing.assert_close(loss, targets[prediction_type].square().mean((1, 2, 3)))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_min_snr_weighs_the_error_of_x_0(prediction_type):
    """Whatever the network predicts, the weighted loss is min(SNR, gamma) times the mean square error of its x_0."""
    config, _ = parse_command_line(["--loss_weighting", "min_snr", "--snr_gamma", "3"])
    scheduler = DDPMLinearScheduler(prediction_type=prediction_type)
    weights = loss_weights(scheduler, config)
    x_0, eps, output = torch.randn(3, 5, 1, 8, 8)
    t = torch.tensor([0, 100, 250, 500, 900])
    loss = weights[t] * denoising_loss(lambda x, t, labels, return_dict: (output,), scheduler, x_0, t, eps)
    predicted = scheduler.predict_x_0(output, t, scheduler.add_noise(x_0, eps, t))
    snr = scheduler.alphas_cumprod[t] / (1 - scheduler.alphas_cumprod[t])
    wanted = snr.clamp(max=3) * (predicted - x_0).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=1e-5)
    assert (loss_weights(scheduler, parse_command_line([])[0]) == 1).all()


def test_meter_takes_means_by_quartile():
    meter = LossMeter(100, torch.device("cpu"))
    meter.add(torch.tensor([1.0, 3.0, 5.0, math.inf]), torch.tensor([0, 24, 25, 30]))
    meter.add(torch.tensor([7.0, math.nan]), torch.tensor([99, 0]))
    numbers = meter.read(Accelerator(cpu=True))
    assert numbers == {"loss": 4.0, "loss_q1": 2.0, "loss_q2": 5.0, "loss_q3": None, "loss_q4": 7.0}
    assert meter.read(Accelerator(cpu=True))["loss"] is None


@pytest.mark.parametrize("skip", [None, torch.zeros(())])
def test_moving_average_in_closed_form(skip):
    model = torch.nn.Linear(3, 2)
    ema = MovingAverage(model, inv_gamma=1.0, power=0.75, max_decay=0.9)
    expected = [p.detach().double().clone() for p in model.parameters()]
    for step in range(1, 50):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        ema.update(step, skip)
        before = [average.clone() for average in ema.average]
        ema.update(step, torch.ones(()))  # a step that changed nothing
        assert all(torch.equal(a, b) for a, b in zip(ema.average, before))
        decay = min(0.9, 1 - (1 + step) ** -0.75)
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, model.parameters())]
    for average, wanted in zip(ema.average, expected):
        torch.testing.assert_close(average.double(), wanted, rtol=1e-5, atol=1e-6)


def test_moving_average_is_lent_to_the_model_and_taken_back():
    model = torch.nn.Linear(3, 2)
    ema = MovingAverage(model, 1.0, 0.75, 0.9)
    with torch.no_grad():
        model.weight += 1
    live, average = model.weight.detach().clone(), ema.average[0].clone()
    with ema.applied():
        assert torch.equal(model.weight, average)
    assert torch.equal(model.weight, live)
    assert torch.equal(ema.average[0], average)


def configure(*flags):
    config, _ = parse_command_line([*flags])
    config.count_steps(100)
    return config


def test_learning_rate_counts_optimizer_steps():
    config = configure(
        "--max_train_steps", "100", "--lr_warmup_steps", "10", "--learning_rate", "2", "--lr_scheduler", "linear"
    )
    optimizer = make_optimizer(torch.nn.Linear(1, 1), config, torch.device("cpu"))
    schedule = make_lr_scheduler(optimizer, config)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:11] == pytest.approx([0.2 * i for i in range(11)])
    assert rates[55] == pytest.approx(1)
    assert rates[99] == pytest.approx(2 / 90)


@pytest.mark.parametrize(
    ("flags", "kind"), [(("--optimizer", "adamw"), torch.optim.AdamW), (("--preset", "annotated"), torch.optim.Adam)]
)
def test_optimizer_follows_the_options(flags, kind):
    config = configure(*flags, "--adam_beta1", "0.8", "--adam_weight_decay", "0.1")
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = make_optimizer(model, config, torch.device("cpu"))
    assert type(optimizer) is kind
    assert optimizer.defaults["betas"] == (0.8, config.adam_beta2)
    assert optimizer.defaults["weight_decay"] == 0.1
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1


# ---- Timesteps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (-1.0, 0.5)])
def test_lognormal_timesteps_make_the_noise_level_lognormal(mean, std):
    """Mean and standard deviation of the logarithm of the noise level, under the weights."""
    flags = ["--timestep_sampling", "lognormal", "--lognormal_mean", str(mean), "--lognormal_std", str(std)]
    scheduler = DDPMLinearScheduler()
    weights = timestep_weights(scheduler, parse_command_line(flags)[0])
    weights /= weights.sum()
    log_sigma = 0.5 * (1 / scheduler.alphas_cumprod.double() - 1).log()
    got_mean = (weights * log_sigma).sum()
    assert got_mean.item() == pytest.approx(mean, abs=0.02)
    assert (weights * (log_sigma - got_mean) ** 2).sum().sqrt().item() == pytest.approx(std, abs=0.02)


def test_timesteps_are_uniform_in_the_paper():
    weights = timestep_weights(DDPMLinearScheduler(), parse_command_line(["--preset", "cifar10"])[0])
    assert (weights == 1).all()
    assert len(weights) == 1000
