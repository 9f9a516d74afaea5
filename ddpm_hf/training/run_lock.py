"""One run in one folder: a lock that a crash frees."""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ddpm_hf.files import read_json, write_json

LOCK = ".ddpm_hf.lock"
OWNER = ".ddpm_hf.running.json"  # who holds it; it outlives a crash, and the lock does not


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder for one run. Make it if it is missing, and remove it at the end if it is still empty.

    The operating system holds the lock on an open file, so it ends with the process, even after a crash. On a network
    file system it holds between machines if the file system supports locks. Without such support, the run starts anyway
    and says so.

    Args:
        folder (`Path`): The folder.

    Raises:
        ValueError: If another run is in it; the message names its machine and its process.
        OSError: If the folder cannot be written.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        _note_owner(folder)
        yield
    finally:
        with suppress(OSError):  # before the lock is released, so that nothing of the next run is removed
            (folder / OWNER).unlink(missing_ok=True)
            if made and os.listdir(folder) == [LOCK]:
                (folder / LOCK).unlink()  # Windows removes it by the release
        lock.release()
        if made:
            with suppress(OSError):  # other files are in it
                folder.rmdir()


def _lock(folder: Path) -> FileLock:
    """Take the lock of a folder."""
    lock = FileLock(folder / LOCK, timeout=0, fallback_to_soft=False)  # a soft lock would outlive a crash
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"--output_dir {folder}: another run is in it, {_owner(folder)}. Wait for its end, or name another folder."
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        print(f"{folder} is on a file system without locks; make sure that no other run uses it.", flush=True)
    return lock


def _note_owner(folder: Path):
    """Write who holds the lock, and say if the last one who did was killed."""
    if (folder / OWNER).exists():
        print(f"The last run in {folder}, {_owner(folder)}, did not end properly.", flush=True)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        write_json(folder / OWNER, {"host": socket.gethostname(), "process": os.getpid(), "since": now})
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> OSError:
    return OSError(f"--output_dir {folder} cannot be written: {error}")


def _owner(folder: Path) -> str:
    """Describe the process that holds the lock, or held it last."""
    try:
        owner = read_json(folder / OWNER, {"host": str, "process": int, "since": str})
    except ValueError:
        return "an unknown process"
    return f"process {owner['process']} on {owner['host']}, since {owner['since']}"
