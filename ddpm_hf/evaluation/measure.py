"""Measure a model: bits per dimension of images, and FID, KID, precision and recall of samples.

Every number is recorded with the settings that it depends on. Samples, noise and choices are functions of the seed and
of the number of an image. So several processes can share a measurement, and it can be interrupted and repeated.
"""

import importlib.metadata
import math
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin

from ddpm_hf import __version__
from ddpm_hf.evaluation.distances import check_enough, frechet_distance, kernel_distance, precision_recall
from ddpm_hf.evaluation.features import extract, features_file, keep_features, load_extractor, read_features
from ddpm_hf.evaluation.image_sets import ImageSet, PictureFolder, ReferenceSet, Seen, as_batch
from ddpm_hf.evaluation.likelihood import Bound, variational_bound
from ddpm_hf.evaluation.measurement import Measurement
from ddpm_hf.images.batches import seed_of
from ddpm_hf.other_schedulers import describe_scheduler
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.processes import gathered, this_process, together
from ddpm_hf.sample_folder import fill_folder
from ddpm_hf.sampling import Classes, Drawing, fingerprint
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler
from ddpm_hf.unet_ddpm import DDPMUNetModel

ENOUGH_SAMPLES = 10_000  # a smaller number alone makes FID larger


def flat(results: dict[str, dict]) -> dict[str, float]:
    """Return one number for each name: `bpd`, `rate`, `distortion`, `rmse`, `fid`, `kid`, `precision`, `recall`, ..."""
    names = ("rate", "distortion", "rmse", "precision", "recall", "density", "coverage")
    numbers = {}
    for metric, entry in results.items():
        if "value" in entry:
            numbers[metric] = entry["value"]
        numbers.update({name: entry[name] for name in names if name in entry})
    return numbers


