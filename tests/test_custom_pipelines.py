"""The custom pipelines against denoisers with a known answer, without training."""

import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, EulerDiscreteScheduler, UNet2DModel
from oracles import GaussianDenoiser
from PIL import Image

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel

PIPELINES = Path(__file__).parent.parent / "pipelines"
sys.path.insert(0, str(PIPELINES))
import ddpm_img2img  # noqa: E402
import ddpm_inpainting  # noqa: E402
from ddpm_img2img import DDPMImg2ImgPipeline  # noqa: E402
from ddpm_inpainting import DDPMInpaintingPipeline, resampling_path  # noqa: E402
from ddpm_interpolation import DDPMInterpolationPipeline, slerp  # noqa: E402
from ddpm_inversion import DDPMInversionPipeline  # noqa: E402
from ddpm_progressive import DDPMProgressivePipeline  # noqa: E402

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind, unet=None, scheduler=None):
    """Return a pipeline without a progress bar, by default with the exact denoiser of data N(0, 0.1^2)."""
    unet = unet or GaussianDenoiser(0.0, 0.1)
    pipeline = kind(unet, scheduler or DDPMLinearScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def flat(value, size=(16, 16), mode="L"):
    """Return a picture of one colour."""
    return Image.new(mode, size, value if mode == "L" else (value,) * 3)


def centred(value):
    """Return a grey value on the scale [-1, 1]."""
    return value / 127.5 - 1


def random_picture(mode, size=(16, 16)):
    """Return a picture of any mode with random values."""
    numbers = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    if mode == "F":
        return Image.fromarray(numbers[..., 0].astype(np.float32))
    if mode[0] == "I":
        return Image.fromarray(numbers[..., 0].astype(np.uint16) * 257).convert(mode)
    picture = Image.fromarray(numbers)
    return picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)


