"""Small files: written whole or not at all, and checked when they are read."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ddpm_hf.forms import Form, misfit
from ddpm_hf.terminal import one_line

# ---- Writing -------------------------------------------------------------------------------------------------------


def replace_text(path: Path, text: str):
    """Write a text file. At every moment the file holds the old text or the new."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")  # the same bytes on Windows
        sync(unfinished)
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any):
    """Write a JSON file as [`replace_text`] does."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def write_json_lines(path: Path, lines: list[dict]):
    """Write a file with an object of JSON in each line, as [`replace_text`] does."""
    replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def holds_files(folder: Path) -> bool:
    """Tell whether a folder exists and holds anything but hidden files."""
    return folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir())


def sync(path: Path):
    """Wait until the content of a file, or the list of files of a folder, is on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs only what it may write
    except PermissionError:
        if path.is_dir():  # Windows opens no folder; the journal of NTFS keeps the renames in order
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- Reading -------------------------------------------------------------------------------------------------------


def read_json(path: Path, form: Form, advice: str = "") -> dict:
    """Read a file that holds one object of JSON, and check its form.

    Args:
        path (`Path`): The file.
        form (`dict`): The keys and types to expect; see [`~ddpm_hf.forms.misfit`].
        advice (`str`): A sentence that says what to do if the file is broken. The error ends with it.

    Returns:
        `dict`: The whole object, also the keys that the form does not name.

    Raises:
        ValueError: If the file cannot be read, or has another form. The message names the file, the key, and what was
            expected.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(_with_advice(f"{path} is missing", advice)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(_with_advice(f"{path} is broken ({one_line(error)}); expected JSON", advice)) from error
    if problem := misfit(value, form):
        raise ValueError(_with_advice(f"{path} is broken: {problem}", advice))
    return value


def _with_advice(problem: str, advice: str) -> str:
    return f"{problem}. {advice}" if advice else problem


def read_json_lines(path: Path, form: Form) -> list[dict]:
    """Read a file with an object of JSON in each line. Return an empty list if there is no such file.

    Lines that are broken or of another form are left out, and a note says how many. Half a line at the end is left out
    without a note, since a process that is killed leaves one.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    *lines, unfinished = text.split("\n")
    values = [_object(line, form) for line in lines]
    if bad := values.count(None):
        tqdm.write(f"{bad} of {len(lines)} lines of {path} cannot be read and are left out.")
    return [value for value in [*values, _object(unfinished, form)] if value is not None]


def _object(line: str, form: Form) -> dict | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return None if misfit(value, form) else value


def sha256_of(path: Path) -> str:
    """Return the SHA-256 hash of a file. A progress bar shows for a file that takes seconds."""
    digest, size = hashlib.sha256(), path.stat().st_size
    hidden = size < 2**30
    with (
        open(path, "rb") as file,
        tqdm(total=size, desc=f"Checking {path.name}", unit="B", unit_scale=True, leave=False, disable=hidden) as bar,
    ):
        while block := file.read(2**20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
