"""Measure a model while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ddpm_hf.config import TrainingConfig
from ddpm_hf.evaluation.features import load_extractor
from ddpm_hf.evaluation.image_sets import ReferenceSet
from ddpm_hf.evaluation.measure import check_measurable, flat, measure
from ddpm_hf.evaluation.measurement import Measurement
from ddpm_hf.files import read_json_lines, write_json_lines
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.processes import this_process, together
from ddpm_hf.run_files import EVALUATIONS
from ddpm_hf.sample_folder import clear_samples
from ddpm_hf.training.best import KeptBest


def measurement_of(config: TrainingConfig) -> Measurement | None:
    """Return what a run measures every `eval_steps`; None if it measures nothing.

    Raises:
        ValueError: If it cannot be measured, for example because a package is missing.
    """
    if not config.eval_steps:
        return None
    with _names_of_options():
        wanted = Measurement(
            metrics=[metric.strip() for metric in config.eval_metrics.split(",")],
            num_images=config.eval_num_images,
            batch_size=config.eval_batch_size,
            num_inference_steps=config.ddpm_num_inference_steps,
            seed=config.seed,
            guidance_scale=1.0 if config.guidance_scale is None else config.guidance_scale,
            guidance_interval=config.guided_part,
            features=config.eval_features,
        )
        if wanted.of_samples:
            load_extractor(wanted.features, torch.device("cpu"))
    return wanted


def check_measurement(wanted: Measurement, images: ReferenceSet):
    """Raise a ValueError if a run cannot measure this, before its first step. See [`check_measurable`]."""
    with _names_of_options():
        check_measurable(wanted, images)


@contextmanager
def _names_of_options() -> Iterator[None]:
    """Tell the reader of an error how the options are called in training."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the run cannot be measured (these options begin with --eval_ here): {error}") from error


def evaluate_during_training(
    pipeline: DDPMPipelineCustom,
    images: ReferenceSet,
    wanted: Measurement,
    folder: Path,
    step: int,
    best: KeptBest | None = None,
) -> dict[str, float]:
    """Measure a model during training, and add the numbers to evaluations.jsonl. All processes have to call this.

    It changes nothing of the run but the mode of the network, which stays in evaluation mode. The network computes in
    its own type, so the numbers are those of the saved model.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model, with averaged weights if the run has them.
        images ([`ReferenceSet`]): The images to compare with.
        wanted ([`Measurement`]): What to measure.
        folder (`Path`): The folder of the run. It holds the samples until they are measured.
        step (`int`): Number of optimizer steps so far.
        best ([`KeptBest`], *optional*): Keeps the pipeline if it is the best so far.

    Returns:
        `dict`: See [`flat`]. It is empty on all processes but the main one.
    """
    state, samples = this_process(), folder / "evaluation-samples"
    together(lambda: clear_samples(samples) if state.is_main_process else None)  # left by a run that was stopped here
    numbers = flat(measure(pipeline, images, wanted, samples, record={}))
    if state.is_main_process:
        clear_samples(samples)
        if best:
            best.offer(numbers, step, pipeline)  # before the numbers are noted, so that a crash between costs neither
        path = folder / EVALUATIONS
        # After a resume from a checkpoint, lines of later steps are out of date.
        earlier = [line for line in read_json_lines(path, {"step": int}) if line["step"] < step]
        write_json_lines(path, [*earlier, {"step": step, **numbers}])
        tqdm.write(f"Step {step:,}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))
    return numbers