class Recorder(GaussianDenoiser):
    """A Gaussian denoiser that records its inputs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def forward(self, sample, timestep):
        self.calls.append((sample.clone(), int(timestep)))
        return super().forward(sample, timestep)


def reverse_step(a, b, ddim=False):
    """Return the factors of x_0 and x_t in a step from alpha_bar a to b, and the variance of its noise."""
    if ddim:
        k_t = np.sqrt((1 - b) / (1 - a))
        return np.sqrt(b) - k_t * np.sqrt(a), k_t, 0.0
    beta = 1 - a / b  # eqs. 6-7
    return np.sqrt(b) * beta / (1 - a), np.sqrt(a / b) * (1 - b) / (1 - a), (1 - b) / (1 - a) * beta


def reverse_process(timesteps, mean, std, x_mean, ddim=False):
    """Reverse the process from x_t = N(sqrt(a) x_mean, 1 - a) in closed form, for data N(mean, std^2).

    Returns the mean and the standard deviation of x_0, and its derivative by x_t.
    """
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).numpy()
    a = alpha_bar[timesteps[0]]
    x_mean, variance, gain = np.sqrt(a) * x_mean, 1 - a, 1.0
    for t, previous in zip(timesteps, [*timesteps[1:], -1]):
        a, b = alpha_bar[t], alpha_bar[previous] if previous >= 0 else 1.0
        slope = np.sqrt(a) * std**2 / (a * std**2 + 1 - a)  # E[x_0 | x_t] = mean + slope (x_t - sqrt(a) mean)
        k_0, k_t, noise = reverse_step(a, b, ddim)
        x_mean = k_0 * (mean + slope * (x_mean - np.sqrt(a) * mean)) + k_t * x_mean
        variance = (k_0 * slope + k_t) ** 2 * variance + noise
        gain *= k_0 * slope + k_t
    return x_mean, np.sqrt(variance), gain


# ---- Interpolation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "steps", "timesteps"),
    [
        (DDPMLinearScheduler, None, range(299, -1, -1)),
        (DDPMScheduler, None, range(299, -1, -1)),
        (DDIMScheduler, None, range(299, -1, -1)),
        (DDPMLinearScheduler, 10, (299, 150, 0)),  # three of ten steps
        (DDPMScheduler, 10, (299, 150, 0)),
        (DDIMScheduler, 10, (299, 199, 99)),
    ],
)
def test_frames_differ_by_lambda_alone(kind, steps, timesteps):
    """All frames share their noise. It cancels in the difference of two frames, which is known to many digits."""
    unet = Recorder(0.0, 0.1)
    pipeline = make(DDPMInterpolationPipeline, unet, kind(clip_sample=False))
    one, two = 110, 140
    frames = pipeline(
        flat(one), flat(two), 4, timestep=300, generator=seeded(), num_inference_steps=steps, output_type="pt"
    ).images
    assert [t for _, t in unet.calls] == list(timesteps)  # 300 noising steps are x_t of t = 299

    step = (centred(two) - centred(one)) / 3
    alpha_bar = unet.alpha_bar[299].item()
    x_t = unet.calls[0][0]
    np.testing.assert_allclose(x_t.diff(dim=0), np.sqrt(alpha_bar) * step, rtol=0, atol=1e-6)
    assert (x_t[0] - np.sqrt(alpha_bar) * centred(one)).std().item() == pytest.approx(np.sqrt(1 - alpha_bar), rel=0.1)

    gain = reverse_process(list(timesteps), 0.0, 0.1, 0.0, ddim=kind is DDIMScheduler)[2]
    differences = (frames * 2 - 1).diff(dim=0)
    np.testing.assert_allclose(differences, gain * np.sqrt(alpha_bar) * step, rtol=0, atol=2e-6)
    assert abs(gain * np.sqrt(alpha_bar) * step) > 1e-4


@pytest.mark.parametrize("share", [True, False])
def test_moments_of_frames(share):
    unet = GaussianDenoiser(0.1, 0.2, sample_size=64)
    pipeline = make(DDPMInterpolationPipeline, unet)
    one, two = flat(90, (64, 64)), flat(200, (64, 64))
    frames = pipeline(one, two, 3, 100, "linear", share, seeded(), output_type="pt").images * 2 - 1
    for frame, weight in zip(frames, (0, 0.5, 1)):
        x_0 = (1 - weight) * centred(90) + weight * centred(200)
        mean, std, _ = reverse_process(list(range(99, -1, -1)), 0.1, 0.2, x_0)
        assert frame.mean().item() == pytest.approx(mean, abs=0.01)  # of 4,096 pixels
        assert frame.std().item() == pytest.approx(std, abs=0.01)
    spread = (frames[1] - frames[0]).std().item()
    assert spread < 1e-5 if share else spread > 0.05


@pytest.mark.parametrize("mixing", ["linear", "slerp"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_no_noising_steps_give_the_pictures(mode, mixing):
    unet = GaussianDenoiser(in_channels=len(mode) if mode == "RGB" else 1)
    one, two = random_picture(mode), random_picture(mode).transpose(Image.Transpose.ROTATE_90)
    frames = make(DDPMInterpolationPipeline, unet)(one, two, 3, timestep=0, mixing=mixing).images
    assert [frame.mode for frame in frames] == [mode] * 3
    np.testing.assert_array_equal(frames[0], one)
    np.testing.assert_array_equal(frames[2], two)
    if mixing == "linear":
        np.testing.assert_allclose(frames[1], (np.float64(one) + np.float64(two)) / 2, rtol=0, atol=0.51)


def test_slerp():
    a, b = torch.zeros(2, 1, 1, 2, 2).unbind()
    a[..., 0, 0], b[..., 1, 1] = 2, 2
    weights = torch.tensor([0, 1 / 3, 1]).view(-1, 1, 1, 1)
    mixed = slerp(a, b, weights)
    expected = [[2, 0], [2 * np.cos(np.pi / 6), 2 * np.sin(np.pi / 6)], [0, 2]]
    np.testing.assert_allclose(mixed.flatten(1)[:, [0, 3]], expected, atol=1e-6)
    np.testing.assert_allclose(slerp(a, 3 * a, weights)[:, 0, 0, 0], [2, 10 / 3, 6], rtol=1e-6)

    pipeline = make(DDPMInterpolationPipeline)
    frames = [
        pipeline(flat(90), flat(160), 3, 300, mixing, generator=seeded(), num_inference_steps=50, output_type="np")
        for mixing in ("linear", "slerp")
    ]
    np.testing.assert_allclose(frames[0].images[[0, 2]], frames[1].images[[0, 2]], atol=1e-5)
    assert np.abs(frames[0].images[1] - frames[1].images[1]).max() > 1e-4


# ---- Inpainting -----------------------------------------------------------------------------------------------------


def half_mask(size=(16, 16)):
    """Return a mask whose right half is white, to paint."""
    mask = Image.new("L", size)
    mask.paste(255, (size[0] // 2, 0, *size))
    return mask


class PairedDenoiser(GaussianDenoiser):
    """The exact denoiser of data N(0, std^2) whose right half has correlation rho with the left half.

    Their sum and difference, over sqrt(2), are independent, with variances std^2 (1 + rho) and std^2 (1 - rho).
    """

    rho = 0.8

    def forward(self, sample, timestep):
        a = self.alpha_bar[int(timestep)].float()
        left, right = sample.chunk(2, dim=-1)
        eps = []
        for x, share in (((left + right) / 2**0.5, 1 + self.rho), ((left - right) / 2**0.5, 1 - self.rho)):
            eps.append((1 - a).sqrt() * x / (a * self.config.std**2 * share + 1 - a))
        return SimpleNamespace(sample=torch.cat(((eps[0] + eps[1]) / 2**0.5, (eps[0] - eps[1]) / 2**0.5), dim=-1))


def repaint(ascending, x_0, jump_length, num_resamples, mean, std, rho, ddim=False):
    """Return mean and deviation of the right one of two pixels after RePaint in closed form; the left one is x_0.

    Every step is affine with Gaussian noise, so the mean and the covariance of the pair follow from step to step.
    """
    table = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0).numpy()
    alpha_bar = [1.0, *table[list(ascending)]]
    data = std**2 * np.array([[1, rho], [rho, 1]])
    m, C, unit = np.zeros(2), np.eye(2), np.eye(2)
    for level, following in resampling_path(len(ascending), jump_length, num_resamples):
        a, b = alpha_bar[level], alpha_bar[following]
        if following > level:
            m, C = np.sqrt(b / a) * m, b / a * C + (1 - b / a) * unit
            continue
        slope = np.sqrt(a) * data @ np.linalg.inv(a * data + (1 - a) * unit)
        k_0, k_t, noise = reverse_step(a, b, ddim)
        linear = k_0 * slope + k_t * unit
        m, C = k_0 * mean * (1 - np.sqrt(a) * slope.sum(1)) + linear @ m, linear @ C @ linear.T + noise * unit
        m[0], C[0], C[:, 0] = np.sqrt(b) * x_0, 0, 0
        C[0, 0] = 1 - b
    return m[1], np.sqrt(C[1, 1])


@pytest.mark.parametrize(("jump_length", "num_resamples"), [(1, 1), (1, 10), (5, 4)])
@pytest.mark.parametrize("kind", [DDPMLinearScheduler, DDPMScheduler, DDIMScheduler])
def test_painted_pixels_follow_the_known_ones(kind, jump_length, num_resamples):
    """One of two correlated pixels is known, and the closed form tells the other."""
    rho, std, x_0 = PairedDenoiser.rho, 0.25, centred(168)
    pipeline = make(DDPMInpaintingPipeline, PairedDenoiser(0.0, std, sample_size=32), kind(clip_sample=False))
    call = {"image": flat(168, (32, 32)), "mask": half_mask((32, 32)), "num_inference_steps": 50, "batch_size": 4}
    images = pipeline(
        **call, jump_length=jump_length, num_resamples=num_resamples, generator=seeded(), output_type="pt"
    ).images
    painted = images[..., 16:] * 2 - 1  # 2,048 pixels
    ascending = range(19, 1000, 20) if kind is DDIMScheduler else np.linspace(0, 999, 50).round().astype(int)
    ddim = kind is DDIMScheduler
    mean, deviation = repaint(ascending, x_0, jump_length, num_resamples, 0.0, std, rho, ddim)
    assert painted.mean().item() == pytest.approx(mean, abs=0.015)
    assert painted.std().item() == pytest.approx(deviation, abs=0.015)


def test_resampling_brings_harmony():
    """RePaint does not condition exactly, but more resampling brings the mean closer to E[right | left]."""
    std, rho, x_0 = 0.25, PairedDenoiser.rho, centred(168)
    pipeline = make(DDPMInpaintingPipeline, PairedDenoiser(0.0, std, sample_size=32))
    gaps = []
    for num_resamples in (1, 3, 20):
        images = pipeline(flat(168, (32, 32)), half_mask((32, 32)), 4, 1, num_resamples, seeded(), 50, "pt").images
        gaps.append(rho * x_0 - (images[..., 16:] * 2 - 1).mean().item())
    assert gaps[0] > 1.5 * gaps[1] and gaps[1] > 1.5 * gaps[2]
    assert abs(gaps[2]) < 0.1 * x_0


@pytest.mark.parametrize("steps", [1000, 40])
@pytest.mark.parametrize("kind", [DDPMLinearScheduler, DDPMScheduler, DDIMScheduler])
def test_independent_pixels_do_not_follow(kind, steps):
    ddim = kind is DDIMScheduler
    pipeline = make(DDPMInpaintingPipeline, GaussianDenoiser(0.2, 0.15, 64), kind(clip_sample=False))
    picture, mask = flat(30, (64, 64)), half_mask((64, 64))
    painted = pipeline(picture, mask, 2, 10, 2, seeded(), steps, "pt").images[..., 32:] * 2 - 1
    stride = 1000 // steps
    ascending = range(stride - 1, 1000, stride) if ddim else np.linspace(0, 999, steps).round().astype(int)
    mean, std = repaint(ascending, centred(30), 10, 2, 0.2, 0.15, 0.0, ddim)
    assert painted.mean().item() == pytest.approx(mean, abs=0.01)
    assert painted.std().item() == pytest.approx(std, abs=0.01)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_known_pixels_come_back(mode, channels):
    """Pictures and masks of every mode work."""
    pipeline = make(DDPMInpaintingPipeline, GaussianDenoiser(in_channels=channels))
    picture = random_picture(mode)
    if picture.has_transparency_data:
        picture.putalpha(255)
    mask = half_mask()
    if mode[0] == "I":
        mask = Image.fromarray(np.asarray(mask, dtype=np.uint16) * 257).convert(mode)
    else:
        mask = mask.convert("P").convert("PA") if mode == "PA" else mask.convert("RGB").convert(mode)
    painted = pipeline(picture, mask, 2, num_resamples=1, num_inference_steps=5).images
    if mode[0] == "I":
        picture = random_picture("RGBA").getchannel(0)  # the same values in 8 bits
    expected = np.asarray(picture.convert("RGB").convert("L" if channels == 1 else "RGB"))
    for image in painted:
        np.testing.assert_array_equal(np.asarray(image)[:, :8], expected[:, :8])
        assert (np.asarray(image)[:, 8:] != expected[:, 8:]).mean() > 0.9


def test_resampling_path():
    """Algorithm 1 takes each step `num_resamples` times, but the last one once. Longer jumps start there too."""
    assert list(resampling_path(3, 1, 2)) == [(3, 2), (2, 3), (3, 2), (2, 1), (1, 2), (2, 1), (1, 0)]
    assert list(resampling_path(3, 10, 5)) == [(3, 2), (2, 1), (1, 0)]
    down = [level for level, following in resampling_path(20, 5, 3) if following < level]
    assert [down.count(level) for level in range(1, 21)] == [3] * 20
    jumps = [(a, b) for a, b in resampling_path(20, 5, 3) if b > a]
    assert jumps == [(15, 20)] * 2 + [(10, 15)] * 2 + [(5, 10)] * 2 + [(0, 5)] * 2


def test_transparent_masks_and_empty_ones(monkeypatch):
    """Masks may be strokes on a transparent layer. A mask without strokes is reported."""
    messages = []
    monkeypatch.setattr(ddpm_inpainting.logger, "warning", messages.append)
    pipeline = make(DDPMInpaintingPipeline)
    layer = Image.new("RGBA", (16, 16), (255, 255, 255, 0))
    painted = pipeline(flat(77), layer, num_inference_steps=5, output_type="pil").images[0]
    np.testing.assert_array_equal(painted, flat(77))
    assert messages == ["`mask` has no white pixels, so nothing is painted."]
    layer.putpixel((3, 5), (255, 255, 255, 255))
    painted = pipeline(flat(77), layer, num_inference_steps=5, output_type="pil").images[0]
    assert np.argwhere(np.asarray(painted) != 77).tolist() == [[5, 3]]


# ---- Progressive ----------------------------------------------------------------------------------------------------


def make_unets(labels=None, **stock_labels):
    """Return random networks, one of ours and one of diffusers."""
    blocks = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return DDPMUNetModel(**blocks, **labels or {}, zero_init=False).eval(), UNet2DModel(**blocks, **stock_labels).eval()


@pytest.fixture
def unets():
    return make_unets()


@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("scheduler", [DDPMLinearScheduler, DDPMScheduler, DDIMScheduler])
def test_progressive_draws_what_the_plain_pipelines_draw(unets, scheduler, steps):
    for unet, plain in zip(unets, (DDPMPipelineCustom, DDPMPipeline)):
        scheduler_ = scheduler(num_train_timesteps=20)
        if plain is DDPMPipeline and scheduler is DDIMScheduler:
            plain = DDPMPipelineCustom  # the stock pipeline is for DDPMScheduler
        expected = make(plain, unet, scheduler_)(
            batch_size=2, generator=seeded(), num_inference_steps=steps or 20, output_type="np"
        ).images
        output = make(DDPMProgressivePipeline, unet, scheduler_)(2, None, seeded(), steps, "np")
        assert len(output.x_t) == len(output.x_0) == (steps or 20) + 1
        for images in (output.images, output.x_t[-1], output.x_0[-1]):
            np.testing.assert_array_equal(images, expected)


def test_frames_are_x_t_and_the_prediction_from_it():
    mean, std = 0.1, 0.2
    pipeline = make(DDPMProgressivePipeline, GaussianDenoiser(mean, std))
    output = pipeline(2, None, seeded(), 50, "pt")
    noise = torch.randn(2, 1, 16, 16, generator=seeded())
    torch.testing.assert_close(output.x_t[0], (noise / 2 + 0.5).clamp(0, 1))
    for t, x_t, x_0 in zip(range(980, -1, -20), output.x_t, output.x_0):
        a = pipeline.unet.alpha_bar[t].item()
        inside = (x_t > 0) & (x_t < 1)
        assert inside.float().mean() > 0.5
        x = x_t[inside] * 2 - 1
        expected = mean + np.sqrt(a) * std**2 / (a * std**2 + 1 - a) * (x - np.sqrt(a) * mean)
        torch.testing.assert_close(
            x_0[inside] * 2 - 1, expected, rtol=0, atol=2e-4
        )  # at large t, it divides by a small sqrt(a)


def test_fewer_frames_are_some_of_all():
    pipeline = make(DDPMProgressivePipeline)
    every = pipeline(1, None, seeded(), 50, "np")
    some = pipeline(1, 6, seeded(), 50, "np")
    for all_frames, frames in ((every.x_t, some.x_t), (every.x_0, some.x_0)):
        assert len(frames) == 6
        for i, frame in enumerate(frames):
            np.testing.assert_array_equal(frame, all_frames[10 * i])


def test_strip_and_gif(tmp_path):
    pipeline = make(DDPMProgressivePipeline)
    x_t, x_0 = ([frame[0] for frame in frames] for frames in pipeline(1, 5, seeded(), 20)[1:])
    pipeline.save_strip(tmp_path / "strip.png", x_t, x_0, scale=2)
    strip = Image.open(tmp_path / "strip.png")
    assert (strip.size, strip.mode) == ((5 * 32, 2 * 32), "L")
    expected = np.vstack([np.hstack(row) for row in (x_t, x_0)])
    np.testing.assert_array_equal(np.asarray(strip)[::2, ::2], expected)
    pipeline.save_gif(tmp_path / "frames.gif", x_t, x_0, scale=3, duration=40)
    gif = Image.open(tmp_path / "frames.gif")
    assert (gif.n_frames, gif.size, gif.info["loop"]) == (5, (2 * 48, 48), 0)
    for i in range(5):
        gif.seek(i)
        assert gif.info["duration"] == (1040 if i == 4 else 40)
        np.testing.assert_array_equal(np.asarray(gif.convert("L"))[::3, ::3], np.hstack([x_t[i], x_0[i]]))


# ---- Image to image -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("steps", [None, 100])
def test_moments_of_variations(strength, steps):
    pipeline = make(DDPMImg2ImgPipeline, GaussianDenoiser(0.1, 0.2, sample_size=64))
    images = pipeline(flat(150, (64, 64)), strength, 2, seeded(), steps, "pt").images * 2 - 1
    k = round(1000 * strength)
    n = round(strength * (steps or 1000))
    timesteps = np.linspace(k - 1, 0, n).round().astype(int).tolist()
    mean, std, _ = reverse_process(timesteps, 0.1, 0.2, centred(150))
    if strength == 1 and steps is None:
        assert (mean, std) == (pytest.approx(0.1, abs=1e-3), pytest.approx(0.2, abs=0.01))
    assert images.mean().item() == pytest.approx(mean, abs=0.01)
    assert images.std().item() == pytest.approx(std, abs=0.01)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_no_strength_gives_the_picture(mode):
    picture = random_picture(mode)
    pipeline = make(DDPMImg2ImgPipeline, GaussianDenoiser(in_channels=3 if mode == "RGB" else 1))
    for image in pipeline(picture, 0, batch_size=2).images:
        assert image.mode == mode
        np.testing.assert_array_equal(image, picture)


def test_variations_are_repeatable():
    pipeline = make(DDPMImg2ImgPipeline)
    draws = [pipeline(flat(150), 0.5, 3, seeded(s), 20, "np").images for s in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0.05
    assert np.abs(draws[0][0] - draws[0][1]).max() > 0.05
    together = pipeline(flat(150), 0.5, 3, [seeded(s) for s in range(3)], 20, "np").images
    alone = pipeline(flat(150), 0.5, 1, [seeded(2)], 20, "np").images
    np.testing.assert_allclose(together[2:], alone, rtol=0, atol=1e-6)


# ---- Inversion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_noise_of_a_picture(prediction_type):
    """The x_T that DDIM takes back to the picture, in closed form: its steps are affine for data N(mean, std^2).

    With many steps it approaches that of the equation, which keeps (x_t - alpha mean) / sqrt(alpha^2 std^2 + sigma^2).
    """
    mean, std, steps = 0.1, 0.2, 250
    unet = GaussianDenoiser(mean, std, prediction_type=prediction_type)
    pipeline = make(DDPMInversionPipeline, unet, DDPMLinearScheduler(prediction_type=prediction_type))
    picture = random_picture("L")
    x = x_0 = np.array(picture) / 127.5 - 1
    levels = unet.alpha_bar[np.linspace(0, 999, steps + 1).round()].numpy()
    for b, a in itertools.pairwise(levels):
        slope = np.sqrt(a) * std**2 / (a * std**2 + 1 - a)
        k_0, k_t, _ = reverse_step(a, b, ddim=True)
        x = (x - k_0 * mean * (1 - slope * np.sqrt(a))) / (k_0 * slope + k_t)
    scale = np.sqrt(levels * std**2 + 1 - levels)
    of_equation = np.sqrt(levels[-1]) * mean + scale[-1] * (x_0 - np.sqrt(levels[0]) * mean) / scale[0]
    assert np.abs(x - of_equation).max() < 0.1 * x.std()

    errors = []
    for refinements in (0, 3):
        x_T = pipeline.encode(picture, steps, refinements)
        back = pipeline.decode(x_T, steps, "np").images[0, ..., 0] * 255
        errors.append((np.abs(x_T[0, 0] - x).max().item() / x.std(), np.abs(back - np.asarray(picture)).max()))
    (plain, plain_back), (refined, refined_back) = errors
    assert refined < 0.01 and refined < plain / 5
    assert refined_back < 0.1 < plain_back


def test_frames_between_the_noises_of_two_pictures():
    """They begin and end with the pictures, and each is what `decode` makes of the x_T on the arc."""
    pipeline = make(DDPMInversionPipeline, GaussianDenoiser(0.1, 0.2))
    first, last = random_picture("L"), random_picture("L").rotate(90)
    frames = pipeline(first, last, 3, 250, 3, "np").images[..., 0] * 255
    assert np.abs(frames[[0, 2]] - np.stack([first, last])).max() < 0.1
    x_T = slerp(*pipeline.encode([first, last], 250, 3).chunk(2), torch.tensor(0.5))
    np.testing.assert_allclose(pipeline.decode(x_T, 250, "np").images[0, ..., 0] * 255, frames[1], rtol=0, atol=1e-3)


def test_one_label_to_encode_and_another_to_decode(conditional):
    unet, picture = conditional[0], random_picture("L", (8, 8))
    pipeline = make(DDPMInversionPipeline, unet, DDPMLinearScheduler(50))
    x_T = pipeline.encode(picture, 10, class_labels="cat")
    options = {"num_inference_steps": 10, "output_type": "np", "class_labels": "cat"}
    images = pipeline(picture, new_class_labels=["cat", "dog"], **options).images
    for image, label in zip(images, ("cat", "dog")):
        alone = pipeline.decode(x_T, 10, "np", class_labels=label).images[0]
        np.testing.assert_allclose(image, alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(pipeline(picture, **options).images[0], images[0], rtol=0, atol=1e-5)
    assert np.abs(images[0] - images[1]).max() > 1e-3
    assert len(pipeline(picture, new_class_labels=torch.tensor(1), **options).images) == 1


@pytest.mark.parametrize("options", [{"beta_schedule": "squaredcos_cap_v2"}, {"rescale_betas_zero_snr": True}])
def test_a_schedule_that_ends_without_a_signal_is_left_before_its_end(options):
    scheduler = DDPMLinearScheduler(prediction_type="v_prediction", **options)
    unet = GaussianDenoiser(0.1, 0.2, prediction_type="v_prediction")
    unet.alpha_bar = scheduler.alphas_cumprod.double().clamp(min=1e-20)
    pipeline, picture = make(DDPMInversionPipeline, unet, scheduler), random_picture("L")
    back = pipeline(picture, num_inference_steps=250, num_refinements=3, output_type="np").images[0, ..., 0] * 255
    assert np.abs(back - np.asarray(picture)).max() < 0.5


def test_what_cannot_be_inverted():
    pipeline = make(DDPMInversionPipeline)
    with pytest.raises(ValueError, match=r"`x_T=3`; expected a tensor"):
        pipeline.decode(3)
    with pytest.raises(ValueError, match=r"`x_T` has 3 channels; expected the 1 of the model"):
        pipeline.decode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"`image='one.png'`; expected a PIL picture"):
        pipeline.encode("one.png")
    with pytest.raises(ValueError, match=r"num_refinements=-1"):
        pipeline.encode(flat(1), num_refinements=-1)


# ---- All of them ----------------------------------------------------------------------------------------------------


CALLS = {
    DDPMInterpolationPipeline: {"image_1": flat(100), "image_2": flat(150), "num_frames": 2, "timestep": 500},
    DDPMInpaintingPipeline: {"image": flat(100), "mask": half_mask(), "num_resamples": 1, "batch_size": 2},
    DDPMImg2ImgPipeline: {"image": flat(100), "batch_size": 2},
    DDPMProgressivePipeline: {"batch_size": 2},
    DDPMInversionPipeline: {"image": flat(100), "image_2": flat(150), "num_frames": 2},
}
RANDOM = [kind for kind in CALLS if kind is not DDPMInversionPipeline]
kinds = pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.__name__)


def seed_of(kind):
    return {"generator": seeded()} if kind in RANDOM else {}


@kinds
def test_output_types(kind, capsys):
    for channels, mode in ((1, "L"), (3, "RGB")):
        pipeline = make(kind, GaussianDenoiser(in_channels=channels))
        call = {**CALLS[kind], "num_inference_steps": 10}
        array = pipeline(**call, **seed_of(kind), output_type="np").images
        tensor = pipeline(**call, **seed_of(kind), output_type="pt", return_dict=False)[0]
        pictures = pipeline(**call, **seed_of(kind)).images
        assert array.shape == (2, 16, 16, channels)
        np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1), array)
        for picture, pixels in zip(pictures, array):
            assert picture.mode == mode
            np.testing.assert_array_equal(picture, (pixels * 255).round().squeeze())
    assert capsys.readouterr().err == ""
    pipeline.set_progress_bar_config(disable=False)
    pipeline(**call)
    assert "100%" in capsys.readouterr().err


@kinds
def test_half_precision(kind, unets):
    pipeline = make(kind, unets[0], DDPMLinearScheduler()).to(torch.bfloat16)
    resized = {k: v.resize((8, 8)) if isinstance(v, Image.Image) else v for k, v in CALLS[kind].items()}
    images = pipeline(**resized, num_inference_steps=10, output_type="np").images
    assert np.isfinite(images).all() and images.std() > 0


class OfAnotherDevice(torch.Generator):
    """Stand-in for a generator of a GPU."""

    device = torch.device("cuda:0")


BAD_INPUT = [
    ({"num_inference_steps": 1001}, "num_inference_steps=1001.*(1000|999)"),
    ({"num_inference_steps": 0}, "num_inference_steps=0"),
    ({"output_type": "tf"}, "'tf'"),
    ({"generator": [seeded()]}, "`generator` is a list"),
    ({"image": flat(1, (16, 12))}, "`image` has 16x12 pixels.*16x16.*crop"),
    ({"image_2": flat(1, (16, 12))}, "`image_2` has 16x12 pixels.*16x16.*crop"),
    ({"image": np.zeros((16, 16))}, "`image` is a ndarray"),
    ({"mask": flat(1, (8, 8))}, "`mask` has 8x8 pixels, and `image` 16x16"),
    ({"mask": None}, "`mask` is a NoneType"),
    ({"timestep": 1001}, "timestep=1001.*0 to num_train_timesteps=1000"),
    ({"timestep": -1}, "timestep=-1"),
    ({"num_frames": 1}, "num_frames=1"),
    ({"num_frames": 1002}, "num_frames=1002.*2 to 1001"),
    ({"mixing": "cubic"}, "mixing='cubic'"),
    ({"strength": 1.1}, "strength=1.1"),
    ({"strength": -0.1}, "strength=-0.1"),
    ({"jump_length": 0}, "jump_length=0"),
    ({"num_resamples": 0}, "num_resamples=0"),
    ({"batch_size": 0}, "0 images"),
    *(({"batch_size": n}, "images; expected a whole number") for n in (2.0, "2", True, None)),
    *(({"num_frames": n}, "expected a whole number") for n in (2.5, "2", True)),
    *(
        ({"num_inference_steps": n}, "num_inference_steps=.*a whole number, 1 to (1000|999)")
        for n in (2.5, 2.0, "2", True)
    ),
    *(({"timestep": n}, "timestep=.*a whole number, 0 to") for n in (2.5, "2", np.nan)),
    *(({"strength": n}, "strength=.*a number, 0 to 1") for n in ("0.5", None, np.nan)),
    ({"jump_length": 1.5}, "jump_length=1.5.*a whole number, at least 1"),
    ({"num_resamples": "2"}, "num_resamples='2'.*a whole number, at least 1"),
    ({"generator": 3}, r"`generator=3`; expected torch.Generator\(\).manual_seed\(n\)"),
    ({"generator": (seeded(),)}, "`generator` is a list"),
    ({"generator": OfAnotherDevice()}, "is on cuda:0; expected one on the CPU or on cpu"),
]


def takes(kind, change):
    """Tell whether the pipeline has the argument and refuses this value."""
    name = next(iter(change))
    return name in kind.__call__.__annotations__ and not (
        kind is not DDPMProgressivePipeline and change == {"num_frames": 1002}
    )


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [(kind, *case) for kind in CALLS for case in BAD_INPUT if takes(kind, case[0])],
)
def test_bad_input(kind, change, message):
    unet = Recorder()
    with pytest.raises(ValueError, match=message) as error:
        make(kind, unet)(**{**CALLS[kind], **change})
    assert "\n" not in str(error.value)
    assert unet.calls == []


@pytest.mark.parametrize("kind", [kind for kind in RANDOM if kind is not DDPMInterpolationPipeline])
def test_a_tuple_of_generators_is_as_good_as_a_list(kind):
    images = [
        make(kind)(**CALLS[kind], num_inference_steps=np.int64(3), generator=form(map(seeded, range(2)))).images
        for form in (list, tuple)
    ]
    assert [picture.tobytes() for picture in images[0]] == [picture.tobytes() for picture in images[1]]


@kinds
def test_bad_models(kind):
    with pytest.raises(ValueError, match=r"EulerDiscreteScheduler.*DDPMScheduler\.from_config"):
        make(kind, scheduler=EulerDiscreteScheduler())(**CALLS[kind])
    with pytest.raises(ValueError, match="2 channels"):
        make(kind, GaussianDenoiser(in_channels=2))(**CALLS[kind])
    with pytest.raises(ValueError, match="sample_size=None"):
        make(kind, GaussianDenoiser(sample_size=None))(**CALLS[kind])


def test_pictures_are_fitted_with_a_log_line(monkeypatch):
    """Pictures of another size or colour mode are converted."""
    messages = []
    for module in (ddpm_img2img, ddpm_inpainting):
        monkeypatch.setattr(module.logger, "warning", messages.append)

    def lines(picture, channels=1):
        messages.clear()
        unet = GaussianDenoiser(in_channels=channels)
        image = make(DDPMImg2ImgPipeline, unet)(picture, 0).images[0]
        assert (image.size, image.mode) == ((16, 16), "L" if channels == 1 else "RGB")
        return [*messages], np.unique(np.asarray(image)).tolist()

    assert lines(flat(70)) == ([], [70])
    assert lines(flat(70, (33, 32))) == (["`image` is resized from 33x32 to 16x16 pixels."], [70])
    assert lines(flat(70, mode="RGB")) == (["`image` is of mode RGB; it becomes greyscale, as the model is."], [70])
    assert lines(flat(70), 3) == (["`image` is of mode L; it becomes RGB, as the model is."], [70])
    assert lines(Image.new("LA", (16, 16), (70, 0))) == ([], [255])  # transparent on white

    messages.clear()
    mask = half_mask((32, 32))
    painted = make(DDPMInpaintingPipeline)(flat(70, (32, 32)), mask, num_resamples=1, num_inference_steps=5).images[0]
    assert (np.asarray(painted)[:, :8] == 70).all() and (np.asarray(painted)[:, 8:] != 70).mean() > 0.9
    assert messages == ["`image` is resized from 32x32 to 16x16 pixels."]


# ---- Classes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def conditional():
    """Return class-conditional networks: ours of three names, and one of diffusers, which always needs labels."""
    names = {"class_names": ("cat", "dog", "eel"), "num_class_embeds": 4}
    return make_unets(names, num_class_embeds=3)


class ByHand(GaussianDenoiser):
    """An unconditional network that adds the class of each image and the guidance to another network."""

    def __init__(self, unet, labels, guidance_scale, guidance_interval=(0, 1)):
        super().__init__(sample_size=8)
        self.unet, self.labels, self.guidance_scale = unet, labels, guidance_scale
        self.start, self.end = guidance_interval

    def forward(self, sample, timestep):
        eps = self.unet(sample, timestep, class_labels=torch.tensor(self.labels)).sample
        if self.guidance_scale != 1 and self.start <= 1 - int(timestep) / 8 <= self.end:
            no_class = self.unet(sample, timestep, class_labels=torch.tensor([3] * len(sample))).sample
            eps = no_class + self.guidance_scale * (eps - no_class)
        return SimpleNamespace(sample=eps)


def draw_small(kind, unet, **wish):
    """Draw two images or frames of 8 x 8 pixels."""
    small = {k: v.resize((8, 8)) if isinstance(v, Image.Image) else v for k, v in CALLS[kind].items()}
    small |= {"timestep": 4} if "timestep" in small else {}
    pipeline = make(kind, unet, DDPMLinearScheduler(num_train_timesteps=8, clip_sample=False))
    return pipeline(**small, **wish, **seed_of(kind), output_type="np").images


@kinds
@pytest.mark.parametrize(
    ("which", "labels", "numbers", "guidance"),
    [
        (0, "dog", [1, 1], (1.0,)),
        (0, ["eel", 0], [2, 0], (3,)),
        (0, ["eel", 0], [2, 0], (3, (0.3, 0.7))),
        (1, torch.tensor([2, 0]), [2, 0], (1.0,)),
    ],
)
def test_classes_and_guidance(conditional, kind, which, labels, numbers, guidance):
    unet = conditional[which]
    options = dict(zip(("guidance_scale", "guidance_interval"), guidance))
    images = draw_small(kind, unet, class_labels=labels, **options)
    np.testing.assert_allclose(images, draw_small(kind, ByHand(unet, numbers, *guidance)), rtol=0, atol=1e-5)
    plain = draw_small(kind, ByHand(unet, [0, 0], 1))
    assert np.abs(images - plain).max() > 1e-3 or kind not in RANDOM  # an inversion undoes what the label changed
    if which == 0:
        without = draw_small(kind, unet)
        np.testing.assert_allclose(without, draw_small(kind, ByHand(unet, [3, 3], 1)), rtol=0, atol=1e-5)


@kinds
def test_classes_that_the_model_does_not_have(conditional, kind, monkeypatch):
    ours, stock = conditional
    calls = []
    for model in (DDPMUNetModel, UNet2DModel, GaussianDenoiser):
        monkeypatch.setattr(model, "forward", lambda *arguments, **options: calls.append(arguments))
    for unet, wish, message in (
        (ours, {"class_labels": "cow"}, "there is no 'cow'; expected one of cat, dog, eel, or its number from 0 to 3"),
        (ours, {"class_labels": ["cat"] * 3}, "`class_labels` has 3 labels; expected one, or one for each of 2 images"),
        (ours, {"guidance_scale": 2}, "`guidance_scale=2.0` leads to `class_labels`, and there are none"),
        (ours, {"class_labels": "cat", "guidance_scale": np.nan}, "`guidance_scale=nan`; expected a finite number"),
        (
            ours,
            {"class_labels": 1, "guidance_scale": 2, "guidance_interval": (1, 0)},
            r"`guidance_interval=\(1, 0\)`; exp",
        ),
        (ours, {"class_labels": 1, "guidance_interval": (0.5, 1)}, "`guidance_scale=1` is none; pass another scale"),
        (stock, {}, "`class_labels` are missing: .* expected a whole number from 0 to 2"),
        (stock, {"class_labels": 3}, "there is no 3; expected a whole number from 0 to 2"),
        (stock, {"class_labels": 1, "guidance_scale": 2}, "`guidance_scale=2.0` needs a model that was trained with"),
        (GaussianDenoiser(sample_size=8), {"class_labels": [0, 1]}, "do not fit an unconditional model"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_small(kind, unet, **wish)
    assert calls == []


# ---- A learned variance ---------------------------------------------------------------------------------------------


class OwnDDIM(DDIMScheduler):
    """A scheduler that a user derives."""


class WithSmallVariance(GaussianDenoiser):
    """A network that predicts the variance, too: always the smaller one of those between which it may choose."""

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        output = super().forward(sample, timestep, class_labels)
        return SimpleNamespace(sample=torch.cat((output.sample, torch.full_like(sample, -1.0)), dim=1))


@pytest.mark.parametrize("kind", [DDPMPipelineCustom, *CALLS], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("scheduler", [DDPMLinearScheduler, DDPMScheduler, OwnDDIM])
def test_the_smaller_variance_learned_is_the_smaller_variance_fixed(kind, scheduler):
    images = []
    for unet, variance_type in ((GaussianDenoiser(), "fixed_small"), (WithSmallVariance(), "learned_range")):
        options = DDPMLinearScheduler(variance_type=variance_type, clip_sample=False).config
        call = {**CALLS.get(kind, {"batch_size": 2}), "num_inference_steps": 20, "output_type": "np"}
        random = {"generator": seeded()} if kind is DDPMPipelineCustom else seed_of(kind)
        images.append(make(kind, unet, scheduler.from_config(options))(**call, **random).images)
    np.testing.assert_allclose(images[1], images[0], rtol=0, atol=1e-5)


# ---- Loading --------------------------------------------------------------------------------------------------------

LOAD = """
import json, sys
from pathlib import Path
{block}
import numpy as np, torch
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
from PIL import Image

