"""The held-out loss: that of images which are never trained on, always at the same timesteps and noise."""

import math
from collections.abc import Sequence
from statistics import mean, median

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.batches import cut, seed_of
from ddpm_hf.images.cache import ImageCache
from ddpm_hf.images.parts import ImagePart
from ddpm_hf.precision import autocast
from ddpm_hf.processes import gathered, this_process
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler
from ddpm_hf.training.best import KeptBest
from ddpm_hf.training.objective import denoising_loss, timestep_weights
from ddpm_hf.training.run_folder import RunFolder
from ddpm_hf.training.teacher import Teacher
from ddpm_hf.unet_ddpm import DDPMUNetModel

PAIRS = 1000  # of an image and a timestep; also the most images that are used


class HeldOutLoss:
    """The held-out loss of a run. It has its own random numbers, so measuring it changes nothing of the training.

    Up to a thousand pairs of an image and a timestep are fixed by the seed: of more images some are chosen, and of
    fewer each has several timesteps. The images are cut to their centre and not mirrored, and their labels are not left
    out. Timesteps come as often as in training, or evenly if that draws them by their losses, so the loss can be
    compared with the training loss.

    Args:
        images ([`~ddpm_hf.images.cache.ImageCache`]): The images that are held out.
        config ([`TrainingConfig`]): The options.
        scheduler ([`DDPMLinearScheduler`]): q(x_t | x_0), and what the network predicts.
        teacher ([`Teacher`], *optional*): What a student learns from.

    Attributes:
        numbers (`numpy.ndarray`, `(P,)`): The image of each pair.
        timesteps (`numpy.ndarray`, `(P,)`): Its timestep, in [0, T).
    """

    def __init__(
        self,
        images: ImageCache | ImagePart,
        config: TrainingConfig,
        scheduler: DDPMLinearScheduler,
        teacher: Teacher | None = None,
    ):
        self.images, self.config, self.scheduler, self.teacher = images, config, scheduler, teacher
        self.is_bound = config.loss_weighting == "vlb"
        frequencies = timestep_weights(scheduler, config).cpu().numpy()
        self.numbers, self.timesteps = choose_pairs(len(images), frequencies, config.seed)

    @torch.no_grad()
    def measure(self, unet: DDPMUNetModel) -> dict[str, float | None]:
        """Return `val_loss`, and `val_loss_q1` to `val_loss_q4` by quartile of the timestep. All processes call this.

        The processes share the pairs. The network is left in evaluation mode.
        """
        state = this_process()
        unet.eval()
        parts = gathered(lambda: self._losses(unet, range(state.process_index, len(self.numbers), state.num_processes)))
        losses = np.empty(len(self.numbers))
        for p, part in enumerate(parts):
            losses[p :: len(parts)] = part
        quartiles = self.timesteps * 4 // len(self.scheduler)
        groups = {"val_loss": losses, **{f"val_loss_q{i + 1}": losses[quartiles == i] for i in range(4)}}
        return {name: _finite_mean(group) for name, group in groups.items()}

    def _losses(self, unet: DDPMUNetModel, pairs: Sequence[int]) -> np.ndarray:
        """Return the loss of each of these pairs, float64."""
        losses: list[float] = []
        size, batch_size = self.config.size, self.config.train_batch_size
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            numbers = self.numbers[batch].tolist()
            pixels = np.stack([cut(self.images[i], size, 0.5, 0.5) for i in numbers])
            x_0 = self.images.form.to_x_0(pixels, torch.device("cpu"))  # (B, C, H, W)
            eps = torch.stack([self._noise(pair, x_0[0].shape) for pair in batch])
            t = torch.from_numpy(self.timesteps[batch])
            x_0, eps, t = (tensor.to(unet.device) for tensor in (x_0, eps, t))
            labels = self._labels(unet, numbers)
            if self.teacher:
                x_0, eps = self.teacher.teach(x_0, t, eps, labels)
            with autocast(unet.device, self.config.mixed_precision):
                losses += denoising_loss(unet, self.scheduler, x_0, t, eps, labels, is_bound=self.is_bound).tolist()
        return np.array(losses)

    def _noise(self, pair: int, shape: torch.Size) -> torch.Tensor:
        """Return eps of a pair. It is drawn on the CPU, so that it is the same for all devices."""
        seed = seed_of(self.config.seed, f"held-out noise at {self.timesteps[pair]}", int(self.numbers[pair]))
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def _labels(self, unet: DDPMUNetModel, numbers: list[int]) -> torch.Tensor | None:
        names = unet.config.class_names
        if not names:
            return None
        labels = [-1] * len(numbers) if self.images.labels is None else self.images.labels[numbers].tolist()
        return torch.tensor([label if label >= 0 else len(names) for label in labels], device=unet.device)


