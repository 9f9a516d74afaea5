"""`ddpm-hf evaluate`, and the same during training: which images to compare with, and what is left behind."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ddpm_hf.config import WHICH_IMAGES, TrainingConfig, check_saved_options
from ddpm_hf.data import common_mode, load_dataset
from ddpm_hf.features import load_extractor
from ddpm_hf.files import misfit, read_json, read_json_lines, write_json, write_json_lines
from ddpm_hf.image_cache import ImageCache, load_images
from ddpm_hf.machine import this_process, together
from ddpm_hf.measuring import Measurement, PictureFolder, check_measurable, measure
from ddpm_hf.nearest import nearest_picture
from ddpm_hf.pictures import is_ours, save_marked
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.run_files import EVALUATION, EVALUATIONS, NEAREST, OPTIONS, PROGRESSIVE, is_run
from ddpm_hf.sampling import clear_samples, fingerprint, open_model

# The options of a run that say how its images were read.
HOW_TO_READ = ("cache_dir", "max_unreadable", "image_fit", "celeba_crop")


def evaluate(
    source: str,
    wanted: Measurement,
    reference: dict,
    scheduler: str | None = None,
    checkpoint: str | None = None,
    revision: str | None = None,
    save_samples: Path | None = None,
    output: Path | None = None,
):
    """Measure a saved model, print the numbers, and write them down beside those that are there for the same model.

    Args:
        source, checkpoint, scheduler, revision: See [`~ddpm_hf.sampling.open_model`].
        wanted ([`Measurement`]): What to measure.
        reference (`dict`): Options of [`TrainingConfig`] that name the images to compare with; by default those of the
            run, or the embedded digits.
        save_samples (`Path`, *optional*): Folder to keep the samples in.
        output (`Path`, *optional*): JSON file of the numbers; by default evaluation.json in the run's folder, or here.
            Beside it will be nearest.png, and progressive.jsonl for an exact bpd.

    Raises:
        ValueError: If something does not fit.
        OSError: If something cannot be read or written.
    """
    state = this_process()
    output = output or (Path(source) if Path(source).is_dir() else Path()) / EVALUATION
    earlier = _earlier_results(output)
    pipeline = open_model(source, checkpoint, scheduler, revision)
    with state.main_process_first():
        images, record = open_reference(pipeline, _run_options(Path(source)), reference)
    check_measurable(wanted, images)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.is_dir() or not os.access(output.parent, os.W_OK):
        raise ValueError(f"{output} cannot be written; name another file with --output.")
    # What was drawn before an interruption is only found by a command that would draw the same.
    steps, kind = wanted.num_inference_steps or "all", type(pipeline.scheduler).__name__
    drawn = f"{fingerprint(pipeline)}-{kind}-{steps}-{wanted.seed}-{wanted.guidance_scale}-{wanted.mixed_precision}"
    samples = save_samples or output.parent / f"{output.stem}-samples-{drawn}"
    results = measure(pipeline, images, wanted, samples, record)
    if state.is_main_process:
        progressive = results.get("bpd", {}).pop("progressive", [])
        if progressive:
            write_json_lines(output.with_name(PROGRESSIVE), progressive)
        if wanted.of_samples:
            shown = PictureFolder(samples, min(8, wanted.num_images))
            save_marked(nearest_picture(shown, images, k=8), output.with_name(NEAREST))
        write_json(output, {**_of_the_same_model(earlier, results), **results})
        print(f"{table(results)}\nAll numbers, with all that they depend on, are in {output}.")
        if not save_samples:
            clear_samples(samples)
    state.wait_for_everyone()


def _run_options(folder: Path) -> dict:
    """The options of a training run about its images; none if the folder is no run.

    Only the caller may choose where the cache is written.

    Raises:
        ValueError: If they are broken.
    """
    if not is_run(folder):
        return {}
    advice = "Move it away, and name the images with --dataset or --train_data_dir."
    options = read_json(folder / OPTIONS, {}, advice)
    check_saved_options(options, folder / OPTIONS, advice)
    about_images = {*WHICH_IMAGES, *HOW_TO_READ} - {"cache_dir"}
    return {key: value for key, value in options.items() if key in about_images}


def open_reference(pipeline: DDPMPipelineCustom, run: dict, chosen: dict) -> tuple[ImageCache, dict]:
    """The reference set, brought to the model's resolution as for training, and what to record of it.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model.
        run, chosen (`dict`): Options of [`TrainingConfig`]; another data set is not read by the name of a split, a
            configuration or a column that belong to the run's.

    Raises:
        ValueError: If the images have not the model's channels, or are smaller, or cannot be read.
        OSError: If they cannot be kept.
    """
    size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    if not isinstance(size, int) or channels not in (1, 3):
        raise ValueError(
            f"the model draws images of {size} pixels and {channels} channels; expected squares, and 1 or 3."
        )
    is_other = any(chosen.get(key, run.get(key)) != run.get(key) for key in ("dataset_name", "train_data_dir"))
    kept = {key: value for key, value in run.items() if not is_other or key in HOW_TO_READ}
    config = TrainingConfig(**{**kept, **chosen, "resolution": size})
    dataset = load_dataset(config)
    mode, expected = common_mode(dataset), "L" if channels == 1 else "RGB"
    if mode != expected:
        kinds = {"L": "greyscale", "RGB": "colour"}
        raise ValueError(f"the reference set holds {kinds[mode]} images, and the model draws {kinds[expected]} ones.")
    record = {
        "dataset": config.train_data_dir or config.dataset_name or "mnist-mini",
        "dataset_config": config.dataset_config_name,
        "split": config.dataset_split,
        "preprocessing": {
            "resolution": size,
            "channels": channels,
            "image_fit": config.image_fit,
            "celeba_crop": config.celeba_crop,
        },
    }
    return load_images(dataset, mode, config), record


def _earlier_results(path: Path) -> dict:
    """What the file of the numbers holds already.

    Raises:
        ValueError: If it was not written by this command, nor the picture that will be put beside it.
    """
    advice = "Move it away, or name another file with --output."
    if path.exists():
        earlier = read_json(path, {}, advice)
        for metric, numbers in earlier.items():
            if problem := misfit(numbers, {"model_fingerprint": str}, f"`{metric}`"):
                raise ValueError(f"{path} does not hold numbers of `ddpm-hf evaluate`: {problem}. {advice}")
        return earlier
    picture = path.with_name(NEAREST)
    if picture.exists() and not is_run(path.parent) and not is_ours(picture):
        raise ValueError(f"{picture} would be overwritten. {advice}")
    return {}


def _of_the_same_model(earlier: dict, results: dict) -> dict:
    models = {numbers["model_fingerprint"] for numbers in results.values()}
    return {metric: numbers for metric, numbers in earlier.items() if {numbers["model_fingerprint"]} == models}


def table(results: dict[str, dict]) -> str:
    """The numbers of [`measure`], a line for each."""
    lines = []
    for name, value in flat(results).items():
        entry = results.get(name, {})
        error = entry.get("standard_error", entry.get("standard_deviation"))
        lines.append(f"{name:<10} {value:>10.4f}" + (f" +- {error:.4f}" if error is not None else ""))
    notes = {numbers["note"] for numbers in results.values() if "note" in numbers}
    return "\n".join([*lines, *notes])


def flat(results: dict[str, dict]) -> dict[str, float]:
    """One number for each name: `bpd`, `rate`, `distortion`, `rmse`, `fid`, `kid`, `precision`, `recall`, ..."""
    names = ("rate", "distortion", "rmse", "precision", "recall", "density", "coverage")
    numbers = {}
    for metric, entry in results.items():
        if "value" in entry:
            numbers[metric] = entry["value"]
        numbers.update({name: entry[name] for name in names if name in entry})
    return numbers


def measurement_of(config: TrainingConfig) -> Measurement | None:
    """What a run measures every `eval_steps`, if it does.

    Raises:
        ValueError: If that cannot be measured here.
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
            features=config.eval_features,
        )
        if wanted.of_samples:
            load_extractor(wanted.features, torch.device("cpu"))
    return wanted


