"""What a run leaves behind: the pipeline (which is the Hub repository), samples, metrics, the curve of the loss."""

import json
import math
import shutil
from pathlib import Path
from threading import Lock

from accelerate import Accelerator
from diffusers import DiffusionPipeline, ModelMixin
from PIL import Image
from tqdm.auto import tqdm

from ddpm_hf.checkpoint import prune_checkpoints, save_pipeline
from ddpm_hf.config import TrainingConfig
from ddpm_hf.denoising import denoise
from ddpm_hf.files import read_json_lines, replace_text, write_json, write_json_lines
from ddpm_hf.hardware import describe_machine
from ddpm_hf.images.augmented_grid import augmented_grid
from ddpm_hf.images.cache import ImageCache
from ddpm_hf.images.parts import ImagePart
from ddpm_hf.pictures import image_grid, loss_curve
from ddpm_hf.pixel_format import EIGHT_BITS, PixelFormat
from ddpm_hf.run_files import (
    ANIMATION,
    AUGMENTED,
    CHECKPOINTS,
    DENOISING,
    EARLIER_EVALUATION,
    EVALUATION,
    EVALUATIONS,
    FACTS,
    INDEX,
    LOSS,
    METRICS,
    METRICS_FORM,
    OPTIONS,
    SAMPLES,
    SMALL,
    SNAPSHOTS,
    UNREADABLE,
    parts_of_run,
    read_object,
    snapshots_after,
    was_saved_here,
)
from ddpm_hf.terminal import going_on
from ddpm_hf.training.checkpoint_writer import CheckpointWriter
from ddpm_hf.training.energy import EnergyMeter


def bytes_of_run(config: TrainingConfig, model_bytes: int) -> int:
    """Return the bytes of disk that the models, the checkpoints and the snapshots of a run take at most.

    A checkpoint is four models: weights, average, and two moments; with `posthoc_ema` two more. The pipeline is one,
    and so is the best one. While saving, the old and the new copy both exist.
    """
    pipelines = 2 if config.keep_best == "none" else 4
    models_of_checkpoint = 6 if config.posthoc_ema else 4
    models = pipelines + models_of_checkpoint * (config.checkpoints_total_limit + 1)
    return models * model_bytes + bytes_of_snapshots(config, model_bytes)


def bytes_of_snapshots(config: TrainingConfig, model_bytes: int) -> int:
    """Return the bytes of disk that the snapshots take: two models each. One more may be there while it is saved."""
    return 2 * (config.posthoc_ema + 1) * model_bytes if config.posthoc_ema else 0


