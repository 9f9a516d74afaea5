"""A process that is as strict as Windows and does what a user does with a run. It prints what it found in JSON."""

import gc
import json
import os
import sys
from pathlib import Path

import accelerate  # the libraries that look for names of POSIX when they are imported
import datasets  # noqa: F401
import diffusers  # noqa: F401
import filelock  # noqa: F401
import huggingface_hub  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import psutil  # noqa: F401
import torch
from accelerate.state import AcceleratorState
from like_windows import be_like_windows

TRAIN = """--mixed_precision no --train_batch_size 4 --logging_steps 1 --lr_warmup_steps 2 --ddpm_num_inference_steps 3
    --eval_batch_size 2 --resolution 8 --checkpointing_steps 2 --checkpoints_total_limit 1 --save_model_steps 2
    --save_images_steps 2 --validation_fraction 0.1 --validation_steps 2 --keep_best loss --augment --class_conditional
    --ddpm_num_steps 10"""


def main(folder: Path):
    be_like_windows(folder)
    from ddpm_hf import DDPMPipelineCustom, cli

    def train(output, *flags, steps=4):
        words = [*TRAIN.split(), "--model_config_name_or_path", str(folder / "model"), "--max_train_steps", str(steps)]
        words += ["--train_data_dir", str(folder / "pictures"), "--cache_dir", str(folder / "cache")]
        try:
            cli.start_training([*words, "--output_dir", str(output), *flags])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            gc.collect()  # a user's runs are processes

    def names(path):
        return sorted(file.name for file in path.iterdir())

    # As deep as a run can be: the longest name in it has 68 characters.
    ending = "Läufe und Bilder 日本"
    run = folder / ("l" * (190 - len(str(folder)) - len(ending) - 2)) / ending
    found = {}
    train(run)
    found["checkpoints"] = [names(run / "checkpoints")]
    train(run, steps=8)  # goes on from the checkpoint, whose folder is deleted
    found["checkpoints"] += [names(run / "checkpoints")]
    found["samples"] = names(run / "samples")
    found["run"] = names(run)

    for file in (folder / "cache").glob("ddpm_hf/*/pixels.bin"):  # a spoilt cache is made again
        file.write_bytes(file.read_bytes()[:-1])
    train(run, "--overwrite_output_dir", steps=2)
    cli.main(["sample", str(run), "--num_images", "2", "--output", str(folder / "samples")])
    cli.main(
        ["evaluate", str(run), "--metrics", "bpd,fid", "--num_images", "8", "--bpd_timesteps", "2", "--batch_size", "4"]
        + ["--features", "features:means", "--cache_dir", str(folder / "cache")]
    )
    cli.main(["push", str(run), "--space", "--no_upload"])
    found["space"] = names(run / "space" / "ddpm_hf" / "pipelines")

    # A pipeline replaces itself.
    pipeline = DDPMPipelineCustom.from_pretrained(run)
    before = pipeline.unet.conv_in.weight.clone()
    from ddpm_hf.checkpoint import save_pipeline

    save_pipeline(pipeline, run)
    found["same"] = bool(torch.equal(before, DDPMPipelineCustom.from_pretrained(run).unet.conv_in.weight))
    found["left"] = [str(path) for path in folder.rglob("*") if path.name.startswith((".unfinished", ".replaced"))]
    text = b"".join(path.read_bytes() for path in run.rglob("*") if path.suffix in (".json", ".jsonl", ".md", ".py"))
    found["carriage_returns"] = text.count(b"\r")

    for name, deep in {"refused": folder / "new", "deep": folder / ("l" * (231 - len(str(folder)))) / "run"}.items():
        try:
            train(deep, *(["--pretrained_model_name_or_path", str(folder / "model")] if name == "refused" else []))
        except SystemExit as error:
            found[name] = str(error)
            found[f"{name}_left"] = [path.name for path in deep.rglob("*")] if deep.exists() else None
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    sys.path.insert(0, sys.argv[1])
    main(Path(sys.argv[1]))
