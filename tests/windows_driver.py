"""A process that is as strict as Windows, and trains, goes on, draws, evaluates and shares. It prints what is left."""

import gc
import json
import os
import sys
from pathlib import Path

# The libraries that look for names of POSIX when they are imported.
import accelerate  # noqa: F401
import datasets  # noqa: F401
import diffusers  # noqa: F401
import huggingface_hub  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import psutil  # noqa: F401
import torch
from accelerate.state import AcceleratorState
from like_windows import be_like_windows

TRAIN = """--mixed_precision no --train_batch_size 4 --logging_steps 1 --lr_warmup_steps 2 --ddpm_num_inference_steps 3
    --eval_batch_size 2 --resolution 8 --checkpointing_steps 2 --checkpoints_total_limit 1 --save_model_steps 2
    --save_images_steps 2 --validation_fraction 0.1 --validation_steps 2 --keep_best loss --augment --class_conditional
    --ddpm_num_steps 10 --model_config_name_or_path model --train_data_dir pictures --cache_dir cache"""
EVALUATE = """--metrics bpd fid --num_images 8 --bpd_timesteps 2 --batch_size 4 --features features:means
    --cache_dir cache"""
OURS = ("README.md", "best.json", "run.json", "metrics.jsonl", "app.py")  # written by no other library
NAME = "Läufe und Bilder 日本"


def main(folder: Path):
    be_like_windows(folder)
    from ddpm_hf import DDPMPipelineCustom, cli
    from ddpm_hf.checkpoint import save_pipeline

    def train(output, steps, *flags):
        try:
            cli.start_training([*TRAIN.split(), "--max_train_steps", str(steps), "--output_dir", str(output), *flags])
        except SystemExit as error:  # one line
            return str(error), output.exists()
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            gc.collect()  # a user's runs are processes
        return sorted(path.name for path in (output / "checkpoints").iterdir())

    def below(length):
        """Return the path of a folder, of that many characters."""
        return folder / ("n" * (length - len(str(folder)) - len(NAME) - 2)) / NAME

    run = below(150)  # the longest name in it has about 100 characters
    found = {"new": train(run, 4)}
    found["resumed"] = train(run, 8)  # the folder that it goes on from is deleted
    for pixels in (folder / "cache").glob("ddpm_hf/*/pixels.bin"):
        pixels.write_bytes(b"spoilt")
    found["overwritten"] = train(run, 2, "--overwrite_output_dir")
    cli.main(["sample", str(run), "--num_images", "2", "--output", "drawn"])
    cli.main(["evaluate", str(run), *EVALUATE.split()])
    found["metrics"] = sorted(json.loads((run / "evaluation.json").read_text(encoding="utf-8")))
    cli.main(["push", str(run), "--space", "--no_upload"])

    pipeline = DDPMPipelineCustom.from_pretrained(run)
    weights = pipeline.unet.conv_in.weight.clone()
    save_pipeline(pipeline, run)  # it replaces the files that it was loaded from
    found["same"] = torch.equal(weights, DDPMPipelineCustom.from_pretrained(run).unet.conv_in.weight)

    found["refused"] = train(folder / "refused", 4, "--dataset_split", "other")
    found["too deep"] = train(below(200), 4)
    found["left"] = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    ours = [path for name in OURS for path in run.rglob(name)]
    found["ours"] = {path.relative_to(run).as_posix(): b"\r" in path.read_bytes() for path in ours}
    found["classes"] = pipeline.unet.config.class_names
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[1])
    os.chdir(sys.argv[1])
    main(Path(sys.argv[1]))
