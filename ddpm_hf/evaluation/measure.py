"""Measuring a model: bits per dimension of images, and how samples compare with them: FID, KID, precision and recall.

Every number is recorded with all that it depends on. Samples, noise and choices are functions of the seed and of an
image's number, so a measurement can be shared out over processes, interrupted, and repeated.
"""

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image

from ddpm_hf import __version__
from ddpm_hf.evaluation.distances import check_enough, frechet_distance, kernel_distance, precision_recall
from ddpm_hf.evaluation.features import as_batch, extract, features_file, keep_features, load_extractor, read_features
from ddpm_hf.evaluation.likelihood import Bound, variational_bound
from ddpm_hf.images.batches import seed_of
from ddpm_hf.images.cache import ImageCache
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.processes import gathered, this_process, together
from ddpm_hf.sampling import Classes, Drawing, fill_folder, fingerprint, picture_path
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler


def flat(results: dict[str, dict]) -> dict[str, float]:
    """One number for each name: `bpd`, `rate`, `distortion`, `rmse`, `fid`, `kid`, `precision`, `recall`, ..."""
    names = ("rate", "distortion", "rmse", "precision", "recall", "density", "coverage")
    numbers = {}
    for metric, entry in results.items():
        if "value" in entry:
            numbers[metric] = entry["value"]
        numbers.update({name: entry[name] for name in names if name in entry})
    return numbers


METRICS = ("bpd", "fid", "kid", "prdc")
ENOUGH_SAMPLES = 10_000  # with fewer, FID is larger for their number alone


