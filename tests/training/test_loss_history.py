"""Timesteps drawn by their losses (arXiv 2102.09672, section 3.3): against a plain loop, and in runs."""

import math
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from runs import equal, metrics
from safetensors.torch import load_file

import ddpm_hf.train as loop
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.training.loss_history import LossHistory, images_until_full
from ddpm_hf.training.meter import LossMeter
from ddpm_hf.training.objective import Objective, denoising_loss

CPU = torch.device("cpu")


class PlainHistory:
    """What the paper says, one loss after the other."""

    def __init__(self, num_timesteps):
        self.last = [deque(maxlen=10) for _ in range(num_timesteps)]

    def add(self, losses, t):
        for loss, timestep in zip(losses.tolist(), t.tolist()):
            if math.isfinite(loss):
                self.last[timestep].append(loss)

    def probabilities(self):
        if any(len(losses) < 10 for losses in self.last):
            return [1 / len(self.last)] * len(self.last)
        roots = [math.sqrt(math.fsum(loss**2 for loss in losses) / 10) for losses in self.last]
        return [0.999 * root / math.fsum(roots) + 0.001 / len(roots) for root in roots]


def some_losses(T, count):
    """Losses that differ much between timesteps, some of them not finite."""
    t = torch.randint(0, T, (count,))
    losses = torch.rand(count) * 10.0 ** (2 - t)
    return losses.where(torch.rand(count) > 0.05, math.nan), t


def end_step(history, noted, skip=0.0, accelerator=None):
    for losses, t in noted:
        history.note(losses, t)
    history.end_step(accelerator or Accelerator(cpu=True), torch.tensor(skip))


def test_the_history_is_that_of_a_plain_loop():
    """Also where a step has more than ten losses at a timestep, and where its gradient was not finite."""
    history, plain, T = LossHistory(5, CPU), PlainHistory(5), 5
    densities = set()
    for count in (3, 40, 1, 5, 90, 16):
        noted = [some_losses(T, count) for _ in range(2)]  # two micro-batches
        end_step(history, noted)
        for losses, t in noted:
            plain.add(losses, t)
        found = history.density / T
        torch.testing.assert_close(found, torch.tensor(plain.probabilities()).double(), rtol=1e-6, atol=0)
        end_step(history, noted, skip=1.0)
        assert torch.equal(history.density / T, found)
        densities.add(tuple(found.tolist()))
    assert len(densities) > 3  # it was uniform, and did not stay so

    again = LossHistory(T, CPU)
    again.load(history.tensors())
    assert torch.equal(again.density, history.density)


def test_losses_too_large_for_a_square_in_float32():
    history = LossHistory(2, CPU)
    history.losses.copy_(torch.tensor([[1e30], [3e30]]))
    history.counts += 10
    torch.testing.assert_close(history._density(), torch.tensor([0.5, 1.5]).double(), rtol=1e-2, atol=0)


def test_two_processes_have_the_history_of_one():
    """Micro-batch a of process p is number 2 a + p."""
    micro_batches = [some_losses(5, 60) for _ in range(6)]
    one, two = LossHistory(5, CPU), LossHistory(5, CPU)
    end_step(one, micro_batches)
    others = iter(torch.stack(parts) for parts in zip(*micro_batches[1::2]))
    gather = SimpleNamespace(gather=lambda mine: torch.cat((mine, next(others)[None])))
    end_step(two, micro_batches[::2], accelerator=gather)
    assert torch.equal(one.counts, two.counts)
    assert torch.equal(one.losses, two.losses)