here, pipelines = Path({here!r}), {pipelines!r}
calls = {{
    "ddpm_interpolation": dict(image_1=Image.new("L", (8, 8), 90), image_2=Image.new("L", (8, 8), 170), num_frames=3),
    "ddpm_inpainting": dict(image=Image.new("L", (8, 8), 90), mask=Image.new("L", (8, 8), 255), num_resamples=2),
    "ddpm_progressive": dict(),
    "ddpm_img2img": dict(image=Image.new("L", (8, 8), 90)),
    "ddpm_inversion": dict(image=Image.new("L", (8, 8), 90)),
}}
means = {{}}

def draw(name, way, pipeline):
    assert type(pipeline).__module__ == f"diffusers_modules.local.{{name}}", type(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    seed = {{}} if name == "ddpm_inversion" else {{"generator": torch.Generator().manual_seed(0)}}
    images = pipeline(**calls[name], **seed, output_type="np").images
    means[f"{{name}} {{way}}"] = images.astype("float64").mean().item()

for name in calls:
    load = dict(custom_pipeline=f"{{pipelines}}/{{name}}.py", trust_remote_code=True)
{code}
(here / "means.json").write_text(json.dumps(means))
"""

STOCK_FOLDER = 'draw(name, "stock", DiffusionPipeline.from_pretrained(here / "stock", **load))'
# diffusers prefers the pipeline's file in the folder to a file that ends in ".py".
OUR_FOLDER = """
other = dict(load, custom_pipeline=f"{pipelines}/{name}")
draw(name, "path", DiffusionPipeline.from_pretrained(here / "ours", **other))
pipeline = DiffusionPipeline.from_pretrained(here / "ours", trust_remote_code=True)
draw(name, "from_pipe", DiffusionPipeline.from_pipe(pipeline, **load, **pipeline.components))
"""
PACKAGE = 'draw(name, "package", ddpm_hf.DDPMPipelineCustom.from_pretrained(here / "ours", **load))'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "code"),
    [
        ("sys.modules['ddpm_hf'] = None  # an import of it fails", STOCK_FOLDER + OUR_FOLDER),
        ("import ddpm_hf", OUR_FOLDER + PACKAGE),
    ],
    ids=["without the package", "with the package"],
)
def test_loads_by_custom_pipeline(unets, tmp_path, block, code):
    """Another process loads the pipeline and draws what this one draws."""
    ours, stock = unets
    scheduler = {"num_train_timesteps": 10}
    DDPMPipelineCustom(ours, DDPMLinearScheduler(**scheduler)).save_pretrained(tmp_path / "ours")
    DDPMPipeline(stock, DDPMScheduler(**scheduler)).save_pretrained(tmp_path / "stock")
    code = LOAD.format(here=str(tmp_path), pipelines=str(PIPELINES), block=block, code=textwrap.indent(code, "    "))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr

    grey, other = Image.new("L", (8, 8), 90), Image.new("L", (8, 8), 170)
    calls = {
        DDPMInterpolationPipeline: {"image_1": grey, "image_2": other, "num_frames": 3},
        DDPMInpaintingPipeline: {"image": grey, "mask": Image.new("L", (8, 8), 255), "num_resamples": 2},
        DDPMProgressivePipeline: {},
        DDPMImg2ImgPipeline: {"image": grey},
        DDPMInversionPipeline: {"image": grey},
    }
    means = json.loads((tmp_path / "means.json").read_text())
    assert {key.split()[0] for key in means} == {kind.__module__ for kind in calls}
    for key, mean in means.items():
        name, way = key.split()
        kind = next(kind for kind in calls if kind.__module__ == name)
        parts = (stock, DDPMScheduler(**scheduler)) if way == "stock" else (ours, DDPMLinearScheduler(**scheduler))
        images = make(kind, *parts)(**calls[kind], **seed_of(kind), output_type="np").images
        assert mean == pytest.approx(images.astype("float64").mean().item(), abs=1e-6)
