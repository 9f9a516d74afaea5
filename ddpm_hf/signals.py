"""The signals that ask a run to save and end."""

import signal

from tqdm.auto import tqdm


def note_signals() -> list[int]:
    """A list that is empty until Ctrl-C, SIGTERM or SIGUSR1 (the clusters' warnings) asks the run to save and end."""
    received = []

    def note(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
        tqdm.write(f"{signal.Signals(number).name}: saving after this step ...")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, note)
    return received
