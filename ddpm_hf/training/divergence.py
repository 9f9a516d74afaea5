"""When a run has diverged, and what its user can do."""

from ddpm_hf.run_files import CHECKPOINTS, list_checkpoints
from ddpm_hf.terminal import one_line_errors
from ddpm_hf.training.run_folder import RunFolder
from ddpm_hf.training.state import RunState

MOST_SKIPPED_UPDATES = 20  # in a row; then the run has diverged


def stop_if_diverged(folder: RunFolder, state: RunState):
    """End the process if too many updates in a row were not finite, and say where to go on from."""
    if state.skipped_in_a_row < MOST_SKIPPED_UPDATES:
        return
    folder.checkpoints.wait()
    good = list_checkpoints(folder.path / CHECKPOINTS)
    where = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
    with one_line_errors():
        raise ValueError(
            f"up to step {state.step}, the gradient was not finite {state.skipped_in_a_row} times in a row; {where}. "
            "Try a lower --learning_rate, or --mixed_precision no."
        )
