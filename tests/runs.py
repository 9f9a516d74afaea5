"""What runs of train_ddpm.py leave behind: reading it, and making it."""

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from PIL import Image

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.config import TrainingConfig
from ddpm_hf.denoising import denoise
from ddpm_hf.pictures import loss_curve


def weights(folder):
    return DDPMUNetModel.from_pretrained(folder, subfolder="unet").state_dict()


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def make_run(folder, **options):
    """A run's folder as train_ddpm.py leaves it, but for the training; with files that are nobody else's business."""
    shutil.copytree(Path(_first_run().name, "run"), folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    config = TrainingConfig(output_dir=str(folder), resolution=8, ddpm_num_inference_steps=5, **options)
    (folder / "config.json").write_text(config.to_json())
    return folder


@functools.cache
def _first_run():
    """Make the files that are the same in all these folders, once for a process, in a temporary folder."""
    temporary = tempfile.TemporaryDirectory()
    folder = Path(temporary.name, "run")
    torch.manual_seed(0)
    unet = DDPMUNetModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        zero_init=False,
    )
    pipeline = DDPMPipelineCustom(unet.eval(), DDPMLinearScheduler(num_train_timesteps=10))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    lines = [{"step": step, "loss": 1 / step, "images_per_second": 8.0, "skipped_updates": 0} for step in (2, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"st')
    machine = {"hardware": "abacus", "processes": 1, "versions": {"torch": "2"}}
    facts = {"parameters": unet.num_parameters(), "images": 100, "images_per_step": 4, **machine}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "samples").mkdir()
    for step in (2, 4):
        Image.new("L", (8, 8), step).save(folder / "samples" / f"step-{step:06d}.png")
    loss_curve([2, 4], [0.5, 0.25]).save(folder / "loss.png")
    denoising = denoise(pipeline, 5, num_images=2)
    denoising.strip(columns=3).save(folder / "denoising.png")
    denoising.save_animation(folder / "denoising.webp")
    for name in ("checkpoints/step-000004/state.json", "logs/events", "unet/notes.txt", ".env"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("private")
    return temporary


def crash_at_rename(number, monkeypatch):
    """Interrupt the process in place of its n-th renaming of a file or folder from now on."""
    renames, rename = [], os.rename

    def crashing(*args):
        renames.append(args)
        if len(renames) == number:
            raise KeyboardInterrupt
        rename(*args)

    monkeypatch.setattr(os, "rename", crashing)
