"""The names of what a run of train_ddpm.py leaves behind, and how to tell such a folder from others."""

import json
import re
from pathlib import Path

INDEX = "model_index.json"  # what makes a folder a pipeline
MANIFEST = "manifest.json"  # what makes a folder a checkpoint
STATE = "state.json"
CHECKPOINTS = "checkpoints"
SAMPLES = "samples"
OPTIONS = "config.json"
METRICS = "metrics.jsonl"
FACTS = "run.json"
UNREADABLE = "unreadable_images.jsonl"
DENOISING = "denoising.png"
LOSS = "loss.png"
EVALUATION = "evaluation.json"
EVALUATIONS = "evaluations.jsonl"

_ALWAYS_IN_OPTIONS = {"preset", "output_dir", "ddpm_num_steps", "train_batch_size"}


def is_run(folder: Path) -> bool:
    """Whether a folder is one of train_ddpm.py: it has the options of a run, or a checkpoint of one."""
    return _has_options(folder / OPTIONS) or any(
        all((path / name).is_file() for name in (MANIFEST, STATE, "model.safetensors"))
        for path in list_checkpoints(folder / CHECKPOINTS)
    )


def _has_options(path: Path) -> bool:
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(options, dict) and options.keys() >= _ALWAYS_IN_OPTIONS


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints, the oldest first; other folders, such as a copy `step-000500-copy`, are left alone."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
