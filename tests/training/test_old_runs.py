"""Folders that version 0.1.0 wrote, before its modules moved, still load and go on.

`reference/run_of_0.1` was trained for eight steps. Its checkpoint of step 8 was deleted, so the run goes on from
step 4, and the pipeline that it had at step 8 is the oracle.
"""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from oracles import REFERENCE
from runs import metrics, weights

from ddpm_hf import DDPMPipelineCustom, cli
from ddpm_hf.config import TrainingConfig

OLD = REFERENCE / "run_of_0.1"


@pytest.fixture
def old(tmp_path):
    return shutil.copytree(OLD, tmp_path / "old")


def test_the_pipeline_loads(old):
    """With this package, and with nothing but diffusers and the sources in the folder."""
    ours = DDPMPipelineCustom.from_pretrained(old)
    theirs = DiffusionPipeline.from_pretrained(old, trust_remote_code=True)
    assert type(ours.unet) is not type(theirs.unet)
    for pipeline in (ours, theirs):
        pipeline.set_progress_bar_config(disable=True)
    draw = {"class_labels": ["3", "7"], "num_inference_steps": 3, "output_type": "np"}
    images = [pipeline(2, torch.Generator().manual_seed(0), **draw).images for pipeline in (ours, theirs)]
    torch.testing.assert_close(*map(torch.from_numpy, images))


def test_the_run_goes_on(old, train, tmp_path):
    network = tmp_path / "network.json"
    shutil.copyfile(old / "unet" / "config.json", network)
    train(
        "old",
        "--class_conditional",
        *("--optimizer", "adamw", "--lognormal_mean", "0.5", "--lognormal_std", "1.0", "--ema_max_decay", "0.995"),
        model_config_name_or_path=network,
        max_train_steps=8,
        checkpointing_steps=4,
        eval_batch_size=4,
        save_images_steps=4,
        save_model_steps=4,
    )
    assert metrics(old)[:4] == metrics(OLD)[:4]
    then = {line["step"]: line["loss"] for line in metrics(OLD)}
    assert {line["step"]: line["loss"] for line in metrics(old)} == pytest.approx(then, rel=1e-4)
    for name, tensor in weights(OLD).items():
        torch.testing.assert_close(weights(old)[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_commands_take_it(old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(["sample", str(old), "--checkpoint", "latest", "--batch_size", "2", "--num_inference_steps", "2"])
    cli.main(["convert", str(old), str(tmp_path / "converted")])
    assert (tmp_path / "converted" / "model_index.json").exists()


def test_the_options_are_known():
    saved = json.loads((OLD / "config.json").read_text())
    assert TrainingConfig(**saved).differences(saved) == []
