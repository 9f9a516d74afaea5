"""The signals that ask a run to save and end."""

import signal

from tqdm.auto import tqdm

# Ctrl-C and the warnings of clusters, as far as the platform has them: Windows has no SIGUSR1.
ASKING_TO_END = ("SIGINT", "SIGTERM", "SIGUSR1")


def note_signals() -> list[int]:
    """Return a list that stays empty until a signal asks the run to save and end."""
    received: list[int] = []

    def note(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends the run at once
        tqdm.write(f"{signal.Signals(number).name}: saving after this step ...")

    for name in ASKING_TO_END:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), note)
    return received
