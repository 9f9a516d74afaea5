"""What a run leaves behind: the pipeline (which is the Hub repository), samples, metrics, the curve of the loss."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from ddpm_hf.checkpoint import INDEX, save_pipeline
from ddpm_hf.config import TrainingConfig
from ddpm_hf.pictures import image_grid, loss_curve


class RunFolder:
    """The output folder of a training run.

    A write that fails while training goes on (the disk is full) is reported, and the next output tries again: what was
    saved before stays, and what was learned is not lost. Only the last save has to succeed.

    Args:
        config ([`TrainingConfig`]): Its `output_dir` is the folder, made if missing; config.json will hold all of it.
        model_bytes (`int`): Size of the model, for which there has to be space.

    Raises:
        ValueError: If the folder already holds a model, without `overwrite_output_dir`.
        OSError: If it cannot be written, or the disk has too little space for the model and its successor.
    """

    def __init__(self, config: TrainingConfig, model_bytes: int):
        self.path = Path(config.output_dir)
        self.metrics = []
        if (self.path / INDEX).exists() and not config.overwrite_output_dir:
            raise ValueError(
                f"--output_dir {self.path} already holds a trained model; name another folder, or pass "
                "--overwrite_output_dir to replace it."
            )
        try:
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
            (self.path / "metrics.jsonl").write_text("")
            config.save(self.path / "config.json")
        except OSError as error:
            raise OSError(f"--output_dir {self.path} cannot be written: {error}") from error
        free, needed = shutil.disk_usage(self.path).free / 1e6, 2 * model_bytes / 1e6
        if free < needed:
            raise OSError(
                f"--output_dir {self.path}: saving the model needs {needed:.0f} MB, and {free:.0f} MB are free."
            )

    def log(self, **numbers: float):
        """Append one line to metrics.jsonl."""
        self.metrics.append(numbers)
        with _going_on("append to metrics.jsonl"), open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(numbers) + "\n")

    def save_samples(self, step: int, images: list[Image.Image]):
        """Write samples/step-000500.png, and loss.png as it stands."""
        with _going_on("save the samples"):
            image_grid(images).save(self.path / "samples" / f"step-{step:06d}.png")
            loss_curve([m["step"] for m in self.metrics], [m["loss"] for m in self.metrics]).save(
                self.path / "loss.png"
            )

    def save_pipeline(self, pipeline: DiffusionPipeline):
        """Save the pipeline while training goes on."""
        with _going_on("save the model"):
            save_pipeline(pipeline, self.path)

    def save_last_pipeline(self, pipeline: DiffusionPipeline):
        """Save the pipeline at the end.

        Raises:
            OSError: If that fails.
        """
        save_pipeline(pipeline, self.path)


@contextmanager
def _going_on(what: str):
    try:
        yield
    except OSError as error:
        tqdm.write(f"Could not {what}: {error}. Training goes on; the next output tries again.")
