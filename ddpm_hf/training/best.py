"""The best pipeline of a run so far, kept beside the last one."""

from collections.abc import Mapping
from pathlib import Path

from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from ddpm_hf.checkpoint import save_pipeline, undo_half_replaced
from ddpm_hf.config import TrainingConfig
from ddpm_hf.files import read_json, write_json
from ddpm_hf.held_out_options import PRDC
from ddpm_hf.run_files import ABOUT_BEST, BEST, EARLIER_EVALUATION, EVALUATION, INDEX
from ddpm_hf.terminal import going_on

FORM = {"metric": str, "value": float, "step": int}


class KeptBest:
    """The folder `best/` of a run: the pipeline with the best number so far, and best.json, which says which.

    All that is known is in the folder, so a run that goes on continues to compare with it.

    Args:
        config ([`TrainingConfig`]): `keep_best` names the number; with "none", nothing is kept.
    """

    def __init__(self, config: TrainingConfig):
        self.metric, self.folder = config.keep_best, config.folder / BEST

    def check(self):
        """Raise a ValueError if the folder holds a pipeline that no run put there."""
        if self.metric != "none" and (self.folder / INDEX).exists() and not (self.folder / ABOUT_BEST).exists():
            raise ValueError(
                f"--keep_best {self.metric}: {self.folder} holds a pipeline without {ABOUT_BEST}, which no run put "
                "there; move it away."
            )

    def record(self) -> dict | None:
        """Return `metric`, `value` and `step` of the pipeline that is kept; None if there is none by this metric."""
        undo_half_replaced(self.folder)
        if not (self.folder / ABOUT_BEST).exists():
            return None
        try:
            record = read_json(self.folder / ABOUT_BEST, FORM, "The next pipeline takes its place.")
        except ValueError as error:
            tqdm.write(str(error))
            return None
        return record if record["metric"] == self.metric else None

    def describe(self) -> str:
        """Name the pipeline that is kept; return an empty text if there is none."""
        record = None if self.metric == "none" else self.record()
        return f"the best model by {self.metric}, of step {record['step']:,}" if record else ""

    def offer(self, numbers: Mapping[str, float | None], step: int, pipeline: DiffusionPipeline) -> bool:
        """Keep a pipeline if it is better than the one that is kept. Only the main process may call this.

        Args:
            numbers (`dict`): What was measured, by name. The held-out loss is called `val_loss`.
            step (`int`): Optimizer steps so far.
            pipeline ([`~diffusers.DiffusionPipeline`]): The pipeline with the weights that were measured.

        Returns:
            `bool`: Whether it was kept.
        """
        value = numbers.get("val_loss" if self.metric == "loss" else self.metric)
        if value is None:
            return False
        with going_on(f"keep the best model in {self.folder}"):
            best, sign = self.record(), -1 if self.metric in PRDC else 1  # of these, more is better
            if best and sign * value >= sign * best["value"]:
                return False
            save_pipeline(_WithRecord(pipeline, {"metric": self.metric, "value": value, "step": step}), self.folder)
            if (self.folder / EVALUATION).exists():  # of the weights before
                (self.folder / EVALUATION).replace(self.folder / EARLIER_EVALUATION)
            return True
        return False


class _WithRecord:
    """A pipeline whose folder also gets best.json, so that both are replaced as one."""

    def __init__(self, pipeline: DiffusionPipeline, record: dict):
        self.pipeline, self.record = pipeline, record

    def save_pretrained(self, folder: Path):
        self.pipeline.save_pretrained(folder)
        write_json(folder / ABOUT_BEST, self.record)