class RunFolder:
    """The output folder of a training run.

    If writing fails during training, for example on a full disk, the error is reported and training goes on. Earlier
    files stay, and the next output tries again. Only the last save has to succeed.

    Args:
        config ([`TrainingConfig`]): The options; config.json will hold them.
    """

    def __init__(self, config: TrainingConfig):
        self.config, self.path = config, config.folder
        self.metrics: list[dict] = []
        self.metrics_are_on_disk = True
        self.facts: dict = {}
        self.facts_lock = Lock()  # a thread notes when the first checkpoint is written
        limit, note = config.checkpoints_total_limit, self._note_checkpoints
        self.checkpoints = CheckpointWriter(self.path / CHECKPOINTS, limit, when_written=note)
        self.energy: EnergyMeter | None = None

    def check(self, model_bytes: int):
        """Raise an OSError if the files of a run cannot be made here, or have too little space."""
        self._check_names()
        self._check_space(model_bytes)

    def _check_names(self):
        """Raise an OSError if the path is too long for a run's files: Windows has a limit."""
        longest = self.path / ("." + "n" * 79)  # checkpoints/.unfinished-step-000500/... and logs/... are shorter
        try:
            longest.touch()
            longest.unlink()
        except OSError as error:
            raise OSError(
                f"--output_dir {self.path}: files with names of 80 characters cannot be made there ({error}); if the "
                "path is too long, name another folder."
            ) from error

    def _check_space(self, model_bytes: int):
        """Raise an OSError if the disk has too little space for a model of this size and its checkpoints."""
        free, needed = shutil.disk_usage(self.path).free / 1e6, bytes_of_run(self.config, model_bytes) / 1e6
        if free < needed:
            raise OSError(
                f"--output_dir {self.path}: the model and its checkpoints need {needed:.0f} MB, and {free:.0f} MB are "
                "free."
            )

    def begin(self, step: int):
        """Remove what an earlier run noted after the step that this run goes on from.

        Args:
            step (`int`): That step; 0 for a new run.

        Raises:
            OSError: If the folder cannot be written.
        """
        try:
            replace_text(self.path / OPTIONS, self.config.to_json())  # first: this file makes the folder one of a run
            if not step:
                self._clear()
            for path in snapshots_after(self.path, step):
                shutil.rmtree(path)
            (self.path / SAMPLES).mkdir(exist_ok=True)
            self.metrics = [line for line in self._lines(METRICS, METRICS_FORM) if line["step"] <= step]
            write_json_lines(self.path / METRICS, self.metrics)
            if measured := self._lines(EVALUATIONS, {"step": int}):
                write_json_lines(self.path / EVALUATIONS, [line for line in measured if line["step"] <= step])
        except OSError as error:
            raise OSError(f"--output_dir {self.path} cannot be written: {error}") from error

    def _clear(self):
        """Remove what earlier runs wrote, and nothing else. The model stays until a new one replaces it."""
        parts = parts_of_run(self.path)
        if parts and self.config.overwrite_output_dir:
            names = ", ".join(path.relative_to(self.path).as_posix() for path in parts)
            print(f"--overwrite_output_dir removes from {self.path}: {names}.", flush=True)
        for path in parts:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _lines(self, name: str, form: dict) -> list[dict]:
        return read_json_lines(self.path / name, form)

    def log(self, **numbers: float | None):
        """Append one line to metrics.jsonl. If the last line could not be written, write all lines again."""
        self.metrics.append(numbers)
        with going_on(f"write {METRICS}"):
            if self.metrics_are_on_disk:
                self.metrics_are_on_disk = False  # until the line is whole
                with open(self.path / METRICS, "a", encoding="utf-8") as file:
                    file.write(json.dumps(numbers) + "\n")
            else:
                write_json_lines(self.path / METRICS, self.metrics)
            self.metrics_are_on_disk = True

    def add_to_log(self, step: int, numbers: dict[str, float | None]):
        """Add numbers to the line of the last step in metrics.jsonl, and draw loss.png again."""
        if not self.metrics or self.metrics[-1]["step"] != step:  # its line could not be written
            self.metrics.append({"step": step, "loss": None})
        self.metrics[-1].update(numbers)
        with going_on(f"write {METRICS}"):
            self.metrics_are_on_disk = False
            write_json_lines(self.path / METRICS, self.metrics)
            self.metrics_are_on_disk = True
        with going_on(f"draw {LOSS}"):
            self._save_curve()

    def note_run(
        self,
        accelerator: Accelerator,
        unet: ModelMixin,
        images: int | None,
        images_per_step: int,
        step: int,
        held_out: dict | None = None,
    ):
        """Write run.json: facts about the run that are no options, for the model card and for resuming."""
        earlier = read_object(self.path / FACTS) if step else {}
        facts = {"parameters": unet.num_parameters(), "images": images, "images_per_step": images_per_step}
        if "energy" in earlier:
            facts["energy"] = earlier["energy"]
        if self.config.track_emissions:
            self.energy = EnergyMeter(self.config.track_emissions, earlier.get("energy"), step)
        if held_out:
            facts["held_out"] = held_out
        self._note(**facts, **describe_machine(accelerator), has_checkpoints=bool(step), finished=False)

    def _note_energy(self, step: int):
        if self.energy:
            with going_on("note the energy"):
                self._note(energy=self.energy.read(step))

    def close(self):
        """End what runs beside the training; the newest checkpoint is finished first."""
        try:
            self.checkpoints.wait()
        finally:
            if self.energy:
                self.energy.stop()

    def _note_checkpoints(self):
        if not self.facts.get("has_checkpoints"):
            self._note(has_checkpoints=True)

    def _note(self, **facts):
        """Add facts to run.json."""
        with self.facts_lock, going_on(f"write {FACTS}"):
            self.facts.update(facts)
            write_json(self.path / FACTS, self.facts)

    def note_unreadable(self, unreadable: list[dict], small: list[dict]):
        """Note images each once: unreadable ones in unreadable_images.jsonl, too small ones in small_images.jsonl."""
        self._add_lines(SMALL, small)
        if new := self._add_lines(UNREADABLE, unreadable):
            where = self.path / UNREADABLE
            tqdm.write(f"{new:,} images cannot be read and are left out; they are listed in {where}.")

    def _add_lines(self, name: str, lines: list[dict]) -> int:
        """Add lines to a file of JSON, each once, and return how many are new."""
        new: list[str] = []
        with going_on(f"write {name}"):
            known = {json.dumps(line) for line in self._lines(name, {})}
            new = [line for line in dict.fromkeys(map(json.dumps, lines)) if line not in known]
            if new:
                replace_text(self.path / name, "".join(f"{line}\n" for line in [*sorted(known), *new]))
        return len(new)

    def show_augmentation(self, images: ImageCache | ImagePart | None):
        """Write augmented.png: some images, and how training transforms them. A stream cannot be looked at before."""
        path = self.path / AUGMENTED
        if self.config.augment and images is not None and not path.exists():
            with going_on(f"write {AUGMENTED}"):
                form, some = images.form, range(min(6, len(images)))
                shown = [form.eight_bits(images[i], form.levels) if form.settings() else images[i] for i in some]
                augmented_grid(shown, self.config.size, self.config.augment_probability, self.config.seed).save(path)

    def outputs_of(self, step: int, is_last: bool) -> set[str]:
        """Return which outputs of a step exist.

        They are samples (`"draw"`), a measurement (`"measure"`), the held-out loss (`"validate"`), a snapshot
        (`"snapshot"`) and a pipeline (`"save"`). A pipeline does not tell its step, so that of the last step never
        counts.
        """
        there = {
            "draw": self._samples(step).exists(),
            "measure": any(line["step"] == step for line in self._lines(EVALUATIONS, {"step": int})),
            "save": (self.path / INDEX).exists() and not is_last,
            "snapshot": was_saved_here(self.path / SNAPSHOTS / f"step-{step:06d}"),
            "validate": any(line["step"] == step and "val_loss" in line for line in self.metrics),
        }
        return {name for name, is_there in there.items() if is_there}

    def _samples(self, step: int) -> Path:
        return self.path / SAMPLES / f"step-{step:06d}.png"

    def save_samples(self, step: int, images: list[Image.Image], form: PixelFormat = EIGHT_BITS):
        """Write samples/step-000500.png, which shows samples of a format, and loss.png up to this step."""
        form.captioned(image_grid(images)).save(self._samples(step))
        self._save_curve()

    def _save_curve(self):
        steps, losses = [m["step"] for m in self.metrics], [m["loss"] or math.nan for m in self.metrics]
        held_out = [(m["step"], m["val_loss"] or math.nan) for m in self.metrics if "val_loss" in m]
        curve = loss_curve(steps, losses, held_out=([step for step, _ in held_out], [loss for _, loss in held_out]))
        curve.save(self.path / LOSS)

    def save_pipeline(self, pipeline: DiffusionPipeline):
        """Save the pipeline while training goes on."""
        with going_on("save the model"):
            save_pipeline(pipeline, self.path)
            self._set_aside_old_results()

    def save_last_pipeline(self, pipeline: DiffusionPipeline):
        """Save the pipeline at the end, and the pictures of how it draws.

        Raises:
            OSError: If the pipeline cannot be saved.
        """
        save_pipeline(pipeline, self.path)
        with going_on("set aside the results of earlier weights"):
            self._set_aside_old_results()
        with going_on(f"save {DENOISING}"):
            steps, seed = self.config.ddpm_num_inference_steps, self.config.seed
            denoising = denoise(pipeline, steps, seed=seed)
            denoising.strip().save(self.path / DENOISING)
            denoising.save_animation(self.path / ANIMATION)

    def _set_aside_old_results(self):
        """Remove the pictures of earlier weights and rename their numbers, so that the card does not show them."""
        for name in (DENOISING, ANIMATION):
            (self.path / name).unlink(missing_ok=True)
        if (self.path / EVALUATION).exists():
            (self.path / EVALUATION).replace(self.path / EARLIER_EVALUATION)

    def save_checkpoint(self, step: int, tensors: dict, state: dict):
        """Copy a checkpoint, and write it while the training goes on."""
        self.checkpoints.write(step, tensors, state)
        self._note_energy(step)

    def save_snapshot(self, step: int, tensors: dict):
        """Copy a snapshot of the two averages, and write it while the training goes on."""
        self.checkpoints.write_snapshot(self.path / SNAPSHOTS, step, tensors)

    def finish(self, step: int, finished: bool):
        """Wait for the newest checkpoint. Note that the run is finished, if it is, and repeat what failed before."""
        self.checkpoints.wait()
        if not finished:
            return
        with going_on("delete older checkpoints"):
            prune_checkpoints(self.path / CHECKPOINTS, self.config.checkpoints_total_limit, newest=step)
        if not self.metrics_are_on_disk:
            with going_on(f"write {METRICS}"):
                write_json_lines(self.path / METRICS, self.metrics)
        self._note(finished=True)
        self._note_energy(step)
