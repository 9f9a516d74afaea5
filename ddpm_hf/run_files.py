"""The names of what a run of train_ddpm.py leaves behind, and how to tell such a folder from others."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

INDEX = "model_index.json"  # what makes a folder a pipeline
MANIFEST = "manifest.json"  # what makes a folder a checkpoint
STATE = "state.json"
CHECKPOINTS = "checkpoints"
SAMPLES = "samples"
OPTIONS = "config.json"
FACTS = "run.json"
METRICS = "metrics.jsonl"
UNREADABLE = "unreadable_images.jsonl"
DENOISING = "denoising.png"
LOSS = "loss.png"
EVALUATION = "evaluation.json"
EARLIER_EVALUATION = "earlier-evaluation.json"
EVALUATIONS = "evaluations.jsonl"
NEAREST = "nearest.png"
PROGRESSIVE = "progressive.jsonl"

METRICS_FORM = {"step": int, "loss": float | None}  # of each line

_ALWAYS_IN_OPTIONS = {"preset", "output_dir", "ddpm_num_steps", "train_batch_size"}


def is_run(folder: Path) -> bool:
    """Whether a folder is one of train_ddpm.py: it has the options of a run, or a checkpoint of one."""
    return _read(folder / OPTIONS).keys() >= _ALWAYS_IN_OPTIONS or any(
        all((path / name).is_file() for name in (MANIFEST, STATE, "model.safetensors"))
        for path in list_checkpoints(folder / CHECKPOINTS)
    )


def is_pipeline(folder: Path) -> bool:
    """Whether a folder holds a pipeline that this package has saved."""
    index = _read(folder / INDEX)
    return "DDPMPipelineCustom" in str(index.get("_class_name"))


def parts_of_run(folder: Path) -> list[Path]:
    """List the files of a run that a new run deletes. Options, facts, pipeline and card are replaced instead; all other
    files are not the run's."""
    numbers = (METRICS, UNREADABLE, EVALUATION, EARLIER_EVALUATION, EVALUATIONS, PROGRESSIVE)
    named = [folder / name for name in (*numbers, LOSS, DENOISING, NEAREST)]
    unfinished = (folder / CHECKPOINTS).glob(".unfinished-step-*")
    checkpoints = filter(was_saved_here, list_checkpoints(folder / CHECKPOINTS))
    found = [*checkpoints, *unfinished, *list_samples(folder / SAMPLES), *named]
    return [path for path in found if path.exists()]


def _read(path: Path) -> dict:
    """What a file of JSON holds; nothing if it is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints, the oldest first; other folders, such as a copy `step-000500-copy`, are left alone."""
    return [path for path in _of_steps(folder.glob("step-*")) if path.is_dir()]


def was_saved_here(checkpoint: Path) -> bool:
    """Whether a folder that is named like a checkpoint is one that a run wrote, and may be deleted."""
    return (checkpoint / MANIFEST).is_file() and not checkpoint.is_symlink()


def list_samples(folder: Path) -> list[Path]:
    """The pictures of samples, the oldest first; other pictures are left alone."""
    return _of_steps(folder.glob("step-*.png"))


def _of_steps(paths: Iterable[Path]) -> list[Path]:
    """Those that are named by a step, `step-000500`, in the order of the steps."""
    steps = {path: re.fullmatch(r"step-(\d{6,})(\.png)?", path.name) for path in paths}
    return sorted((path for path in steps if steps[path]), key=lambda path: int(steps[path][1]))
