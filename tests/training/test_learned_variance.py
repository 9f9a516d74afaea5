"""Learned variances (arXiv 2102.09672): the objective against closed forms, and a run from training to sharing."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline
from oracles import GaussianDenoiser, gaussian_variance
from runs import equal

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.cli import main
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.convert import to_unet2d
from ddpm_hf.evaluation.likelihood import log_probability_of_pixels, step_bits
from ddpm_hf.training.memory import peak_memory
from ddpm_hf.training.objective import bound_at, denoising_loss
from ddpm_hf.training.pretrained import adapt


class Learner(torch.nn.Module):
    """The exact denoiser with two parameters for each timestep: the variance, and an error of the mean."""

    def __init__(self, timesteps):
        super().__init__()
        self.denoiser = GaussianDenoiser()
        self.v = torch.nn.Parameter(torch.zeros(len(timesteps)))
        self.error = torch.nn.Parameter(torch.full((len(timesteps),), 0.2))

    def forward(self, x_t, t, class_labels, return_dict):
        eps = self.denoiser(x_t, t).sample + self.error.view(-1, 1, 1, 1)
        return (torch.cat((eps, self.v.view(-1, 1, 1, 1).expand(x_t.shape)), dim=1),)


@pytest.mark.parametrize("is_bound", [False, True], ids=["L_hybrid", "L_vlb"])
def test_mean_and_variance_become_those_of_the_true_reverse_process(is_bound):
    """For Gaussian data they are known. The loss has its minimum there."""
    t = torch.tensor([1, 3, 10, 100, 700])
    learner, scheduler = Learner(t), DDPMLinearScheduler(variance_type="learned_range")
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 150)
        x_0, eps = 0.3 + 0.2 * torch.randn(len(t), 1, 48, 48), torch.randn(len(t), 1, 48, 48)
        optimizer.zero_grad()
        denoising_loss(learner, scheduler, x_0, t, eps, is_bound=is_bound).sum().backward()
        optimizer.step()
    learned = scheduler.variance(t, learner.v.detach(), dtype=torch.float64)
    torch.testing.assert_close(learned, gaussian_variance(learner.denoiser)[t], rtol=0.05, atol=0)
    torch.testing.assert_close(learner.error.detach(), torch.zeros(len(t)), rtol=0, atol=0.02)


class Answer:
    """A network with this output."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, output):
        self.output = output

    def __call__(self, x_t, t):
        return SimpleNamespace(sample=self.output)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_the_bound_is_that_of_the_evaluation(variance_type, prediction_type):
    scheduler = DDPMLinearScheduler(
        variance_type=variance_type, prediction_type=prediction_type, clip_sample=False, num_train_timesteps=50
    )
    pixels, t = torch.randint(0, 256, (6, 3, 8, 8)), torch.tensor([0, 0, 1, 5, 30, 49])
    pixels[0, 0, 0, :2] = torch.tensor([0, 255])
    x_0 = pixels / 127.5 - 1
    eps, output = torch.randn(x_0.shape), torch.rand(6, 6, 8, 8) * 2 - 1
    x_t = scheduler.add_noise(x_0, eps, t)
    target = {"epsilon": eps, "sample": x_0, "v_prediction": scheduler.get_velocity(x_0, eps, t)}[prediction_type]
    output[:, :3] = target + 0.01 * output[:, :3]  # a network that is good, as the decoder has to see it
    if variance_type == "learned":
        output[:, 3:] = scheduler.variance(t, variance_type="fixed_large").view(-1, 1, 1, 1) * output[:, 3:].exp()
    expected, _ = step_bits(Answer(output), scheduler, pixels, t, eps)
    found = bound_at(scheduler, x_0, x_t, t, *output.chunk(2, dim=1))
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_with_a_fixed_variance_l_vlb_is_equation_12(variance_type):
    """Its value but for a constant, and its gradient, which L_hybrid does not give to the mean."""
    scheduler, t = DDPMLinearScheduler(variance_type=variance_type), torch.tensor([1, 2, 400, 999])
    x_0, eps, output = torch.rand(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8).requires_grad_()
    loss = denoising_loss(lambda *args, **options: (output,), scheduler, x_0, t, eps, is_bound=True)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    beta, a, before = betas[t], alpha_bar[t], alpha_bar[t - 1]
    tilde = (1 - before) / (1 - a) * beta
    sigma_2 = tilde if variance_type == "fixed_small" else beta
    weight = beta**2 / (2 * sigma_2 * (1 - beta) * (1 - a))
    constant = 0.5 * (tilde / sigma_2 - 1 - (tilde / sigma_2).log())
    wanted = 1000 / math.log(2) * (weight * (eps - output).double().square().mean((1, 2, 3)) + constant)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-3, atol=0)
    gradients = [torch.autograd.grad(each.sum(), output)[0] for each in (loss, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)


def test_the_mean_is_trained_by_l_simple_alone():
    scheduler, plain = DDPMLinearScheduler(variance_type="learned_range"), DDPMLinearScheduler()
    x_0, eps, t = torch.rand(4, 1, 8, 8), torch.randn(4, 1, 8, 8), torch.tensor([0, 2, 400, 999])
    gradients = []
    for each, channels in ((scheduler, 2), (plain, 1)):
        torch.manual_seed(1)
        output = torch.randn(4, 2, 8, 8).requires_grad_()
        unet = lambda *args, given=output[:, :channels], **options: (given,)  # noqa: E731
        loss = denoising_loss(unet, each, x_0, t, eps)
        gradients.append(torch.autograd.grad(loss.sum(), output)[0])
    learned, fixed = gradients
    assert torch.equal(learned[:, 0], fixed[:, 0])
    assert learned.isfinite().all() and (learned[:, 1].flatten(1).abs().sum(1) > 0).all()


def test_the_decoder_is_exact_and_has_no_infinite_gradient():
    """Even where a pixel is impossible, and where float32 gives its bin a probability of zero."""
    scheduler = DDPMLinearScheduler(variance_type="learned")
    x_0 = torch.tensor([0, 1, 128, 255]).view(1, 1, 2, 2) / 127.5 - 1
    variance = torch.full_like(x_0, 1e-6).requires_grad_()
    bound = bound_at(scheduler, x_0, -x_0, torch.tensor([0]), torch.zeros_like(x_0), variance)
    assert torch.autograd.grad(bound.sum(), variance)[0].isfinite().all()
    pixels, sigma_2 = torch.tensor([0, 1, 128, 255]), torch.full((4,), 1e-4, dtype=torch.float64)
    exact = log_probability_of_pixels(pixels, pixels / 127.5 - 1, sigma_2.log()).mean() / -torch.tensor(2.0).log()
    x_t = scheduler.alphas_cumprod[0].sqrt() * x_0
    near = bound_at(scheduler, x_0, x_t, torch.tensor([0]), torch.zeros_like(x_0), 0 * x_0 + 1e-4)
    assert near.item() == pytest.approx(exact.item(), rel=1e-3)


def test_a_run_learns_resumes_draws_and_is_measured(train, tmp_path, capsys):
    """Also after pictures of fewer steps are drawn, which the loss must not notice."""
    options = {"variance_type": "learned_range", "ddpm_beta_schedule": "squaredcos_cap_v2", "checkpointing_steps": 2}
    options["save_images_steps"] = 1
    whole = train("whole", max_train_steps=4, lr_scheduler="constant", **options)
    undrawn = {**options, "save_images_steps": 1000}
    train("parts", max_train_steps=2, lr_scheduler="constant", **undrawn)
    parts = train("parts", max_train_steps=4, lr_scheduler="constant", **options)
    assert equal(whole, parts)
    assert "--variance_type learned_range" in (whole / "README.md").read_text()

    pipeline = DDPMPipelineCustom.from_pretrained(whole)
    assert pipeline.unet.config.out_channels == 2 * pipeline.unet.config.in_channels
    stock = DDPMPipeline(to_unet2d(pipeline.unet).eval(), DDPMScheduler.from_config(pipeline.scheduler.config))
    for each in (pipeline, stock):
        each.set_progress_bar_config(disable=True)
    ours, theirs = (
        torch.as_tensor(each(2, torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images)
        for each in (pipeline, stock)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    remote = DiffusionPipeline.from_pretrained(whole, trust_remote_code=True)
    assert remote(1, num_inference_steps=2, output_type="pt").images.isfinite().all()

    for scheduler in ("ddim", "unipc"):
        flags = ["--scheduler", scheduler, "--num_images", "2", "--num_inference_steps", "3"]
        main(["sample", str(whole), *flags, "--output", str(tmp_path / f"{scheduler}.png")])
    main(["evaluate", str(whole), "--metrics", "bpd", "--num_images", "2", "--bpd_timesteps", "4"])
    noted = json.loads((whole / "evaluation.json").read_text())["bpd"]
    assert noted["variance_type"] == "learned_range" and noted["value"] > 0

    of_base = ("train", "--pretrained_model_name_or_path", str(whole))
    refused = {
        ("distill", str(whole), "--steps", "2"): "a student takes steps without noise, which have no variance",
        (*of_base, "--variance_type", "fixed_small"): "is made for learned_range",
    }
    for command, message in refused.items():
        with pytest.raises(SystemExit) as stop:
            main([*command, "--output_dir", str(tmp_path / "other")])
        assert re.search(message, f"{stop.value.code} {capsys.readouterr().err}")


def test_grey_becomes_colour_in_both_halves():
    levels = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "layers_per_block": 1}
    keys = {"sample_size": 8, "block_out_channels": (8,), "norm_num_groups": 4, "zero_init": False, **levels}
    grey = DDPMUNetModel(in_channels=1, out_channels=2, **keys).eval()
    colour = DDPMUNetModel(in_channels=3, out_channels=6, **keys).eval()
    adapt(grey, colour)
    x = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        before, now = grey(x, 5).sample, colour(x.expand(-1, 3, -1, -1), 5).sample
    torch.testing.assert_close(now, before.repeat_interleave(3, dim=1), rtol=0, atol=1e-5)


def test_the_memory_of_colour_is_estimated(small):
    learned, fixed = (
        parse_command_line(small("x", variance_type=kind))[0] for kind in ("learned_range", "fixed_small")
    )
    assert peak_memory(learned, 3, "cpu") > peak_memory(fixed, 3, "cpu")
