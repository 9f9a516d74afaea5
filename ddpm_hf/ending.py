"""End a program at once, also while a thread of it waits for the network or writes a checkpoint."""

import atexit
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LEFT_BEHIND = "ddpm-hf at work"  # how the names of threads begin that the end of a program may not wait for
READERS: weakref.WeakSet[Any] = weakref.WeakSet()  # each has a method `close`, which asks its threads to end
AT_ONCE = 0.2  # seconds in which such threads end if they do not wait for anything
PATIENCE = 5  # the same in a process that only imports this package, which cannot leave them behind


@contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process after the program inside. Ctrl-C ends it with exit code 130.

    Python waits at its end for the threads of pools. It stops other threads wherever they are. Inside of C++ or Rust
    code, such as pyarrow's, that aborts the process. So if a thread still works, the process ends without Python's end.
    """
    code: Any = 0
    try:
        yield
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except SystemExit as end:
        code = end.code
    except BaseException:
        if not _still_working(AT_ONCE):
            raise
        sys.excepthook(*sys.exc_info())
        code = 1
    if _still_working(AT_ONCE):
        _leave(code)
    sys.exit(code)


def _leave(code: Any):
    """End the process with an exit code, or with a message as `sys.exit` does."""
    atexit.unregister(_still_working)
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _still_working(patience: float) -> bool:
    """Ask the threads that read to end, and return whether a thread still works after some seconds."""
    for reader in list(READERS):
        reader.close()
    last = time.monotonic() + patience
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(LEFT_BEHIND)]
    for thread in threads:
        thread.join(max(0.0, last - time.monotonic()))
    return any(thread.is_alive() for thread in threads)


atexit.register(_still_working, PATIENCE)
