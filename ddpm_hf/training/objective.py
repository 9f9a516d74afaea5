"""The training objective: L_simple (eq. 14), its weights, the bound (eq. 5), and how often each timestep is drawn."""

import math

import torch
import torch.nn.functional as F

from ddpm_hf.config import TrainingConfig
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.scheduling_ddpm_linear import ALPHA_BAR_MIN, DDPMLinearScheduler
from ddpm_hf.training.loss_history import LossHistory
from ddpm_hf.variational import log_variances, normal_kl

VLB_WEIGHT = 0.001  # lambda of L_hybrid (arXiv 2102.09672, section 3.1)


class Objective:
    """What a run minimises: how often each timestep is trained, and how much its loss counts.

    Args:
        scheduler ([`DDPMLinearScheduler`]): q(x_t | x_0), and what the network predicts.
        config ([`TrainingConfig`]): `timestep_sampling`, `loss_weighting` and what belongs to them.
        device (`torch.device`): Of the training.

    Attributes:
        weights (`torch.Tensor`, `(T,)`): See [`loss_weights`].
        frequencies (`torch.Tensor`, `(T,)`): See [`timestep_weights`]. They are float64 on a CPU, and float32 on other
            devices, of which some know no float64.
        is_bound (`bool`): Whether the loss is L_vlb; see [`denoising_loss`].
    """

    def __init__(self, scheduler: DDPMLinearScheduler, config: TrainingConfig, device: torch.device):
        self.weights = loss_weights(scheduler, config).to(device)
        self.is_bound = config.loss_weighting == "vlb"
        frequencies = timestep_weights(scheduler, config)
        self.frequencies = frequencies if device.type == "cpu" else frequencies.float().to(device)

    def draw_timesteps(
        self, count: int, generator: torch.Generator, history: LossHistory | None = None
    ) -> torch.Tensor:
        """Draw timesteps t `(count,)` in [0, T), by their losses if there is a history of them.

        Index 0 means one step of noise.
        """
        frequencies = history.density if history else self.frequencies
        return frequencies.multinomial(count, replacement=True, generator=generator)


def denoising_loss(
    unet: torch.nn.Module,
    scheduler: DDPMLinearScheduler,
    x_0: torch.Tensor,
    t: torch.Tensor,
    eps: torch.Tensor,
    class_labels: torch.Tensor | None = None,
    augment_labels: torch.Tensor | None = None,
    is_bound: bool = False,
) -> torch.Tensor:
    """Return L_simple (eq. 14) of each image, L_hybrid if the network learns the variance, or L_vlb.

    L_simple is the mean of `|eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t)|^2` over channels
    and pixels. If the network predicts x_0 or v, that takes the place of eps. L_hybrid adds 0.001 T times the term of
    the bound at t, in bits per dimension (arXiv 2102.09672, eq. 16); see [`bound_at`]. L_vlb is T times that term, so
    its mean over all t is the bound (eq. 5) but for L_T, which has no gradient.

    Args:
        unet (`torch.nn.Module`): eps_theta.
        scheduler ([`DDPMLinearScheduler`]): q(x_t | x_0), and what the network predicts.
        x_0 (`torch.Tensor`, `(batch, channels, height, width)`): Images in [-1, 1].
        t (`torch.Tensor`, `(batch,)`): Timesteps in [0, T).
        eps (`torch.Tensor`, like x_0): Noise from N(0, I).
        class_labels (`torch.Tensor`, `(batch,)`, *optional*): Labels, for a class-conditional model.
        augment_labels (`torch.Tensor`, `(batch, 9)`, *optional*): How the images were augmented, if they were.
        is_bound (`bool`): Whether the loss is L_vlb.

    Returns:
        `torch.Tensor`: `(batch,)` float32.
    """
    x_t = scheduler.add_noise(x_0, eps, t)
    augmentation = {} if augment_labels is None else {"augment_labels": augment_labels}
    output = unet(x_t, t, class_labels, return_dict=False, **augmentation)[0]
    prediction, predicted_variance = scheduler.split_variance(output.float(), x_t)
    if is_bound:
        return len(scheduler) * bound_at(scheduler, x_0, x_t, t, prediction, predicted_variance)
    match scheduler.config.prediction_type:
        case "epsilon":
            target = eps
        case "sample":
            target = x_0
        case "v_prediction":
            target = scheduler.get_velocity(x_0, eps, t)
    losses = F.mse_loss(prediction, target, reduction="none").mean((1, 2, 3))
    if predicted_variance is not None:
        # The bound is noisy. So the mean is trained by L_simple alone, and the bound gives it no gradient.
        bound = bound_at(scheduler, x_0, x_t, t, prediction.detach(), predicted_variance)
        losses = losses + VLB_WEIGHT * len(scheduler) * bound
    return losses


