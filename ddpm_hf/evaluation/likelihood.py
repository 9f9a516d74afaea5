"""Bits per dimension: the variational bound of Ho et al. 2020 (sections 2, 3.1 to 3.4), term by term.

The bound is a sum (eq. 5): -log p(x_0) <= L_T + sum_t L_{t-1} + L_0. Each term is a cost in a code for the image: L_T
that of x_T, L_{t-1} that of x_{t-1} if x_t is known, and L_0 that of the pixels if x_1 is known (the discretised
decoder, eq. 13). The code counts timesteps from 0. So its term at t > 0 is the cost of the step from t to t-1, its term
at t = 0 is the paper's L_0, and `prior` is L_T.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from tqdm.auto import tqdm

from ddpm_hf.evaluation.image_sets import ImageSet
from ddpm_hf.images.batches import seed_of
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler
from ddpm_hf.variational import log_variances, normal_kl


def _log_tanh_cdf(z: torch.Tensor) -> torch.Tensor:
    """Return the log of (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2, which approximates Phi."""
    return F.logsigmoid(math.sqrt(8 / math.pi) * (z + 0.044715 * z**3))


# The logarithm of the distribution function N(0, 1), and the least probability of a bin.
DECODERS = {"exact": (torch.special.log_ndtr, 0.0), "tanh": (_log_tanh_cdf, 1e-12)}


def log_probability_of_pixels(
    pixels: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor, decoder: str = "exact"
) -> torch.Tensor:
    """Return the log of the probability that N(mean, variance) gives to the pixels' bins (eq. 13), in nats.

    The bin of a level x in {-1, -1 + 2/255, ..., 1} is x +- 1/255. The bins of the darkest and the brightest level are
    open to one side.

    Args:
        pixels (`torch.Tensor`): Levels 0 to 255, of any type.
        mean, log_variance (`torch.Tensor`, float64): Of the shape of `pixels`, or broadcast to it.
        decoder (`str`): `"exact"`, or `"tanh"` for an approximation that is common in the code of others, with
            probabilities of at least 1e-12.

    Returns:
        `torch.Tensor`: float64, of the shape of `pixels`.
    """
    log_cdf, least = DECODERS[decoder]
    x, half, sigma = pixels.double() / 127.5 - 1, 1 / 255, (0.5 * log_variance).exp()
    low = torch.where(pixels == 0, -math.inf, (x - half - mean) / sigma)
    high = torch.where(pixels == 255, math.inf, (x + half - mean) / sigma)
    # In the upper tail, Phi is 1 to all digits, so bins there are mirrored into the lower tail. The difference is
    # log(Phi(high) - Phi(low)) = log Phi(high) + log(1 - Phi(low) / Phi(high)), without overflow or cancellation.
    low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
    log_high = log_cdf(high)
    log_probability = log_high + (-torch.expm1(log_cdf(low) - log_high)).log()
    return log_probability.clamp(min=math.log(least)) if least else log_probability


def prior_bits(scheduler: DDPMLinearScheduler, pixels: torch.Tensor) -> torch.Tensor:
    """Return L_T = KL(q(x_T | x_0) || N(0, I)) of images `(batch, C, H, W)`: bits per dimension, `(batch,)` float64."""
    x_0 = pixels.double() / 127.5 - 1
    last = len(scheduler) - 1
    mean = scheduler.add_noise(x_0, torch.zeros_like(x_0), last)  # sqrt(alpha_bar_T) x_0
    deviation = scheduler.add_noise(torch.zeros_like(x_0), torch.ones_like(x_0), last)  # sqrt(1 - alpha_bar_T)
    zero = torch.zeros_like(x_0)
    return normal_kl(mean, 2 * deviation.log(), zero, zero).flatten(1).mean(1) / math.log(2)


@torch.no_grad()
def step_bits(
    unet: ModelMixin,
    scheduler: DDPMLinearScheduler,
    pixels: torch.Tensor,
    t: torch.Tensor,
    eps: torch.Tensor,
    decoder: str = "exact",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one term of the bound for each image, each at its own timestep and noise.

    The network computes in its own type, on its device. Everything else is computed in float64 on the CPU, since some
    devices know no float64.

    Args:
        unet ([`DDPMUNetModel`] or another model of diffusers): Predicts what `scheduler.config.prediction_type` says.
        scheduler ([`DDPMLinearScheduler`]): The scheduler, without a call of `set_timesteps`: it has all T timesteps.
        pixels (`torch.Tensor`, `(batch, C, H, W)`): Levels 0 to 255.
        t (`torch.Tensor`, `(batch,)`): Timesteps in [0, T).
        eps (`torch.Tensor`, of the shape of `pixels`, floating-point): Noise ~ N(0, I).
        decoder (`str`): See [`log_probability_of_pixels`].

    Returns:
        `tuple`: The term in bits per dimension, and the mean squared error of the predicted x_0 on the scale 0 to 255;
        both `(batch,)` float64.
    """
    x_0 = pixels.double() / 127.5 - 1

    # 1. x_t ~ q(x_t | x_0) (eq. 4), and the x_0 that the network predicts from it (eq. 15), clipped as in sampling.
    x_t = scheduler.add_noise(x_0, eps.double(), t)
    output = unet(x_t.to(unet.device, unet.dtype), t.to(unet.device)).sample.cpu().double()
    output, predicted_variance = scheduler.split_variance(output, x_t)
    predicted = scheduler.clip_x_0(scheduler.predict_x_0(output, t, x_t))

    # 2. The posterior with the true x_0, and the mean with the predicted one (eqs. 6-7). sigma_t^2 is p's variance.
    mean, variance = scheduler.posterior_mean_variance(x_0, x_t, t)
    model_mean, _ = scheduler.posterior_mean_variance(predicted, x_t, t)
    log_variance = log_variances(scheduler, t.view(-1, 1, 1, 1), predicted_variance, torch.float64)

    # 3. KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, and the decoder, -log p(x_0 | x_1), for t = 0.
    nats = normal_kl(mean, variance.log(), model_mean, log_variance)
    first = t == 0
    nats[first] = -log_probability_of_pixels(pixels[first], model_mean[first], log_variance[first], decoder)
    squared_error = (127.5 * (predicted - x_0)) ** 2
    return nats.flatten(1).mean(1) / math.log(2), squared_error.flatten(1).mean(1)


@dataclass
class Bound:
    """The terms of the bound for some images, in bits per dimension; float64.

    Args:
        prior (`numpy.ndarray`, `(N,)`): L_T of each image.
        bits (`numpy.ndarray`, `(N, K)`): The terms at K timesteps, each times the number of timesteps it stands for.
            The first is t = 0.
        squared_errors (`numpy.ndarray`, `(N, K)`): Mean squared errors of the predicted x_0 there, on the scale 0 to
            255.
        num_timesteps (`int`): T. If K = T, sums over the terms are exact.
    """

    prior: np.ndarray
    bits: np.ndarray
    squared_errors: np.ndarray
    num_timesteps: int

    def summary(self) -> dict:
        """Return the bound, its standard error over the images, its terms, and its rate and distortion (section 4.3).

        A lossless code spends `rate` bits on x_1 and `distortion` bits on the rest. With the rate alone, the pixels are
        known up to an error of `rmse` on the scale 0 to 255.
        """
        totals = self.prior + self.bits.sum(1)
        n, k = self.bits.shape
        decoder = self.bits[:, 0].mean()
        return {
            "value": totals.mean(),
            "standard_error": totals.std(ddof=1) / math.sqrt(n) if n > 1 else None,
            "prior": self.prior.mean(),
            "diffusion": self.bits[:, 1:].sum(1).mean(),
            "decoder": decoder,
            "rate": totals.mean() - decoder,
            "distortion": decoder,
            "rmse": math.sqrt(self.squared_errors[:, 0].mean()),
            "images": n,
            "timesteps_per_image": k,
            "exact_over_timesteps": k == self.num_timesteps,
        }

    def progressive(self) -> list[dict]:
        """Return rate and distortion along the reverse process, from t = T - 1 to 0 (section 4.3, fig. 5).

        `rate` is the cost of x_t in bits per dimension, and `rmse` is the error of the x_0 predicted from it. K has to
        be T.
        """
        assert self.bits.shape[1] == self.num_timesteps
        terms = self.bits.mean(0)[::-1]  # (T,), from T - 1 to 0
        rates = self.prior.mean() + np.concatenate(([0.0], terms[:-1].cumsum()))
        rmses = np.sqrt(self.squared_errors.mean(0))[::-1]
        return [
            {"t": self.num_timesteps - 1 - i, "rate": rate, "rmse": rmse}
            for i, (rate, rmse) in enumerate(zip(rates.tolist(), rmses.tolist()))
        ]


def variational_bound(
    unet: ModelMixin,
    scheduler: DDPMLinearScheduler,
    images: ImageSet,
    indices: Sequence[int],
    num_timesteps: int,
    batch_size: int,
    seed: int,
    show_progress: bool = False,
    decoder: str = "exact",
) -> Bound:
    """Return the bound for some images of a set. The numbers of an image depend only on the seed and its index.

    t = 0 is always used. The other timesteps are cut into K - 1 stretches, and one timestep is drawn from each. Its
    weight is the length of the stretch, so the sum over t is unbiased.

    Args:
        unet, scheduler: See [`step_bits`].
        images ([`ImageSet`]): Images. If a side is longer, its centre is used.
        indices (`Sequence[int]`): Which images to measure.
        num_timesteps (`int`): K, from 2 to T.
        batch_size (`int`): Number of pairs of an image and a timestep that the network computes at once.
        seed (`int`): Seed of timesteps and noise.
        show_progress (`bool`): Whether to show a progress bar.
        decoder (`str`): See [`log_probability_of_pixels`].

    Returns:
        [`Bound`]: The bound for the images, in the order of `indices`.

    Raises:
        ValueError: If there are fewer than two or more than T timesteps.
    """
    T, N, K = len(scheduler), len(indices), num_timesteps
    if not 2 <= K <= T:
        raise ValueError(f"--bpd_timesteps {K}: expected 2 to {T}, the number of timesteps of the model.")
    edges = _stretches(T, K)
    weights = np.concatenate(([1], np.diff(edges)))
    timesteps = np.zeros((N, K), dtype=np.int64)
    for row, index in zip(timesteps, indices):
        u = np.random.default_rng(seed_of(seed, "strata", index)).random(K - 1)
        row[1:] = edges[:-1] + np.floor(u * np.diff(edges))

    prior, bits, squared_errors = np.zeros(N), np.zeros((N, K)), np.zeros((N, K))
    progress = tqdm(total=N * K, desc="Bits per dimension", unit="term", disable=not show_progress)
    for start in range(0, N * K, batch_size):
        n, k = np.divmod(np.arange(start, min(start + batch_size, N * K)), K)  # rows and columns of the terms
        chosen = {i: torch.from_numpy(images[indices[i]].copy()) for i in set(n.tolist())}
        pixels = torch.stack([chosen[i] for i in n.tolist()]).permute(0, 3, 1, 2)  # (B, C, H, W) uint8
        t = torch.from_numpy(timesteps[n, k])
        eps = torch.stack([_noise(seed, indices[i], int(s), x.shape) for i, s, x in zip(n.tolist(), t, pixels)])
        terms, errors = step_bits(unet, scheduler, pixels, t, eps, decoder)
        bits[n, k], squared_errors[n, k] = weights[k] * terms.numpy(), errors.numpy()
        prior[n[k == 0]] = prior_bits(scheduler, pixels[t == 0]).numpy()
        progress.update(len(n))
    progress.close()
    return Bound(prior, bits, squared_errors, T)


def _stretches(T: int, K: int) -> np.ndarray:
    """Return the K edges of K - 1 stretches of timesteps: 1, ..., T.

    The terms fall about as 1 / t. So stretches of equal length in log t add equally to the sum and to its error. Each
    holds at least one timestep. With K = T each holds exactly one, and only eps is random.
    """
    j = np.arange(K)
    return np.maximum(j + 1, np.round(T ** (j / (K - 1)))).astype(np.int64)


def _noise(seed: int, index: int, t: int, shape: torch.Size) -> torch.Tensor:
    """Return eps of an image at a timestep. It is drawn on the CPU, so that it is the same for all devices."""
    generator = torch.Generator().manual_seed(seed_of(seed, f"noise at {t}", index))
    return torch.randn(shape, generator=generator)