def check_measurement(wanted: Measurement, images: ImageCache):
    """Raise a ValueError if a run could not measure so, before its first step; see [`check_measurable`]."""
    with _names_of_options():
        check_measurable(wanted, images)


@contextmanager
def _names_of_options() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the run cannot be measured (these options begin with --eval_ here): {error}") from error


def evaluate_during_training(
    pipeline: DDPMPipelineCustom, images: ImageCache, wanted: Measurement, folder: Path, step: int
) -> dict[str, float]:
    """Measure a model in training, and note the numbers in evaluations.jsonl; to be called on all processes.

    Nothing of the run changes but the mode of the network, which is left evaluating. The network computes in its own
    type, so the numbers are those of the saved model.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model, with averaged weights if there are.
        images ([`ImageCache`]): The training images, or others like them.
        wanted ([`Measurement`]): What to measure.
        folder (`Path`): Of the run; the samples are in it for the time being.
        step (`int`): Optimizer steps so far.

    Returns:
        `dict`: See [`flat`]; empty but on the main process.
    """
    state, samples = this_process(), folder / "evaluation-samples"
    together(lambda: clear_samples(samples) if state.is_main_process else None)  # of a run that was stopped here
    numbers = flat(measure(pipeline, images, wanted, samples, record={}))
    if state.is_main_process:
        clear_samples(samples)
        path = folder / EVALUATIONS
        # The run may have gone on from a checkpoint.
        earlier = [line for line in read_json_lines(path, {"step": int}) if line["step"] < step]
        write_json_lines(path, [*earlier, {"step": step, **numbers}])
        tqdm.write(f"Step {step:,}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))
    return numbers
