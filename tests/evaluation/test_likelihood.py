"""Bits per dimension, against closed forms for Gaussian data and against a plain loop in NumPy."""

import math

import numpy as np
import pytest
import torch
from oracles import GaussianDenoiser, gaussian_variance
from scipy.stats import norm

from ddpm_hf import DDPMLinearScheduler, DDPMUNetModel
from ddpm_hf.evaluation.likelihood import log_probability_of_pixels, step_bits, variational_bound
from ddpm_hf.images.batches import seed_of

T, MEAN, STD = 1000, 0.3, 0.2
BETA = np.linspace(1e-4, 0.02, T)
ALPHA_BAR = np.cumprod(1 - BETA)
ALPHA_BAR_BEFORE = np.concatenate(([1.0], ALPHA_BAR[:-1]))
BETA_TILDE = BETA * (1 - ALPHA_BAR_BEFORE) / (1 - ALPHA_BAR)


def gaussian_images(count, size=16):
    """Return uint8 images `(count, size, size, 1)` whose pixels are N(MEAN, STD^2) in [-1, 1], up to rounding."""
    x_0 = MEAN + STD * np.random.default_rng(0).standard_normal((count, size, size, 1))
    return np.clip(np.round((x_0 + 1) * 127.5), 1, 254).astype(np.uint8)  # inner levels have equal bins


def measured(images, unet=None, K=T, batch_size=500, seed=0, **options):
    scheduler = DDPMLinearScheduler(**{"clip_sample": False, **options})
    return variational_bound(unet or GaussianDenoiser(), scheduler, images, range(len(images)), K, batch_size, seed)


def expected_terms(images, variance_type):
    """Return prior, terms `(N, T)` and squared errors of the exact denoiser in closed form, averaged over eps.

    The denoiser's error in x_0 is (1 - k sqrt(a)) (x_0 - m) - k sqrt(1 - a) eps, with k the regression of x_0 on x_t.
    """
    x_0 = images.reshape(len(images), 1, -1) / 127.5 - 1  # (N, 1, D)
    a = ALPHA_BAR[:, None]  # (T, 1)
    k = np.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)
    squared_error = (1 - k * np.sqrt(a)) ** 2 * (x_0 - MEAN) ** 2 + k**2 * (1 - a)  # (N, T, D)
    sigma_2 = (BETA_TILDE if variance_type == "fixed_small" else BETA)[1:, None]
    coefficient = (np.sqrt(ALPHA_BAR_BEFORE) * BETA / (1 - ALPHA_BAR))[1:, None]
    ratio = BETA_TILDE[1:, None] / sigma_2
    terms = 0.5 * (ratio - 1 - np.log(ratio) + coefficient**2 * squared_error[:, 1:] / sigma_2)

    # The decoder: Gauss-Hermite quadrature over the eps of x_1.
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    pixel = x_0[..., None]  # (N, 1, D, 1)
    predicted = MEAN + k[0] * (np.sqrt(a[0]) * (pixel - MEAN) + np.sqrt(1 - a[0]) * nodes)
    sigma = np.sqrt(BETA_TILDE[1])
    decoder = -(np.log(bin_mass(pixel, predicted, sigma)) * weights).sum(-1) / weights.sum()  # (N, 1, D)

    a = ALPHA_BAR[-1]
    prior = 0.5 * (a * x_0**2 + (1 - a) - 1 - np.log(1 - a))
    bits = np.concatenate((decoder, terms), axis=1).mean(-1) / math.log(2)
    return prior.mean((1, 2)) / math.log(2), bits, squared_error.mean(-1) * 127.5**2


