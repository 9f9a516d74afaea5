"""Folders that are whole or absent, and whose files are checked when they are opened.

The sizes and hashes of the files stand in `manifest.json`: `{"model.safetensors": {"bytes": 5, "sha256": "..."}, ...}`.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm_hf.files import sha256_of, sync
from ddpm_hf.forms import misfit

MANIFEST = "manifest.json"


@contextmanager
def whole_folder(folder: Path, unfinished: Path, replace: bool) -> Iterator[Path]:
    """Make a folder under another name, and rename it when everything in it is on the disk.

    Args:
        folder (`Path`): The folder to make.
        unfinished (`Path`): The other name, in the same folder. What an earlier process left there is deleted.
        replace (`bool`): Whether to replace a folder that exists. Otherwise it stays, and the new one is deleted:
            another process was faster.

    Yields:
        `Path`: `unfinished`, an empty folder. If the body raises an error, it is deleted.
    """
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        sync(unfinished)
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(unfinished, folder)
        except OSError:
            if replace or not folder.exists():
                raise
        sync(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def describe_files(folder: Path) -> dict[str, dict]:
    """Write the files of a folder through to the disk, and return their names, sizes in bytes and hashes."""
    entries = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        entries[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return entries


def check_files(folder: Path, entries: dict, names: Iterable[str]):
    """Compare files of a folder with the entries of its manifest: the sizes first, then the hashes.

    Args:
        folder (`Path`): The folder.
        entries (`dict`): What [`describe_files`] returned, as it was read from the manifest.
        names (`Iterable[str]`): The files to check.

    Raises:
        ValueError: If a file is missing, changed, or not listed. The message names it.
        OSError: If a file cannot be read.
    """
    names = list(names)
    for name in names:
        if problem := misfit(entries, {name: dict}) or misfit(entries[name], {"bytes": int, "sha256": str}, name):
            raise ValueError(f"{folder / MANIFEST} is broken: {problem}")
        path, expected = folder / name, entries[name]["bytes"]
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if (size := path.stat().st_size) != expected:
            raise ValueError(f"{path} is not what was saved: it has {size:,} bytes; expected {expected:,}")
    for name in names:
        if sha256_of(folder / name) != entries[name]["sha256"]:
            raise ValueError(f"{folder / name} is not what was saved")
