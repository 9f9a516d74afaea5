"""What a run leaves behind: the pipeline (which is the Hub repository), samples, metrics, the curve of the loss."""

import json
import math
import shutil
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from diffusers import DiffusionPipeline, ModelMixin
from PIL import Image
from tqdm.auto import tqdm

from ddpm_hf.checkpoint import prune_checkpoints, save_checkpoint, save_pipeline
from ddpm_hf.config import TrainingConfig
from ddpm_hf.files import read_json_lines, replace_text
from ddpm_hf.machine import describe_machine
from ddpm_hf.pictures import denoising_strip, image_grid, loss_curve
from ddpm_hf.run_files import CHECKPOINTS, DENOISING, EVALUATION, INDEX, UNREADABLE


class RunFolder:
    """The output folder of a training run.

    A write that fails while training goes on (the disk is full) is reported, and the next output tries again: what was
    saved before stays, and what was learned is not lost. Only the last save has to succeed.

    Args:
        config ([`TrainingConfig`]): Its `output_dir` is the folder, made if missing; config.json will hold all of it.
        model_bytes (`int`): Size of the model; there has to be space for the pipeline and the checkpoints.
        step (`int`): The step that the run goes on from; what was noted after it is forgotten. 0 for a new run.

    Raises:
        ValueError: If a new run finds a model in the folder, without `overwrite_output_dir`.
        OSError: If it cannot be written, or the disk has too little space.
    """

    def __init__(self, config: TrainingConfig, model_bytes: int, step: int = 0):
        self.path = Path(config.output_dir)
        self.checkpoints_total_limit = config.checkpoints_total_limit
        self.inference_steps, self.seed = config.ddpm_num_inference_steps, config.seed
        if (self.path / INDEX).exists() and not step and not config.overwrite_output_dir:
            raise ValueError(
                f"--output_dir {self.path} holds a trained model and no checkpoint to go on from; name another folder, "
                "or pass --overwrite_output_dir to replace it."
            )
        try:
            if not step:
                for name in (CHECKPOINTS, "samples"):
                    shutil.rmtree(self.path / name, ignore_errors=True)
                for name in (UNREADABLE, DENOISING, EVALUATION):
                    (self.path / name).unlink(missing_ok=True)
            (self.path / "samples").mkdir(parents=True, exist_ok=True)
            earlier = read_json_lines(self.path / "metrics.jsonl", {"step": int})
            self.metrics = [numbers for numbers in earlier if numbers["step"] <= step]
            lines = "".join(json.dumps(numbers) + "\n" for numbers in self.metrics)
            replace_text(self.path / "metrics.jsonl", lines)
            replace_text(self.path / "config.json", config.to_json())
        except OSError as error:
            raise OSError(f"--output_dir {self.path} cannot be written: {error}") from error
        # A checkpoint is four models: weights, average, and two moments; the pipeline is one. Each and its successor.
        free = shutil.disk_usage(self.path).free / 1e6
        needed = (2 + 4 * (config.checkpoints_total_limit + 1)) * model_bytes / 1e6
        if free < needed:
            raise OSError(
                f"--output_dir {self.path}: the model and its checkpoints need {needed:.0f} MB, and {free:.0f} MB are "
                "free."
            )

    def log(self, **numbers: float):
        """Append one line to metrics.jsonl."""
        self.metrics.append(numbers)
        with _going_on("append to metrics.jsonl"), open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(numbers) + "\n")

    def note_run(self, accelerator: Accelerator, unet: ModelMixin, images: int | None, images_per_step: int):
        """Write run.json: what the options do not say about the run, for its model card."""
        facts = {"parameters": unet.num_parameters(), "images": images, "images_per_step": images_per_step}
        facts.update(describe_machine(accelerator))
        with _going_on("write run.json"):
            replace_text(self.path / "run.json", json.dumps(facts, indent=2) + "\n")

    def note_unreadable(self, unreadable: list[dict]):
        """Add the images that were left out to unreadable_images.jsonl, each once."""
        path = self.path / UNREADABLE
        with _going_on(f"write {path.name}"):
            known = set(path.read_text().splitlines()) if path.exists() else set()
            new = [line for line in dict.fromkeys(map(json.dumps, unreadable)) if line not in known]
            if new:
                with open(path, "a") as file:
                    file.writelines(line + "\n" for line in new)
                tqdm.write(f"{len(new):,} images cannot be read and are left out; they are listed in {path}.")

    def save_samples(self, step: int, images: list[Image.Image]):
        """Write samples/step-000500.png, and loss.png as it stands."""
        with _going_on("save the samples"):
            image_grid(images).save(self.path / "samples" / f"step-{step:06d}.png")
            steps, losses = [m["step"] for m in self.metrics], [m["loss"] or math.nan for m in self.metrics]
            loss_curve(steps, losses).save(self.path / "loss.png")

    def save_pipeline(self, pipeline: DiffusionPipeline):
        """Save the pipeline while training goes on."""
        with _going_on("save the model"):
            save_pipeline(pipeline, self.path)
            self._put_away_what_is_of_older_weights()

    def save_last_pipeline(self, pipeline: DiffusionPipeline):
        """Save the pipeline at the end, and the picture of how it draws.

        Raises:
            OSError: If the pipeline cannot be saved.
        """
        save_pipeline(pipeline, self.path)
        with _going_on("put away what is of older weights"):
            self._put_away_what_is_of_older_weights()
        with _going_on(f"save {DENOISING}"):
            denoising_strip(pipeline, self.inference_steps, seed=self.seed).save(self.path / DENOISING)

    def _put_away_what_is_of_older_weights(self):
        """Of an earlier end of the run, before it went on; the model card is not to show it with this model."""
        (self.path / DENOISING).unlink(missing_ok=True)
        if (self.path / EVALUATION).exists():
            (self.path / EVALUATION).rename(self.path / f"earlier-{EVALUATION}")

    def save_checkpoint(self, step: int, tensors: dict, state: dict):
        """Save a checkpoint, and then delete those over the limit."""
        with _going_on("save a checkpoint"):
            save_checkpoint(self.path / CHECKPOINTS, step, tensors, state)
            prune_checkpoints(self.path / CHECKPOINTS, self.checkpoints_total_limit)


@contextmanager
def _going_on(what: str):
    try:
        yield
    except OSError as error:
        tqdm.write(f"Could not {what}: {error}. Training goes on; the next output tries again.")