def test_the_estimate_is_unbiased_and_has_less_noise():
    """In closed form, and as the log shows it."""
    T, history = 5, LossHistory(5, CPU)
    means = 10.0 ** -torch.arange(T).double()
    t = torch.arange(T).repeat(10)
    end_step(history, [(means[t].float(), t)])
    p, importance = history.density / T, history.importance(torch.arange(T)).double()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert (p * importance * means).sum().item() == pytest.approx(means.mean().item(), rel=1e-6)
    noise = (p * (importance * means) ** 2).sum() - means.mean() ** 2
    assert noise < 0.01 * means.var(correction=0)

    objective = SimpleNamespace(frequencies=None)
    drawn = Objective.draw_timesteps(objective, 20_000, torch.Generator().manual_seed(0), history)
    assert (drawn.bincount(minlength=T) / 20_000).tolist() == pytest.approx(p.tolist(), abs=0.01)
    meter = LossMeter(T, CPU)
    meter.add_estimates(history.importance(drawn) * means[drawn].float(), drawn)
    numbers = meter.read(Accelerator(cpu=True))
    assert numbers["loss"] == pytest.approx(means.mean().item(), rel=0.01)
    assert numbers["loss_q1"] == pytest.approx(means[:2].mean().item(), rel=0.01)  # of t = 0 and 1
    assert numbers["loss_q4"] == pytest.approx(means[4].item(), rel=0.5)


def test_when_a_history_is_full():
    """The median over many runs, for 20 timesteps."""
    draws = torch.randint(0, 20, (300, 1000))
    full = (torch.nn.functional.one_hot(draws, 20).cumsum(1) >= 10).all(2).int().argmax(1)
    assert images_until_full(20) == pytest.approx(full.median().item(), rel=0.05)


# ---- Runs -----------------------------------------------------------------------------------------------------------

# The history of four timesteps is full after about seven steps of eight images.
OPTIONS = {"timestep_sampling": "loss_second_moment", "loss_weighting": "vlb", "variance_type": "learned_range"}
OPTIONS |= {"ddpm_num_steps": 4, "gradient_accumulation_steps": 2, "lr_scheduler": "constant", "seed": 1}


def test_a_run_resumes_exactly_and_draws_by_the_steps_before(train, monkeypatch, capsys):
    """The gradient of step 4 is not finite."""
    steps, drawn_from, draw = [[]], [], Objective.draw_timesteps

    def noting_loss(*args):
        losses = denoising_loss(*args) * (math.nan if len(steps) == 4 else 1)
        steps[-1].append((losses.detach(), args[3]))
        if len(steps[-1]) == 2:
            steps.append([])
        return losses

    def noting_draw(objective, count, generator, history=None):
        drawn_from.append(history.density / 4)
        return draw(objective, count, generator, history)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "denoising_loss", noting_loss)
        patch.setattr(Objective, "draw_timesteps", noting_draw)
        whole = train("whole", max_train_steps=16, **OPTIONS)
        assert "each has had ten: from about step 7 on.\n" in capsys.readouterr().out
        plain = PlainHistory(4)
        for i, step in enumerate(steps[:-1]):
            expected = torch.tensor(plain.probabilities()).double()
            for found in drawn_from[2 * i : 2 * i + 2]:
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
            for losses, t in step:
                plain.add(losses, t)
        assert drawn_from[0].tolist() == [0.25] * 4 and drawn_from[-1].max() > 0.4

        steps[:] = [[]]
        train("parts", max_train_steps=5, **OPTIONS)
        assert "which is after the end of this run" in capsys.readouterr().out
    parts = train("parts", max_train_steps=16, **OPTIONS)
    assert equal(whole, parts)
    a, b = (load_file(folder / "checkpoints" / "step-000016" / "history.safetensors") for folder in (whole, parts))
    assert torch.equal(a["losses"], b["losses"]) and torch.equal(a["counts"], b["counts"])
    assert a["counts"].sum() == 15 * 8
    assert [line["loss"] for line in metrics(whole)] == [line["loss"] for line in metrics(parts)]
    card = (whole / "README.md").read_text()
    assert all(f"--{name} {OPTIONS[name]}" in card for name in ("timestep_sampling", "loss_weighting"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--loss_weighting", "vlb"), "--timestep_sampling lognormal would weigh the terms of the bound"),
        (("--loss_weighting", "vlb", "--prediction_type", "sample"), "--loss_weighting vlb gives no gradient at t = 0"),
        (
            ("--variance_type", "learned_range", "--loss_weighting", "min_snr"),
            "--loss_weighting min_snr would weigh the bound",
        ),
        (("--timestep_sampling", "loss"), "loss_second_moment"),
    ],
)
def test_options_that_do_not_fit(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_command_line([*flags])
    assert message in f"{stop.value.code} {capsys.readouterr().err}"
