"""Small files: written whole or not at all, and read with a check of their form.

A form is a dictionary of the keys that a file has to have and of the types of their values, such as
`{"step": int, "images": int | None}`. A number that may be a fraction is `float`, and whole numbers are fine there too.
"""

import hashlib
import json
import os
from pathlib import Path

from tqdm.auto import tqdm

from ddpm_hf.forms import Form, misfit

# ---- Writing -------------------------------------------------------------------------------------------------------


def replace_text(path: Path, text: str):
    """Write a small file, the old or the new at every moment."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        sync(unfinished)
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path: Path, value):
    """Write a file of JSON, the old or the new at every moment."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def write_json_lines(path: Path, lines: list[dict]):
    """Write a file with an object of JSON in each line, the old or the new at every moment."""
    replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def sync(path: Path):
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- Reading -------------------------------------------------------------------------------------------------------


def read_json(path: Path, form: Form, advice: str = "") -> dict:
    """Read a file that holds one object of JSON, and check its form.

    Args:
        path (`Path`): The file.
        form (`dict`): See the top of this file.
        advice (`str`): What to do if the file is broken, as a sentence; the error ends with it.

    Returns:
        `dict`: All keys of the file, also those that the form does not name.

    Raises:
        ValueError: If the file cannot be read, or has another form. The message names the file, the key, what was
            expected, and what to do.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(_with_advice(f"{path} is missing", advice)) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(_with_advice(f"{path} is broken ({reason}); expected JSON", advice)) from error
    if problem := misfit(value, form):
        raise ValueError(_with_advice(f"{path} is broken: {problem}", advice))
    return value


def _with_advice(problem: str, advice: str) -> str:
    return f"{problem}. {advice}" if advice else problem


def read_json_lines(path: Path, form: Form) -> list[dict]:
    """Read a file with an object of JSON in each line, if it is there.

    Lines that are broken or of another form are left out, and their number is said; but not half a line at the end,
    which a process that was killed leaves.
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
    """The hash of a file's content, with a bar for a file that takes seconds."""
    digest, size = hashlib.sha256(), path.stat().st_size
    options = {"unit": "B", "unit_scale": True, "leave": False, "disable": size < 2**30}
    with open(path, "rb") as file, tqdm(total=size, desc=f"Checking {path.name}", **options) as progress:
        while block := file.read(2**20):
            digest.update(block)
            progress.update(len(block))
    return digest.hexdigest()
