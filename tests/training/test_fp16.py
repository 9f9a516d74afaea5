"""fp16 with the gradient scaler against float32, with gradients that overflow, and resumed.

It runs on the GPU if there is one, else on the CPU, which computes in fp16, too.
"""

import itertools
import math

import pytest
import torch
from half_precision import started_in_fp16
from runs import equal, metrics
from safetensors.torch import load_file

import ddpm_hf.prepare
import ddpm_hf.train as loop
from ddpm_hf.checkpoint import load_state
from ddpm_hf.training.objective import denoising_loss

SCALE, GROWTH_INTERVAL = 2.0**18, 3  # the first gradients overflow, and each time that the scale has grown again
STEPS, LEARNING_RATE = 12, 1e-3
DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


@pytest.fixture
def train_fp16(train, monkeypatch):
    def run(*arguments, **options):
        scaler = torch.amp.GradScaler(DEVICE.type, SCALE, growth_interval=GROWTH_INTERVAL)
        with monkeypatch.context() as patch:
            patch.setattr(ddpm_hf.prepare, "start_accelerator", lambda config: started_in_fp16(config, scaler))
            return train(*arguments, mixed_precision="fp16", **options)

    return run


def checkpoint(folder):
    return folder / "checkpoints" / f"step-{STEPS:06}"


@pytest.mark.slow
def test_fp16_equals_float32_and_resumes(train, train_fp16, monkeypatch):
    options = {"learning_rate": LEARNING_RATE, "lr_scheduler": "constant", "max_train_steps": STEPS}
    half = train_fp16("half", "--use_ema", **options)
    counts = [line["skipped_updates"] for line in metrics(half)]
    skips = [after > before for before, after in itertools.pairwise([0, *counts])]
    assert skips[0] and not skips[-1] and 2 <= sum(skips) <= STEPS / 2

    # The scale halves at each gradient that overflows, and doubles after three in a row that do not.
    scale, good = SCALE, 0
    for skip in skips:
        scale, good = (scale / 2, 0) if skip else (scale, good + 1)
        if good == GROWTH_INTERVAL:
            scale, good = scale * 2, 0
    state = load_state(checkpoint(half))
    assert (state["scaler"]["scale"], state["scaler"]["_growth_tracker"]) == (scale, good)
    assert (state["step"], state["skipped"]) == (STEPS, sum(skips))

    # The scale is part of the checkpoint, so a resumed run overflows where the whole one does.
    train_fp16("parts", "--use_ema", **{**options, "max_train_steps": 5})
    parts = train_fp16("parts", "--use_ema", **options)
    assert equal(half, parts)
    assert load_state(checkpoint(parts))["scaler"] == state["scaler"]
    assert [line["skipped_updates"] for line in metrics(parts)] == counts

    # The float32 run skips the same updates, since there the loss is not finite.
    calls = iter(skips)
    monkeypatch.setattr(loop, "denoising_loss", lambda *args: denoising_loss(*args) * (math.nan if next(calls) else 1))
    single = train("single", "--use_ema", **options)
    for ours, theirs, skip in zip(metrics(half), metrics(single), skips, strict=True):
        if not skip:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)
    for name in ("model", "ema"):
        ours, theirs = (load_file(checkpoint(run) / f"{name}.safetensors") for run in (half, single))
        for key, weight in theirs.items():
            torch.testing.assert_close(ours[key], weight, rtol=0, atol=2 * LEARNING_RATE, msg=key)
        ours, theirs = (torch.cat([tensor.flatten() for tensor in file.values()]) for file in (ours, theirs))
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()
