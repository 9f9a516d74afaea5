"""Save and load pipelines and checkpoints, so that no crash and no full disk spoils an older one."""

import os
import re
import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ddpm_hf.files import read_json, sync, write_json
from ddpm_hf.manifest import MANIFEST, check_files, describe_files, whole_folder
from ddpm_hf.pipeline_ddpm_custom import SHIPPED_MODULES
from ddpm_hf.power_averages import STDS
from ddpm_hf.run_files import INDEX, STATE, list_checkpoints, step_of, was_saved_here

STATE_FORM = {
    "step": int,
    "micro_batches": int,
    "skipped": int,
    "losses": list,
    "config": dict,
    "images": int | None,
    "images_per_step": int,
    "stream": dict | None,
}
_OF_PIPELINES = re.compile(rf"(scheduler_)?config\.json|diffusion_pytorch_model.*|({'|'.join(SHIPPED_MODULES)})\.py")
ADVICE = "Take another checkpoint."
# The files of the two averages that a run keeps with --posthoc_ema, by their lengths, in checkpoints and in snapshots.
POWER_AVERAGES = {std: f"ema-{std:.3f}" for std in STDS}

# ---- The pipeline --------------------------------------------------------------------------------------------------


def save_pipeline(pipeline: DiffusionPipeline, folder: str | Path):
    """Save a pipeline into a folder. An older pipeline in it is replaced; other files stay.

    The index is taken away first and put back last, so a mixture of old and new never looks like a pipeline.

    Args:
        pipeline ([`~diffusers.DiffusionPipeline`]): The pipeline.
        folder (`str` or `Path`): The folder. It is made if it is missing.

    Raises:
        OSError: If writing fails, for example on a full disk. The older pipeline is then untouched.
    """
    folder = Path(folder)
    unfinished, replaced = folder / ".unfinished", folder / ".replaced"
    try:
        undo_half_replaced(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
        pipeline.save_pretrained(unfinished)
        for file in unfinished.rglob("*"):
            if file.is_file():
                sync(file)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"cannot save the pipeline in {folder}: {error}") from error

    replaced.mkdir()
    names = sorted(os.listdir(unfinished), key=lambda name: name == INDEX)  # the index last
    for name in reversed(names):
        if (folder / name).exists():
            os.rename(folder / name, replaced / name)
    for name in names:
        os.rename(unfinished / name, folder / name)
    sync(folder)
    unfinished.rmdir()
    _remove_replaced(folder, replaced)


def undo_half_replaced(folder: Path):
    """Bring back the older pipeline if there was a crash between the renames. The index is then missing."""
    replaced = folder / ".replaced"
    if replaced.exists() and not (folder / INDEX).exists():
        for name in sorted(os.listdir(replaced), key=lambda name: name == INDEX):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            os.replace(replaced / name, folder / name)
    _remove_replaced(folder, replaced)


def _remove_replaced(folder: Path, replaced: Path):
    """Delete the older pipeline. Files that somebody put beside its own are moved to the new one."""
    for path in sorted(replaced.rglob("*")):
        target = folder / path.relative_to(replaced)
        if path.is_file() and not _OF_PIPELINES.fullmatch(path.name) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, target)
    shutil.rmtree(replaced, ignore_errors=True)


# ---- Checkpoints of a run ------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict):
    """Write a checkpoint or a snapshot: the folder `step-000500` with files of tensors, state.json, and the manifest.

    Args:
        folder (`Path`): The run's checkpoints or snapshots. It is made if it is missing.
        step (`int`): The optimizer steps taken.
        tensors (`dict`): File name without suffix -> name -> tensor.
        state (`dict`): Everything else, in types that JSON has.

    Raises:
        OSError: If writing fails, or something else has the name of the checkpoint. Everything is then untouched.
    """
    unfinished, finished = folder / f".unfinished-step-{step:06d}", folder / f"step-{step:06d}"
    if os.path.lexists(finished) and not (was_saved_here(finished) or _is_half_deleted(finished)):
        raise OSError(f"{finished} was not written by a run; move it away")
    try:
        with whole_folder(finished, unfinished, replace=True):
            for name, named in tensors.items():
                save_file({key: value.contiguous() for key, value in named.items()}, unfinished / f"{name}.safetensors")
            write_json(unfinished / STATE, state)
            write_json(unfinished / MANIFEST, describe_files(unfinished))
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot save {finished}: {error}") from error


