"""The signals that ask a run to save and end."""

import signal

from tqdm.auto import tqdm


def signals_to_end() -> list[signal.Signals]:
    """Return Ctrl-C and the warnings of clusters, as far as the platform has them: Windows has no SIGUSR1."""
    names = ("SIGINT", "SIGTERM", "SIGUSR1")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def note_signals() -> list[int]:
    """Return a list that stays empty until a signal asks the run to save and end."""
    received: list[int] = []

    def note(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends the run at once
        tqdm.write(f"{signal.Signals(number).name}: saving after this step ...")

    for each in signals_to_end():
        signal.signal(each, note)
    return received
