"""Messages at the terminal: errors and notes, each in one line."""

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from ddpm_hf.tokens import hide_tokens


def print_all_characters():
    """Print the characters that the output has no code for as escapes: on Windows, a file or a pipe has few codes."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # notebooks have another kind, which takes all characters
        sys.stdout.reconfigure(errors="backslashreplace")


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, without tokens and without a period or a colon at its end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return hide_tokens(text).rstrip(".:")


def as_argument(path: Path) -> str:
    """Return a path as the shell of this machine takes it, with quotes if it needs them."""
    text = f"./{path}" if str(path).startswith("-") else str(path)  # a dash begins a flag
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


@contextmanager
def going_on(what: str) -> Iterator[None]:
    """Report an error inside the block, such as a full disk, and let the run go on."""
    try:
        yield
    except Exception as error:
        tqdm.write(f"Could not {what}: {one_line(error)}. Training goes on.")


def say(sentences: Iterable[str]):
    """Print the sentences that are not empty, from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        for sentence in filter(None, sentences):
            tqdm.write(sentence)


@contextmanager
def one_line_errors(program: str | None = None):
    """End the process with one line instead of a traceback if an option or the disk is at fault.

    Args:
        program (`str`, *optional*): The name that the line begins with; by default that of the program's file.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"{program or Path(sys.argv[0]).name}: error: {one_line(error)}.")
