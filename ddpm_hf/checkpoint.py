"""Saving that a crash or a full disk cannot spoil: everything is written aside, synced, and renamed into place."""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ddpm_hf.files import read_json, sha256_of, sync
from ddpm_hf.forms import misfit
from ddpm_hf.pipeline_ddpm_custom import SHIPPED_MODULES
from ddpm_hf.run_files import INDEX, MANIFEST, STATE, list_checkpoints, was_saved_here

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

# ---- The pipeline --------------------------------------------------------------------------------------------------


def save_pipeline(pipeline: DiffusionPipeline, folder: str | Path):
    """Save a pipeline into a folder that may hold an older one, and other files, which are left alone.

    The index is taken away first and put back last, so at no moment does a mixture of old and new look like a pipeline.

    Args:
        pipeline ([`~diffusers.DiffusionPipeline`]): The pipeline.
        folder (`str` or `Path`): The folder; made if missing.

    Raises:
        OSError: If writing fails, on a full disk for example. The older pipeline is then untouched.
    """
    folder = Path(folder)
    unfinished, replaced = folder / ".unfinished", folder / ".replaced"
    try:
        _undo_half_replaced(folder, replaced)
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


def _undo_half_replaced(folder: Path, replaced: Path):
    """Bring back the older pipeline, if a crash came between the renames; with the index in place, none did."""
    if replaced.exists() and not (folder / INDEX).exists():
        for name in sorted(os.listdir(replaced), key=lambda name: name == INDEX):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            os.replace(replaced / name, folder / name)
    _remove_replaced(folder, replaced)


def _remove_replaced(folder: Path, replaced: Path):
    """Delete the older pipeline, but for files that somebody put beside its own: those go to the new one."""
    for path in sorted(replaced.rglob("*")):
        target = folder / path.relative_to(replaced)
        if path.is_file() and not _OF_PIPELINES.fullmatch(path.name) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, target)
    shutil.rmtree(replaced, ignore_errors=True)


# ---- Checkpoints of a run ------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict):
    """Save what a run has learned, as `step-000500` with files of tensors, state.json, and a manifest of their hashes.

    Args:
        folder (`Path`): The run's checkpoints; made if missing.
        step (`int`): The optimizer steps taken.
        tensors (`dict`): File name, without suffix -> name -> tensor.
        state (`dict`): Everything else, of the types that JSON has.

    Raises:
        OSError: If writing fails. The other checkpoints are then untouched.
    """
    unfinished, finished = folder / f".unfinished-step-{step:06d}", folder / f"step-{step:06d}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, named in tensors.items():
            save_file({key: value.contiguous() for key, value in named.items()}, unfinished / f"{name}.safetensors")
        (unfinished / STATE).write_text(json.dumps(state, indent=1) + "\n")
        files = sorted(unfinished.iterdir())
        manifest = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files}
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in (*files, unfinished / MANIFEST, unfinished):
            sync(path)
        shutil.rmtree(finished, ignore_errors=True)
        os.rename(unfinished, finished)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"cannot save the checkpoint {finished}: {error}") from error


def prune_checkpoints(folder: Path, total_limit: int, newest: int):
    """Delete what crashes left unfinished, and checkpoints over the limit.

    Args:
        folder (`Path`): The run's checkpoints.
        total_limit (`int`): How many to keep.
        newest (`int`): The step of the one just written. Those of later steps are of a course that the run went back
            from, so they are the first to go; then the oldest.
    """
    for path in folder.glob(".unfinished-step-*"):
        shutil.rmtree(path)
    steps = {path: int(path.name.removeprefix("step-")) for path in list_checkpoints(folder) if was_saved_here(path)}
    left_behind = [path for path, step in steps.items() if step > newest]
    earlier = [path for path, step in steps.items() if step <= newest]
    for path in [*left_behind, *earlier][: max(len(steps) - total_limit, 0)]:
        shutil.rmtree(path)


def find_checkpoint(folder: Path, wanted: str, flag: str = "--resume_from_checkpoint") -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from.

    Args:
        folder (`Path`): The run's checkpoints.
        wanted (`str`): `"latest"`, or the name of one.
        flag (`str`): The option that wants it, for the errors.

    Returns:
        `tuple`: The newest whole checkpoint, or the wanted one, or None if there is none at all; and what is wrong with
        newer ones.

    Raises:
        ValueError: If the wanted one is missing or broken, or there are some and all are broken.
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
    problems = []
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
        ValueError: If one is missing or changed; the message names it.
    """
    always = (STATE, "model.safetensors", "optimizer.safetensors")
    manifest = read_json(path / MANIFEST, dict.fromkeys(always, dict))
    unlisted = {file.name for file in path.glob("*.safetensors")} - manifest.keys()
    if unlisted:
        raise ValueError(f"{path / MANIFEST} does not list {', '.join(sorted(unlisted))}")
    for name, expected in manifest.items():
        file = path / name
        if problem := misfit(expected, {"bytes": int, "sha256": str}, name):
            raise ValueError(f"{path / MANIFEST} is broken: {problem}")
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        try:
            is_whole = file.stat().st_size == expected["bytes"] and sha256_of(file) == expected["sha256"]
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        if not is_whole:
            raise ValueError(f"{file} is not what was saved")


def load_tensors(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a checkpoint, as [`save_checkpoint`] was given them."""
    return {file.stem: load_file(file) for file in path.glob("*.safetensors")}


def load_state(path: Path) -> dict:
    """The state of a checkpoint, as [`save_checkpoint`] was given it.

    Raises:
        ValueError: If it has another form; the message names the file and the key.
    """
    return read_json(path / STATE, STATE_FORM, ADVICE)