def bin_mass(x, mean, sigma):
    """Return the probability of the bin of a level x in (-1, 1), from the tail in which the difference is exact."""
    low, high = (x - 1 / 255 - mean) / sigma, (x + 1 / 255 - mean) / sigma
    return np.where(low > 0, norm.sf(low) - norm.sf(high), norm.cdf(high) - norm.cdf(low))


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_bound_equals_the_closed_form_on_gaussian_data(variance_type):
    images = gaussian_images(4)
    bound = measured(images, variance_type=variance_type)
    prior, bits, squared_errors = expected_terms(images, variance_type)
    np.testing.assert_allclose(bound.prior, prior, rtol=1e-10)
    # The tolerances cover the noise of eps: a term averages over 1,024 pixels, and the sum has 1,000 such terms.
    np.testing.assert_allclose(bound.bits[:, 1:].mean(0), bits[:, 1:].mean(0), rtol=0.25)
    np.testing.assert_allclose(bound.bits[:, 1:].sum(), bits[:, 1:].sum(), rtol=0.005)
    np.testing.assert_allclose(bound.bits[:, 0].mean(), bits[:, 0].mean(), atol=0.2)
    np.testing.assert_allclose(bound.squared_errors.mean(), squared_errors.mean(), rtol=0.005)

    summary, curve = bound.summary(), bound.progressive()
    assert summary["value"] == pytest.approx(prior.mean() + bits.sum(1).mean(), abs=0.2)
    assert summary["rate"] == pytest.approx(summary["prior"] + summary["diffusion"])
    assert summary["value"] == pytest.approx(summary["rate"] + summary["distortion"])
    assert summary["exact_over_timesteps"] is True
    assert [curve[0]["t"], curve[-1]["t"]] == [T - 1, 0]
    assert curve[0]["rate"] == pytest.approx(prior.mean())
    assert curve[-1]["rate"] == pytest.approx(summary["rate"])
    assert curve[-1]["rmse"] == pytest.approx(summary["rmse"])
    assert curve[500]["rmse"] == pytest.approx(math.sqrt(squared_errors[:, 499].mean()), rel=0.1)


def test_decoder_equals_the_closed_form_on_gaussian_data():
    images = gaussian_images(16, size=64)
    bound = measured(images, K=2, batch_size=8)
    np.testing.assert_allclose(
        bound.bits[:, 0].mean(), expected_terms(images, "fixed_small")[1][:, 0].mean(), atol=0.02
    )
    assert bound.summary()["rmse"] == pytest.approx(127.5 * math.sqrt(1e-4 / (1 + 1e-4 / STD**2)), rel=0.01)


def test_the_bound_is_above_the_true_entropy():
    """The gap is some tenths of a bit. The denoiser is exact, but fixed variances are too small for the last steps."""
    images = gaussian_images(4)
    x_0 = images / 127.5 - 1
    true = -np.log2(norm.cdf((x_0 + 1 / 255 - MEAN) / STD) - norm.cdf((x_0 - 1 / 255 - MEAN) / STD)).mean()
    assert true + 0.2 < measured(images).summary()["value"] < true + 1


class WithVariance(GaussianDenoiser):
    """The exact denoiser of a network that predicts the true variance, too."""

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        output = super().forward(sample, timestep, class_labels, return_dict)
        variance = gaussian_variance(self)[timestep].view(-1, 1, 1, 1).expand(sample.shape)
        if self.config.variance_type == "learned_range":
            beta, beta_tilde = (torch.from_numpy(table)[timestep].view(-1, 1, 1, 1) for table in (BETA, BETA_TILDE))
            beta_tilde = beta_tilde.clamp(min=BETA_TILDE[1])
            variance = 2 * (variance / beta_tilde).log() / (beta / beta_tilde).log() - 1
        output.sample = torch.cat((output.sample, variance.to(sample.dtype)), dim=1)
        return output


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_with_the_true_variance_the_bound_is_the_entropy(variance_type):
    """Then p is the true reverse process, so that nothing is lost but what float32 rounds in the network's type."""
    unet = WithVariance().double()
    unet.register_to_config(variance_type=variance_type)
    images = gaussian_images(4)
    x_0 = images / 127.5 - 1
    true = -np.log2(norm.cdf((x_0 + 1 / 255 - MEAN) / STD) - norm.cdf((x_0 - 1 / 255 - MEAN) / STD)).mean()
    learned = measured(images, unet, variance_type=variance_type).summary()["value"]
    assert learned == pytest.approx(true, abs=0.02)


