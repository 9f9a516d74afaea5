"""What a program tells the person at the terminal: errors and notes, each in one line."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from ddpm_hf.tokens import hide_tokens


def one_line(error: Exception) -> str:
    """What an error says, in one line, without tokens, and without the period or the colon at its end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return hide_tokens(text).rstrip(".:")


@contextmanager
def going_on(what: str) -> Iterator[None]:
    """Report what fails inside, instead of ending the run: a full disk, a drawing, a measurement."""
    try:
        yield
    except Exception as error:
        tqdm.write(f"Could not {what}: {one_line(error)}. Training goes on.")


def say(sentences: Iterable[str]):
    """Print what is worth it, from one of the processes."""
    if os.environ.get("RANK", "0") == "0":
        for sentence in filter(None, sentences):
            tqdm.write(sentence)


@contextmanager
def one_line_errors():
    """End the process with one line, instead of a traceback, on what is wrong with the options or the disk."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"train_ddpm.py: error: {one_line(error)}.")