def bound_at(
    scheduler: DDPMLinearScheduler,
    x_0: torch.Tensor,
    x_t: torch.Tensor,
    t: torch.Tensor,
    prediction: torch.Tensor,
    predicted_variance: torch.Tensor | None,
) -> torch.Tensor:
    """Return the term of the variational bound at t (eq. 5) of each image.

    Args:
        scheduler ([`DDPMLinearScheduler`]): What the network predicts, and the variance.
        x_0, x_t (`torch.Tensor`, `(batch, channels, height, width)`): Images in [-1, 1], and their noisy form.
        t (`torch.Tensor`, `(batch,)`): Timesteps in [0, T).
        prediction (`torch.Tensor`, like x_0): The network's output, or its first half, float32.
        predicted_variance (`torch.Tensor`, like x_0, *optional*): The second half, if the variance is learned.

    Returns:
        `torch.Tensor`: `(batch,)` in bits per dimension.
    """
    steps = t.view(-1, 1, 1, 1)
    mean, variance = scheduler.posterior_mean_variance(x_0, x_t, t)
    model_mean, _ = scheduler.posterior_mean_variance(scheduler.predict_x_0(prediction, t, x_t), x_t, t)
    log_variance = log_variances(scheduler, steps, predicted_variance, x_0.dtype)
    nats = normal_kl(mean, variance.log(), model_mean, log_variance)  # of t > 0
    nats = torch.where(steps == 0, -_log_probability(x_0, model_mean, log_variance), nats)
    return nats.mean((1, 2, 3)) / math.log(2)


def _log_probability(x_0: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return the log of the probability of the pixels' bins (eq. 13), with a finite gradient in float32.

    A bin has at least the probability 1e-12, and below that no gradient. The evaluation's
    [`~ddpm_hf.evaluation.likelihood.log_probability_of_pixels`] has no such bound.
    """
    half, sigma = 1 / 255, (0.5 * log_variance).exp()
    below = torch.special.ndtr((x_0 - half - mean) / sigma).masked_fill(x_0 < -1 + half, 0.0)
    up_to = torch.special.ndtr((x_0 + half - mean) / sigma).masked_fill(x_0 > 1 - half, 1.0)
    return (up_to - below).clamp(min=1e-12).log()


def loss_weights(scheduler: DDPMLinearScheduler, config: TrainingConfig) -> torch.Tensor:
    """Return what the loss at each timestep is multiplied with.

    `"simple"` is the paper's choice, 1. `"min_snr"` (Hang et al. 2023, arXiv 2303.09556) weighs the error of x_0 with
    `min(SNR_t, gamma)`, where `SNR_t = alpha_bar_t / (1 - alpha_bar_t)`, whatever the network predicts. `"vlb"` is
    another loss, with the weight 1; see [`denoising_loss`].

    Args:
        scheduler ([`DDPMLinearScheduler`]): alpha_bar, and what the network predicts.
        config ([`TrainingConfig`]): `loss_weighting` and `snr_gamma` are read.

    Returns:
        `torch.Tensor`: `(T,)` float32.
    """
    alpha_bar = scheduler.alphas_cumprod.clamp(min=ALPHA_BAR_MIN)
    if config.loss_weighting in ("simple", "vlb"):
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    # |x_0 - x_0'|^2 is |eps - eps'|^2 / SNR, and |v - v'|^2 / (SNR + 1).
    errors_per_x_0 = {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": snr + 1}
    return snr.clamp(max=config.snr_gamma) / errors_per_x_0[scheduler.config.prediction_type]


def timestep_weights(scheduler: DDPMLinearScheduler, config: TrainingConfig) -> torch.Tensor:
    """Return how often each timestep is trained, in proportion.

    `"uniform"` is the paper's choice (Algorithm 1). `"lognormal"` makes the logarithm of the noise level normal, as in
    Karras et al. 2022 (arXiv 2206.00364, table 1), with `sigma_t = sqrt(1 / alpha_bar_t - 1)`: then a short training is
    spent where it pays, and not on images that are almost clean or almost pure noise. `"loss_second_moment"` begins
    like `"uniform"`, until [`~ddpm_hf.training.loss_history.LossHistory`] is full. A student is trained at its own
    timesteps only.

    Args:
        scheduler ([`DDPMLinearScheduler`]): alpha_bar.
        config ([`TrainingConfig`]): `timestep_sampling`, `lognormal_mean` and `lognormal_std` are read.

    Returns:
        `torch.Tensor`: `(T,)` float64, not normalised.
    """
    alpha_bar = scheduler.alphas_cumprod.double().clamp(min=ALPHA_BAR_MIN)
    if config.distill_steps:
        return torch.zeros_like(alpha_bar).index_fill(0, student_timesteps(config), 1)
    if config.timestep_sampling in ("uniform", "loss_second_moment"):
        return torch.ones_like(alpha_bar)
    log_sigma = (1 / alpha_bar - 1).log() / 2
    z = (log_sigma - config.lognormal_mean) / config.lognormal_std
    return torch.exp(-(z**2) / 2) * torch.gradient(log_sigma)[0]  # the density of log_sigma, turned into one of t


def check_levels(config: TrainingConfig, form: PixelFormat):
    """Raise a ValueError if the loss is a likelihood that pixels of this form do not have."""
    if config.loss_weighting == "vlb" and not form.has_256_levels:
        raise ValueError(
            f"--loss_weighting vlb is the likelihood of pictures of 256 levels, and these have {form.describe()}; "
            "leave it out."
        )


def student_timesteps(config: TrainingConfig) -> torch.Tensor:
    """Return the timesteps at which a student of `distill_steps` steps is called, `(N,)`, ascending.

    They are those of `timestep_spacing="trailing"` (arXiv 2305.08891, table 2), T k / N - 1 for k = 1, ..., N.
    """
    T, N = config.ddpm_num_steps, config.distill_steps
    assert N is not None
    return (T - torch.arange(N, dtype=torch.float64) * T / N).round().long().flip(0) - 1