@dataclass
class Measurement:
    """What to measure, and how.

    Args:
        metrics (`Sequence[str]`): Of `METRICS`.
        num_images (`int`): Samples to draw; for bpd, images to take of the reference set, at random.
        batch_size (`int`): Images at once.
        num_inference_steps (`int`, *optional*): Denoising steps of the samples; by default T.
        bpd_timesteps (`int`): Timesteps for each image of bpd; T for the exact sum.
        seed (`int`): Of all noise and choices.
        features (`str`): See [`~ddpm_hf.evaluation.features.load_extractor`].
        guidance_scale (`float`): Of a class-conditional model's samples, which are of its classes in turns; 1 is none.
            The bound is always that of the model without a class.
        mixed_precision (`str`): What the samples' network computes in, see [`~ddpm_hf.precision.autocast`]. The bound
            is always computed in its own type.

    Raises:
        ValueError: If a value is out of range, or torchmetrics is needed and not there.
    """

    metrics: Sequence[str] = METRICS
    num_images: int = 10_000
    batch_size: int = 64
    num_inference_steps: int | None = None
    bpd_timesteps: int = 50
    seed: int = 0
    features: str = "inception"
    guidance_scale: float = 1.0
    mixed_precision: str = "no"

    def __post_init__(self):
        for metric in self.metrics:
            if metric not in METRICS:
                raise ValueError(f"--metrics {metric}: expected some of {', '.join(METRICS)}.")
        for name, least in (("num_images", 1), ("batch_size", 1), ("bpd_timesteps", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: expected at least {least}.")
        if self.of_samples and importlib.util.find_spec("torchmetrics") is None:
            raise ValueError(f"--metrics {self.of_samples[0]} needs a package: pip install torchmetrics.")

    @property
    def of_samples(self) -> list[str]:
        """The metrics that samples are drawn for."""
        return [metric for metric in self.metrics if metric != "bpd"]


class PictureFolder(Sequence):
    """The pictures 000000.png, 000001.png, ... of a folder, each `(H, W, C)` uint8."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < self.count:
            raise IndexError(i)
        pixels = np.asarray(Image.open(picture_path(self.folder, i)))
        return pixels.reshape(*pixels.shape[:2], -1)


def measure(
    pipeline: DDPMPipelineCustom, images: ImageCache, wanted: Measurement, samples: Path, record: dict
) -> dict[str, dict]:
    """Measure a model; on all processes together.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model, on this process's device.
        images ([`ImageCache`]): The reference set, at the model's resolution.
        wanted ([`Measurement`]): What to measure.
        samples (`Path`): Folder of the samples; those that it holds are not drawn again.
        record (`dict`): What else the numbers depend on.

    Returns:
        `dict`: For each metric its numbers, and what they depend on. On the main process; else it is empty.

    Raises:
        ValueError: If something does not fit.
        OSError: If samples or features cannot be written.
    """
    state = this_process()
    pipeline.unet.eval()
    record = {
        **record,
        "reference_images": len(images),
        "reference_fingerprint": images.fingerprint[:16],
        "model_fingerprint": fingerprint(pipeline),
        "seed": wanted.seed,
        "versions": {"ddpm_hf": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    results = {}
    if wanted.of_samples:  # before bpd, since more can be wrong with them
        steps = wanted.num_inference_steps or pipeline.scheduler.config.num_train_timesteps
        real, fake, about_features = _features(pipeline, images, wanted, samples, record["model_fingerprint"])
        about = {"scheduler": type(pipeline.scheduler).__name__, "num_inference_steps": steps, **about_features}
        about["num_images"] = wanted.num_images
        about["torchmetrics"] = importlib.metadata.version("torchmetrics")
        if wanted.num_images < ENOUGH_SAMPLES:
            about["note"] = f"few samples: {wanted.num_images:,}, so not comparable with numbers of more."
        metrics = wanted.of_samples if state.is_main_process else ()
        compared = together(lambda: {metric: _compare(metric, real, fake, wanted.seed) for metric in metrics})
        results = {metric: {**numbers, **record, **about} for metric, numbers in compared.items()}
    if "bpd" in wanted.metrics:
        results["bpd"] = {**_bits_per_dimension(pipeline, images, wanted), **record}
    return results if state.is_main_process else {}


def check_measurable(wanted: Measurement, images: ImageCache):
    """Raise a ValueError if there are too few images, or the extractor fails on a batch of them; see [`measure`]."""
    state = this_process()
    if min(wanted.num_images, len(images)) < state.num_processes:
        raise ValueError(f"--num_images {wanted.num_images}: expected one for each process, {state.num_processes}.")
    if wanted.of_samples:
        extractor, some = load_extractor(wanted.features, state.device), range(min(wanted.batch_size, len(images)))
        features = extractor(as_batch(images, some))
        check_enough(wanted.of_samples, wanted.num_images, len(images), features.shape[1])


def _bits_per_dimension(pipeline: DDPMPipelineCustom, images: ImageCache, wanted: Measurement) -> dict:
    state = this_process()
    # The bound is of the model's own reverse process, whichever scheduler draws the samples, and of all T timesteps.
    scheduler = DDPMLinearScheduler.from_config(pipeline.scheduler.config)
    timesteps = min(wanted.bpd_timesteps, len(scheduler))
    random = np.random.default_rng(seed_of(wanted.seed, "images for bpd", 0))
    chosen = np.sort(random.permutation(len(images))[: wanted.num_images]).tolist()
    mine = chosen[state.process_index :: state.num_processes]
    options = (timesteps, wanted.batch_size, wanted.seed, pipeline.device, state.is_main_process)
    parts = gathered(lambda: variational_bound(pipeline.unet, scheduler, images, mine, *options))
    columns = ([getattr(part, name) for part in parts] for name in ("prior", "bits", "squared_errors"))
    bound = Bound(*(_in_turns(column, len(chosen)) for column in columns), len(scheduler))
    summary = bound.summary()
    if not math.isfinite(summary["value"]):
        raise ValueError("the bits per dimension are not finite: the weights or the scheduler are spoilt.")
    numbers = {**summary, "variance_type": scheduler.config.variance_type, "class_labels": None}
    return {**numbers, "progressive": bound.progressive()} if numbers["exact_over_timesteps"] else numbers


def _features(
    pipeline: DDPMPipelineCustom, images: ImageCache, wanted: Measurement, samples: Path, model: str
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Features of the reference set and of the samples, `(N, D)` and `(M, D)`, and what they depend on."""
    state = this_process()
    extractor = together(lambda: load_extractor(wanted.features, state.device))

    def shared_out(pictures: Sequence[np.ndarray]) -> np.ndarray:
        mine = range(state.process_index, len(pictures), state.num_processes)
        parts = gathered(lambda: extract(extractor, pictures, mine, wanted.batch_size, state.is_main_process))
        return _in_turns(parts, len(pictures))

    path = features_file(images.folder.parent / "features", images.fingerprint, extractor.fingerprint)
    real = _kept(path, lambda: shared_out(images))
    classes = Classes.chosen(pipeline, None, wanted.guidance_scale)
    how = Drawing(wanted.seed, wanted.num_inference_steps, wanted.batch_size, classes, wanted.mixed_precision)
    fill_folder(pipeline, samples, wanted.num_images, how, source=model)
    fake = shared_out(PictureFolder(samples, wanted.num_images))
    about = {"extractor": wanted.features, "extractor_fingerprint": extractor.fingerprint, "features": real.shape[1]}
    about.update(class_labels=classes.labels or None, guidance_scale=classes.guidance_scale)
    about["mixed_precision"] = wanted.mixed_precision
    return real, fake, about


def _kept(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """An array in a file, computed by all processes if the main one does not find it, or finds it spoilt."""
    is_main = this_process().is_main_process
    (kept, *_) = gathered(lambda: read_features(path) if is_main else None)
    if kept is None:
        kept = compute()
        together(lambda: keep_features(path, kept) if is_main else None)
    return kept


def _in_turns(parts: list[np.ndarray], total: int) -> np.ndarray:
    """The rows of all processes, where process p of P has the rows p, p + P, p + 2 P, ..."""
    rows = np.empty((total, *parts[0].shape[1:]), dtype=parts[0].dtype)
    for p, its_rows in enumerate(parts):
        rows[p :: len(parts)] = its_rows
    return rows


def _compare(metric: str, real: np.ndarray, fake: np.ndarray, seed: int) -> dict:
    match metric:
        case "fid":
            return {"value": frechet_distance(real, fake)}
        case "kid":
            return kernel_distance(real, fake, seed)
        case "prdc":
            return precision_recall(real, fake, seed)
