"""End a program at once, also while a thread of it waits for the network."""

import atexit
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

READING = "ddpm-hf reads"  # how the names of threads begin that may wait for the network
READERS: weakref.WeakSet[Any] = weakref.WeakSet()  # each has a method `close`, which asks its threads to end
PATIENCE = 5  # seconds to wait for such a thread in a process that only imports this package


@contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process after the program inside. Ctrl-C ends it with exit code 130.

    Python waits at its end for the threads of pools. It stops other threads wherever they are, and inside of C++ code,
    such as pyarrow's, that aborts the process. So if a thread still reads, the process ends without Python's end.
    """
    code: Any = 0
    try:
        yield
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except SystemExit as end:
        code = end.code
    except BaseException:
        if not _threads():
            raise
        sys.excepthook(*sys.exc_info())
        code = 1
    if _threads():
        _leave(code)
    sys.exit(code)


def _leave(code: Any):
    """End the process with an exit code, or with a message as `sys.exit` does."""
    atexit.unregister(_wait)
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(READING)]


@atexit.register
def _wait():
    for reader in list(READERS):
        reader.close()
    for thread in _threads():
        thread.join(PATIENCE)
