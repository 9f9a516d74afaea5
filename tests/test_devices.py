"""Training, drawing and evaluating on a device that is as strict as a GPU, and no step that waits for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_hf import DDPMUNetModel

TESTS = Path(__file__).parent
# Who may wait for the device: what is logged, measured, drawn and saved, and not each step.
MAY_WAIT = {
    *(f"training/state.py:{name}" for name in ("grad_norm", "skipped", "skipped_in_a_row", "numbers")),
    *("training/meter.py:read", "training/log_book.py:wait_for", "training/validation.py:_losses"),
    *("training/checkpoint_writer.py:_begin", "checkpoint.py:save_pipeline"),
    *("denoising.py:pictures", "pipeline_ddpm_custom.py:__call__"),
}
HARNESS = """
import torch
from stand_in_device import stand_in

with stand_in() as device:
    a = torch.ones(3, device="standin")
    complex_numbers = {"dtype": torch.complex128, "device": "standin"}
    for mistake in (lambda: a.double(), lambda: a + torch.ones(3), lambda: torch.zeros(2, **complex_numbers)):
        try:
            mistake()
        except (TypeError, RuntimeError) as error:
            print(error)
    assert (a * torch.tensor(2.0)).sum().item() == 6  # a number may be on the CPU
    a[a > 0]
    assert sum(device.waits.values()) == 2
"""


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_the_stand_in_is_strict():
    wide, two, complex_numbers = run("-c", HARNESS)
    assert "a tensor of torch.float64 on the device" in wide
    assert "tensors of two devices" in two
    assert "a tensor of torch.complex128 on the device" in complex_numbers


@pytest.mark.slow
def test_another_device_computes_the_same_and_no_step_waits(tmp_path, cache_dir):
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = DDPMUNetModel(block_out_channels=(4, 4), layers_per_block=1, norm_num_groups=4, **blocks)
    unet.save_config(tmp_path / "model")
    found = json.loads(run(TESTS / "device_driver.py", tmp_path, tmp_path / "model", cache_dir)[-1])
    for name, tolerance, skipped in (("adamw", 1e-4, 1), ("muon in fp16", 2e-3, 2)):
        assert found[name]["difference"] < tolerance  # after six steps; the layout in the memory differs
        assert found[name]["skipped"] == [skipped, skipped]
        assert found[name]["waits"].keys() <= MAY_WAIT
        assert max(found[name]["waits"][f"training/state.py:{who}"] for who in ("grad_norm", "skipped")) < 6
    assert found["channels_last"] == [False, True, False, True]
    here, there = found["evaluation"]
    assert there == pytest.approx(here, abs=1e-6)
    for name, pictures in found["pipelines"].items():
        assert pictures["difference"] < 1e-5, name
        assert pictures["waits"][0] == pictures["waits"][1] <= 3, name  # the same for 2 and for 4 steps
