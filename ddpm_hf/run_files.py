"""The names of the files in the folder of a run, and how to tell such a folder from others."""

import re
from collections.abc import Iterable
from pathlib import Path

from ddpm_hf.files import read_json
from ddpm_hf.manifest import MANIFEST

INDEX = "model_index.json"  # what makes a folder a pipeline
STATE = "state.json"
CHECKPOINTS = "checkpoints"
SAMPLES = "samples"
OPTIONS = "config.json"
FACTS = "run.json"
PUSHED_TO = ".pushed-to.json"  # the repositories that the folder was pushed to
METRICS = "metrics.jsonl"
UNREADABLE = "unreadable_images.jsonl"
SMALL = "small_images.jsonl"
DENOISING = "denoising.png"
ANIMATION = "denoising.webp"
AUGMENTED = "augmented.png"
LOSS = "loss.png"
EVALUATION = "evaluation.json"
EARLIER_EVALUATION = "earlier-evaluation.json"
EVALUATIONS = "evaluations.jsonl"
NEAREST = "nearest.png"
PROGRESSIVE = "progressive.jsonl"
SNAPSHOTS = "posthoc_ema"  # of two averages of the weights, with --posthoc_ema
BEST = "best"  # the folder of the best pipeline
UNFINISHED_AVERAGES = "ema.unfinished"  # in a folder of averages until all are there: the run, and their lengths
ABOUT_AVERAGE = "average.json"  # in the folder of an average that was made from snapshots: its length and origin
ABOUT_BEST = "best.json"  # in it: the step and the number that it is the best by

METRICS_FORM = {"step": int, "loss": float | None}  # of each line

# The files that a run, a card and an evaluation write into the folder of the best pipeline.
_OF_BEST = re.compile(
    r"(\.(unfinished|replaced)/)?(best\.json|model_index\.json|(unet|scheduler)/(scheduler_)?config\.json|"
    r"(unet/|scheduler/)?\w+\.py|unet/diffusion_pytorch_model.*)|(earlier-)?evaluation\.json"
)
_ALWAYS_IN_OPTIONS = {"preset", "output_dir", "ddpm_num_steps", "train_batch_size"}


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run: it holds the options of a run, or a checkpoint."""
    return read_object(folder / OPTIONS).keys() >= _ALWAYS_IN_OPTIONS or any(
        all((path / name).is_file() for name in (MANIFEST, STATE, "model.safetensors"))
        for path in list_checkpoints(folder / CHECKPOINTS)
    )


def is_pipeline(folder: Path) -> bool:
    """Return whether a folder holds a pipeline that this package saved."""
    index = read_object(folder / INDEX)
    return "DDPMPipelineCustom" in str(index.get("_class_name"))


def parts_of_run(folder: Path) -> list[Path]:
    """List the files of a run that a new run deletes.

    Options, facts, pipeline and card are replaced instead. All other files are somebody else's.
    """
    numbers = (METRICS, UNREADABLE, SMALL, EVALUATION, EARLIER_EVALUATION, EVALUATIONS, PROGRESSIVE)
    named = [folder / name for name in (*numbers, PUSHED_TO, LOSS, DENOISING, ANIMATION, AUGMENTED, NEAREST)]
    of_steps = [*_written(folder / CHECKPOINTS), *snapshots_after(folder, 0)]
    found = [*of_steps, *list_samples(folder / SAMPLES), *named, *_parts_of_best(folder / BEST)]
    return [path for path in found if path.exists()]


def _written(folder: Path) -> list[Path]:
    """List the checkpoints or snapshots that a run wrote into a folder, and those that crashes left unfinished."""
    return [*filter(was_saved_here, list_checkpoints(folder)), *folder.glob(".unfinished-step-*")]


def snapshots_after(run: Path, step: int) -> list[Path]:
    """List the snapshots that a run wrote after a step, and the unfinished ones."""
    return [path for path in _written(run / SNAPSHOTS) if path.name[0] == "." or step_of(path) > step]


def _parts_of_best(folder: Path) -> list[Path]:
    """Return the folder of the best pipeline; or the files of it that runs write, if it holds others, too."""
    if not (folder / ABOUT_BEST).is_file():
        return []
    files = [path for path in folder.rglob("*") if path.is_file()]
    ours = [path for path in files if _OF_BEST.fullmatch(path.relative_to(folder).as_posix())]
    return [folder] if len(ours) == len(files) else ours


def read_object(path: Path) -> dict:
    """Read a file that holds an object of JSON. Return an empty dictionary for any other file, or none."""
    try:
        return read_json(path, {})
    except ValueError:
        return {}


def list_checkpoints(folder: Path) -> list[Path]:
    """List the finished checkpoints or snapshots, the oldest first, without folders such as `step-000500-copy`."""
    return [path for path in _of_steps(folder.glob("step-*")) if path.is_dir()]


def step_of(checkpoint: Path) -> int:
    """Return the step of a finished checkpoint or snapshot."""
    return int(checkpoint.name.removeprefix("step-"))


def was_saved_here(checkpoint: Path) -> bool:
    """Return whether a run wrote a folder that is named like a checkpoint, so that it may be deleted."""
    return (checkpoint / MANIFEST).is_file() and not checkpoint.is_symlink()


def list_samples(folder: Path) -> list[Path]:
    """List the pictures of samples, the oldest first, without other pictures."""
    return _of_steps(folder.glob("step-*.png"))


def _of_steps(paths: Iterable[Path]) -> list[Path]:
    """Sort the paths that are named by a step, such as `step-000500`, by the step. Leave out all others."""
    names = ((path, re.fullmatch(r"step-(\d{6,})(\.png)?", path.name)) for path in paths)
    steps = {path: int(name[1]) for path, name in names if name}
    return sorted(steps, key=steps.__getitem__)