@pytest.mark.parametrize("K", [8, 100])
def test_stratified_estimate_is_unbiased(K):
    images = np.repeat(gaussian_images(1), 200, axis=0)  # equal images: only the estimate varies
    exact = measured(images[:4]).summary()
    some = measured(images, K=K).summary()
    tolerance = 4 * math.hypot(some["standard_error"], exact["standard_error"])
    assert some["value"] == pytest.approx(exact["value"], abs=tolerance)
    assert some["diffusion"] == pytest.approx(exact["diffusion"], abs=tolerance)
    assert some["standard_error"] < {8: 0.1, 100: 0.03}[K]
    assert (some["timesteps_per_image"], some["exact_over_timesteps"]) == (K, False)


def test_numbers_of_an_image_depend_on_the_seed_and_its_index_alone():
    images = gaussian_images(5, size=4)
    options = {"unet": GaussianDenoiser(), "K": 10}
    whole = measured(images, batch_size=50, **options)
    np.testing.assert_allclose(measured(images, batch_size=3, **options).bits, whole.bits, rtol=1e-12)
    scheduler = DDPMLinearScheduler(clip_sample=False)
    one = variational_bound(options["unet"], scheduler, images, [3], 10, 4, 0)
    np.testing.assert_allclose(one.bits[0], whole.bits[3], rtol=1e-12)
    assert one.summary()["standard_error"] is None
    assert not np.allclose(measured(images, seed=1, **options).bits, whole.bits, rtol=1e-3)
    # The exact sum uses the same noise at the timesteps of the estimate.
    assert np.isin(np.float32(whole.squared_errors), np.float32(measured(images, options["unet"]).squared_errors)).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_bound_equals_a_plain_loop(prediction_type, variance_type, clip_sample):
    """The paper's formulas in NumPy, one timestep after the other, for a network with random weights."""
    config = {"num_train_timesteps": 20, "beta_end": 0.3, "clip_sample": clip_sample}
    unet = DDPMUNetModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], add_attention=False,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(unet.conv_out.weight, std=0.5)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    images[0, :2] = 0
    images[0, 2:4] = 255
    scheduler = DDPMLinearScheduler(prediction_type=prediction_type, variance_type=variance_type, **config)
    bound = variational_bound(unet, scheduler, images, [0, 1], 20, 7, 5)

    beta = np.linspace(1e-4, 0.3, 20)
    a = np.cumprod(1 - beta)
    tilde = beta[1:] * (1 - a[:-1]) / (1 - a[1:])
    for n, image in enumerate(images):
        x_0 = (image.astype(np.float64) / 127.5 - 1).transpose(2, 0, 1)
        total = (0.5 * (a[-1] * x_0**2 + 1 - a[-1] - 1 - np.log(1 - a[-1]))).mean()
        for t in range(20):
            generator = torch.Generator().manual_seed(seed_of(5, f"noise at {t}", n))
            x_t = np.sqrt(a[t]) * x_0 + np.sqrt(1 - a[t]) * torch.randn(x_0.shape, generator=generator).numpy()
            with torch.no_grad():
                output = unet(torch.tensor(x_t, dtype=torch.float32)[None], t).sample[0].double().numpy()
            if prediction_type == "epsilon":
                guess = (x_t - np.sqrt(1 - a[t]) * output) / np.sqrt(a[t])
            elif prediction_type == "sample":
                guess = output
            else:
                guess = np.sqrt(a[t]) * x_t - np.sqrt(1 - a[t]) * output
            if clip_sample:
                guess = guess.clip(-1, 1)
            if t == 0:
                total -= log_mass(x_0, guess, np.sqrt(tilde[0])).mean()
            else:
                sigma_2 = tilde[t - 1] if variance_type == "fixed_small" else beta[t]
                distance = (np.sqrt(a[t - 1]) * beta[t] / (1 - a[t]) * (x_0 - guess)) ** 2
                ratio = tilde[t - 1] / sigma_2
                total += (0.5 * (ratio - 1 - np.log(ratio) + distance / sigma_2)).mean()
        assert bound.prior[n] + bound.bits[n].sum() == pytest.approx(total / math.log(2), rel=1e-6)


