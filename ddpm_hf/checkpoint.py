"""Saving that a crash or a full disk cannot spoil: everything is written aside, synced, and renamed into place."""

import os
import shutil
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors import SafetensorError

INDEX = "model_index.json"  # what makes a folder a pipeline


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
                _sync(file)
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
    _sync(folder)
    unfinished.rmdir()
    shutil.rmtree(replaced)


def _undo_half_replaced(folder: Path, replaced: Path):
    """Bring back the older pipeline, if a crash came between the renames; with the index in place, none did."""
    if replaced.exists() and not (folder / INDEX).exists():
        for name in sorted(os.listdir(replaced), key=lambda name: name == INDEX):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            os.replace(replaced / name, folder / name)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path):
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