def choose_pairs(count: int, frequencies: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose images and a timestep for each, evenly spread over the images and over how often timesteps are trained.

    Args:
        count (`int`): How many images there are.
        frequencies (`numpy.ndarray`, `(T,)`): How often each timestep is trained, in proportion.
        seed (`int`): The run's seed.

    Returns:
        `tuple`: The numbers of the images and their timesteps, both `(P,)` int64, with P = `PAIRS` or a little less.
    """
    random = np.random.default_rng(seed_of(seed, "held-out pairs", 0))
    chosen = np.sort(random.permutation(count)[:PAIRS])
    n, rounds = len(chosen), PAIRS // len(chosen)
    # A round takes each image once. All pairs together take the middle of each P-th part of the timesteps once.
    parts = np.concatenate([i * n + random.permutation(n) for i in range(rounds)])
    cumulated = frequencies.cumsum()
    timesteps = np.searchsorted(cumulated, (parts + 0.5) / (n * rounds) * cumulated[-1], side="right")
    return np.tile(chosen, rounds), timesteps.clip(max=len(frequencies) - 1)


def _finite_mean(losses: np.ndarray) -> float | None:
    """Return the mean; None if there is none or it is not finite, as JSON has it."""
    value = math.fsum(losses) / len(losses) if len(losses) and np.isfinite(losses).all() else math.nan
    return value if math.isfinite(value) else None


def validate(
    pipeline: DiffusionPipeline, held_out: HeldOutLoss, folder: RunFolder, best: KeptBest, step: int
) -> dict[str, float | None]:
    """Measure the held-out loss, keep the pipeline if it is the best, and note the numbers. All processes call this.

    The numbers are noted last. If the process dies before, the same command measures them again.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model, with averaged weights if the run has them.
        held_out ([`HeldOutLoss`]): What to measure.
        folder ([`RunFolder`]): The folder of the run.
        best ([`KeptBest`]): The best pipeline so far.
        step (`int`): Optimizer steps so far.

    Returns:
        `dict`: See [`HeldOutLoss.measure`].
    """
    numbers = held_out.measure(pipeline.unet)
    if this_process().is_main_process:
        is_best = best.offer(numbers, step, pipeline)
        folder.add_to_log(step, numbers)
        tqdm.write(f"Step {step:,}: held-out loss {numbers['val_loss'] or math.nan:.4f}{', the best' * is_best}")
        if parting := memorising(folder.metrics):
            record = best.record()
            where = f"best/ has step {record['step']:,}." if record else "--keep_best keeps the best model."
            tqdm.write(f"{parting} {where}")
    return numbers


# ---- When the curves part -------------------------------------------------------------------------------------------

WINDOW = 3  # validations that are looked at together
LEAST_RISE = 0.02  # of the held-out loss, as a share of its lowest value
NOISE = 5  # standard deviations of the noise that a rise has to exceed


def memorising(metrics: list[dict]) -> str:
    """Say that the held-out loss rises while the training loss falls, after the first validation where this is sure.

    The rule looks at medians of three validations in a row, since one value alone says little. The curves have parted
    if the last median is above the lowest one by more than 2 % and by more than five standard deviations of the noise,
    if three or more validations lie between them, and if the training loss fell meanwhile.

    Args:
        metrics (`list[dict]`): The lines of metrics.jsonl so far.

    Returns:
        `str`: A sentence; empty if the curves have not parted, or had parted before.
    """
    steps, held_out, trained = _curves(metrics)
    is_new = bool(steps) and steps[-1] == metrics[-1]["step"]
    if not is_new or not _have_parted(held_out, trained):
        return ""
    if any(_have_parted(held_out[:n], trained[:n]) for n in range(2 * WINDOW, len(held_out))):
        return ""  # it was said before, perhaps before the run was resumed
    low = held_out.index(min(held_out))
    return (
        f"The held-out loss rose from {held_out[low]:.4g} at step {steps[low]:,} to {held_out[-1]:.4g}, and the "
        "training loss still falls: the network begins to memorise."
    )


def _curves(metrics: list[dict]) -> tuple[list[int], list[float], list[float]]:
    """Return the steps of the validations, the held-out losses, and the mean training losses since the one before."""
    steps: list[int] = []
    held_out: list[float] = []
    trained: list[float] = []
    losses: list[float] = []
    for line in metrics:
        losses += [] if line["loss"] is None else [line["loss"]]
        if line.get("val_loss") is not None:
            steps.append(line["step"])
            held_out.append(line["val_loss"])
            trained.append(mean(losses) if losses else trained[-1] if trained else math.nan)
            losses = []
    return steps, held_out, trained


def _have_parted(held_out: list[float], trained: list[float]) -> bool:
    """Return whether the held-out loss has risen and the training loss has fallen, see [`memorising`]."""
    if len(held_out) < 2 * WINDOW:
        return False
    levels = [median(held_out[i : i + WINDOW]) for i in range(len(held_out) - WINDOW + 1)]
    low = min(range(len(levels)), key=levels.__getitem__)
    # A point differs from the mean of its neighbours by noise of variance 1 + 1/2, if the curve is smooth.
    bends = [abs(b - (a + c) / 2) for a, b, c in zip(held_out, held_out[1:], held_out[2:])]
    # Few bends are an uncertain estimate, so it is taken larger.
    noise = 1.4826 * median(bends) / math.sqrt(1.5) * (1 + 4 / len(bends))
    rise = levels[-1] - levels[low]
    apart = len(levels) - 1 - low >= WINDOW
    falls = mean(trained[-WINDOW:]) < mean(trained[low : low + WINDOW])
    return apart and rise > max(LEAST_RISE * levels[low], NOISE * noise) and falls