def log_mass(x, mean, sigma):
    """Return the log probability of the bin of a level x in [-1, 1], open at the edges, from the exact tail."""
    low = np.where(x < -0.999, -np.inf, (x - 1 / 255 - mean) / sigma)
    high = np.where(x > 0.999, np.inf, (x + 1 / 255 - mean) / sigma)
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    return norm.logcdf(high) + np.log1p(-np.exp(norm.logcdf(low) - norm.logcdf(high)))


@pytest.mark.parametrize("sigma", [1e-3, 7e-3, 0.1, 3.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, 0.0, 0.7, 1.0])
def test_decoder_is_a_distribution_over_the_256_levels(sigma, mean):
    levels = torch.arange(256)
    log_variance = torch.tensor(2 * math.log(sigma), dtype=torch.float64)
    log_mass = log_probability_of_pixels(levels, torch.tensor(mean, dtype=torch.float64), log_variance)
    assert log_mass.isfinite().all()
    assert log_mass.exp().sum().item() == pytest.approx(1, abs=1e-12)
    # In the far tail, the log mass is that of the density at the nearer edge: -z^2 / 2, up to lower orders.
    z = ((levels / 127.5 - 1 - mean).abs() - 1 / 255) / sigma
    far = (z > 30) & (levels > 0) & (levels < 255)
    torch.testing.assert_close(log_mass[far] / (-0.5 * z[far] ** 2), torch.ones(far.sum()).double(), rtol=0.02, atol=0)


def test_the_decoder_of_others():
    """As improved-diffusion writes it: differences of an approximate distribution function, at least 1e-12."""
    pixels, mean = torch.arange(256), torch.linspace(-1.1, 1.1, 256, dtype=torch.float64)
    x, sigma = pixels.double() / 127.5 - 1, 0.01

    def cdf(z):
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    below, up_to = cdf((x - 1 / 255 - mean) / sigma), cdf((x + 1 / 255 - mean) / sigma)
    below[0], up_to[-1] = 0, 1
    expected = (up_to - below).clamp(min=1e-12).log()
    log_variance = torch.tensor(2 * math.log(sigma), dtype=torch.float64)
    found = log_probability_of_pixels(pixels, mean, log_variance, "tanh")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)  # their differences cancel
    assert (found == math.log(1e-12)).any()
    exact = log_probability_of_pixels(pixels, mean, log_variance)
    assert 1e-5 < (found - exact)[expected > -3].abs().max() < 0.02


def test_refuses_what_it_cannot_measure():
    images = gaussian_images(1, size=4)
    with pytest.raises(ValueError, match=r"variance_type='learned_range'`, expected \(\d+, 2, 4, 4\)"):
        measured(images, variance_type="learned_range")
    for K in (1, 1001):
        with pytest.raises(ValueError, match=f"--bpd_timesteps {K}: expected 2 to 1000"):
            measured(images, K=K)


def test_network_computes_in_its_own_type():
    unet = GaussianDenoiser()
    pixels, t = torch.from_numpy(gaussian_images(2)).permute(0, 3, 1, 2), torch.tensor([0, 500])
    eps = torch.randn(pixels.shape)
    exact, _ = step_bits(unet, DDPMLinearScheduler(), pixels, t, eps)
    unet.anchor.data = unet.anchor.data.bfloat16()
    bits, errors = step_bits(unet, DDPMLinearScheduler(), pixels, t, eps)
    assert bits.dtype == errors.dtype == torch.float64
    assert bits[1].item() == pytest.approx(exact[1].item(), rel=0.3)
    assert bits[1] != exact[1]