def measure(
    pipeline: DDPMPipelineCustom,
    images: ReferenceSet,
    wanted: Measurement,
    samples: Path,
    record: dict,
    compare_real: bool = False,
    scheduler: SchedulerMixin | None = None,
) -> dict[str, dict]:
    """Measure a model. All processes have to call this together.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model, on this process's device.
        images ([`ReferenceSet`]): The reference set, at the model's resolution.
        wanted ([`Measurement`]): What to measure.
        samples (`Path`): Folder of the samples. Samples that it holds are not drawn again.
        record (`dict`): More settings that the numbers depend on.
        compare_real (`bool`): Whether to compare real images with other real ones, too, as far as there are enough.
        scheduler (`SchedulerMixin`, *optional*): The model's own, if the pipeline draws with another one.

    Returns:
        `dict`: For each metric its numbers and their settings. It is empty on all processes but the main one.

    Raises:
        ValueError: If the model, the images and the settings do not fit together.
        OSError: If samples or features cannot be written.
    """
    state, own = this_process(), scheduler or pipeline.scheduler
    pipeline.unet.eval()
    record = {
        **record,
        "reference_images": len(images),
        "reference_fingerprint": images.fingerprint[:16],
        "model_fingerprint": fingerprint(pipeline.unet, own),
        "seed": wanted.seed,
        "versions": {"ddpm_hf": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    results = {}
    if wanted.of_samples:  # before bpd, since more can go wrong with samples
        steps = wanted.num_inference_steps or pipeline.default_num_inference_steps
        real, fake, about_features = _features(pipeline, images, wanted, samples, record["model_fingerprint"])
        about = {"scheduler": describe_scheduler(pipeline.scheduler), "num_inference_steps": steps, **about_features}
        about["num_images"] = wanted.num_images
        about["torchmetrics"] = importlib.metadata.version("torchmetrics")
        notes = []
        if wanted.num_images < ENOUGH_SAMPLES:
            notes.append(f"few samples: {wanted.num_images:,}, so not comparable with numbers of more.")
        if images.form.settings():
            notes.append(f"compared is what can be seen with 8 bits of {images.form.describe()}.")
        if notes:
            about["note"] = " ".join(notes)
        metrics = wanted.of_samples if state.is_main_process else ()
        compared = together(lambda: {metric: _compare(metric, real, fake, wanted.seed) for metric in metrics})
        if compare_real:
            of_real = together(lambda: {metric: _compare_real(metric, real, wanted) for metric in metrics})
            compared = {metric: {**numbers, **of_real[metric]} for metric, numbers in compared.items()}
        results = {metric: {**numbers, **record, **about} for metric, numbers in compared.items()}
    if "bpd" in wanted.metrics:
        results["bpd"] = {**_bits_per_dimension(pipeline.unet, own, images, wanted), **record}
    return results if state.is_main_process else {}


def check_measurable(wanted: Measurement, images: ReferenceSet):
    """Raise a ValueError if there are too few images, no 256 levels for bpd, or the extractor fails on a batch."""
    state = this_process()
    if "bpd" in wanted.metrics and not images.form.has_256_levels:
        raise ValueError(
            f"--metrics bpd is the likelihood of pictures of 256 levels, and these have {images.form.describe()}; name "
            "other metrics, or train without --preserve_input_precision."
        )
    if min(wanted.num_images, len(images)) < state.num_processes:
        raise ValueError(f"--num_images {wanted.num_images}: expected one for each process, {state.num_processes}.")
    if wanted.of_samples:
        extractor, some = load_extractor(wanted.features, state.device), range(min(wanted.batch_size, len(images)))
        features = extractor(as_batch(Seen(images), some))
        check_enough(wanted.of_samples, wanted.num_images, len(images), features.shape[1])


def _bits_per_dimension(unet: DDPMUNetModel, own: SchedulerMixin, images: ReferenceSet, wanted: Measurement) -> dict:
    state = this_process()
    # The bound is that of the model's own reverse process over all T timesteps, whatever scheduler draws the samples.
    # The configuration of a DPM-Solver has the variance None.
    scheduler = DDPMLinearScheduler.from_config({key: value for key, value in own.config.items() if value is not None})
    timesteps = min(wanted.bpd_timesteps, len(scheduler))
    random = np.random.default_rng(seed_of(wanted.seed, "images for bpd", 0))
    chosen = np.sort(random.permutation(len(images))[: wanted.num_images]).tolist()
    mine = chosen[state.process_index :: state.num_processes]
    options = (timesteps, wanted.batch_size, wanted.seed, state.is_main_process, wanted.bpd_decoder)
    parts = gathered(lambda: variational_bound(unet, scheduler, images, mine, *options))
    prior, bits, squared_errors = (
        _in_turns([getattr(part, name) for part in parts], len(chosen)) for name in ("prior", "bits", "squared_errors")
    )
    bound = Bound(prior, bits, squared_errors, len(scheduler))
    summary = bound.summary()
    if not math.isfinite(summary["value"]):
        raise ValueError("the bits per dimension are not finite: the weights or the scheduler are spoilt.")
    about = {"variance_type": scheduler.config.variance_type, "decoder_cdf": wanted.bpd_decoder, "class_labels": None}
    numbers = {**summary, **about}
    return {**numbers, "progressive": bound.progressive()} if numbers["exact_over_timesteps"] else numbers


def _features(
    pipeline: DDPMPipelineCustom, images: ReferenceSet, wanted: Measurement, samples: Path, model: str
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Return features of the reference set `(N, D)` and of the samples `(M, D)`, and their settings."""
    state = this_process()
    extractor = together(lambda: load_extractor(wanted.features, state.device))

    def shared_out(pictures: ImageSet) -> np.ndarray:
        mine = range(state.process_index, len(pictures), state.num_processes)
        parts = gathered(lambda: extract(extractor, pictures, mine, wanted.batch_size, state.is_main_process))
        return _in_turns(parts, len(pictures))

    path = features_file(images.folder.parent / "features", images.fingerprint, extractor.fingerprint)
    real = _kept(path, lambda: shared_out(Seen(images)))
    classes = Classes.chosen(pipeline, None, wanted.guidance_scale, wanted.guidance_interval)
    how = Drawing(wanted.seed, wanted.num_inference_steps, wanted.batch_size, classes, wanted.mixed_precision)
    fill_folder(pipeline, samples, wanted.num_images, how, source=model)
    fake = shared_out(PictureFolder(samples, wanted.num_images, images.form))
    about = {"extractor": wanted.features, "extractor_fingerprint": extractor.fingerprint, "features": real.shape[1]}
    about |= {"class_labels": classes.labels or None, **classes.recorded_guidance()}
    about["mixed_precision"] = wanted.mixed_precision
    return real, fake, about


def _kept(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return an array that is kept in a file. All processes compute it if the file is missing or spoilt."""
    is_main = this_process().is_main_process
    (kept, *_) = gathered(lambda: read_features(path) if is_main else None)
    if kept is None:
        kept = compute()
        together(lambda: keep_features(path, kept) if is_main else None)
    return kept


def _in_turns(parts: list[np.ndarray], total: int) -> np.ndarray:
    """Return the rows of all processes in order. Process p of P has the rows p, p + P, p + 2 P, ..."""
    rows = np.empty((total, *parts[0].shape[1:]), dtype=parts[0].dtype)
    for p, its_rows in enumerate(parts):
        rows[p :: len(parts)] = its_rows
    return rows


def _compare_real(metric: str, real: np.ndarray, wanted: Measurement) -> dict:
    """Return the number that real images have, as `of_real_images`; nothing if there are too few of them.

    A part of them, at most as many as there are samples, is compared with as many others.
    """
    size = min(len(real) // 2, wanted.num_images)
    try:
        check_enough([metric], size, size, real.shape[1])
    except ValueError:
        return {}
    order = np.random.default_rng(seed_of(wanted.seed, "real images to compare", 0)).permutation(len(real))
    numbers = _compare(metric, real[order[:size]], real[order[size : 2 * size]], wanted.seed)
    return {"of_real_images": {**numbers, "images": size}}


def _compare(metric: str, real: np.ndarray, fake: np.ndarray, seed: int) -> dict:
    if metric == "fid":
        return {"value": frechet_distance(real, fake)}
    if metric == "kid":
        return kernel_distance(real, fake, seed)
    return precision_recall(real, fake, seed)
