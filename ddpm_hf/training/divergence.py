"""When a run has diverged."""

from pathlib import Path

from ddpm_hf.config import TrainingConfig
from ddpm_hf.run_files import CHECKPOINTS, list_checkpoints

MOST_SKIPPED_UPDATES = 20  # in a row; then the run has diverged


def diverged(config: TrainingConfig, step: int) -> str:
    """That too many updates in a row were not finite, and where to go on from."""
    good = list_checkpoints(Path(config.output_dir) / CHECKPOINTS)
    where = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
    return (
        f"train_ddpm.py: error: up to step {step}, the gradient was not finite {MOST_SKIPPED_UPDATES} times in a row; "
        f"{where}. Try a lower --learning_rate, or --mixed_precision no."
    )