def _is_half_deleted(folder: Path) -> bool:
    """Return whether a folder is what a crash left of a checkpoint that was being deleted."""
    tensors = ("model", "optimizer", "ema", "history", *POWER_AVERAGES.values())
    parts = {STATE, MANIFEST, *(f"{name}.safetensors" for name in tensors)}
    return folder.is_dir() and not folder.is_symlink() and {path.name for path in folder.iterdir()} <= parts


def prune_checkpoints(folder: Path, total_limit: int, newest: int):
    """Delete the checkpoints over the limit, and the unfinished ones that crashes left.

    Args:
        folder (`Path`): The run's checkpoints.
        total_limit (`int`): How many to keep.
        newest (`int`): The step of the checkpoint just written. Checkpoints of later steps are deleted first, since the
            run went back to before them; then the oldest.
    """
    for path in folder.glob(".unfinished-step-*"):
        shutil.rmtree(path)
    steps = {path: step_of(path) for path in list_checkpoints(folder) if was_saved_here(path)}
    later = [path for path, step in steps.items() if step > newest]
    earlier = [path for path, step in steps.items() if step <= newest]
    for path in [*later, *earlier][: max(len(steps) - total_limit, 0)]:
        shutil.rmtree(path)


def find_checkpoint(folder: Path, wanted: str, flag: str = "--resume_from_checkpoint") -> tuple[Path | None, list[str]]:
    """Find a checkpoint that is whole.

    Args:
        folder (`Path`): The run's checkpoints.
        wanted (`str`): `"latest"`, or the name of a checkpoint.
        flag (`str`): The option that asks for it, for the errors.

    Returns:
        `tuple`: The wanted checkpoint, or the newest whole one, or None if there are no checkpoints; and a sentence for
            each newer one that is broken.

    Raises:
        ValueError: If the wanted checkpoint is missing or broken, or if all are broken.
    """
    checkpoints = list_checkpoints(folder)
    if wanted != "latest":
        path = folder / Path(wanted).name
        if path not in checkpoints:
            found = ", ".join(checkpoint.name for checkpoint in checkpoints) or "none"
            raise ValueError(f"{flag} {wanted}: there is no {path}; found {found}.")
        try:
            verify_checkpoint(path)
        except ValueError as error:
            raise ValueError(f"{flag} {wanted} is broken: {error}.") from error
        return path, []
    problems: list[str] = []
    for path in reversed(checkpoints):
        try:
            verify_checkpoint(path)
            return path, problems
        except ValueError as error:
            problems.append(f"Checkpoint {path.name} is broken and passed over: {error}.")
    if problems:
        raise ValueError(f"{' '.join(problems)} None is whole; pass --overwrite_output_dir to train from the start.")
    return None, []


def verify_checkpoint(path: Path):
    """Compare the files of a checkpoint with its manifest.

    Raises:
        ValueError: If a file is missing, changed, not listed or not readable. The message names it.
    """
    always = (STATE, "model.safetensors", "optimizer.safetensors")
    entries = read_json(path / MANIFEST, dict.fromkeys(always, dict))
    unlisted = {file.name for file in path.glob("*.safetensors")} - entries.keys()
    if unlisted:
        raise ValueError(f"{path / MANIFEST} does not list {', '.join(sorted(unlisted))}")
    try:
        check_files(path, entries, entries)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def load_tensors(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Read the tensors of a checkpoint, as [`write_checkpoint`] got them."""
    return {file.stem: load_file(file) for file in path.glob("*.safetensors")}


def load_state(path: Path) -> dict:
    """Read the state of a checkpoint, as [`write_checkpoint`] got it.

    Raises:
        ValueError: If its form is not `STATE_FORM`. The message names the file and the key.
    """
    return read_json(path / STATE, STATE_FORM, ADVICE)
