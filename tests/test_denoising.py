"""The pictures of the way from noise to samples."""

import numpy as np
import torch
from PIL import Image
from runs import make_run

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.denoising import FRAMES, LAST_FRAME, denoise


def test_the_way_ends_with_the_samples(tmp_path):
    class Truth(DDPMUNetModel):
        """The exact denoiser of one picture, x_0 = 0.5 everywhere."""

        def forward(self, sample, timestep, return_dict=True):
            alpha_bar = scheduler.alphas_cumprod[timestep]
            output = super().forward(sample, timestep)
            output.sample = (sample - alpha_bar.sqrt() * 0.5) / (1 - alpha_bar).sqrt()
            return output

    scheduler = DDPMLinearScheduler(num_train_timesteps=100)
    unet = Truth.from_pretrained(make_run(tmp_path / "run"), subfolder="unet")
    pipeline = DDPMPipelineCustom(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    denoising = denoise(pipeline, 50, num_images=2)
    strip = denoising.strip(columns=5)
    assert strip.size == (12 * (5 * 9 - 1), 12 * (2 * 9 - 1))  # images of 8 pixels, gaps of one
    without_gaps = np.delete(np.asarray(strip)[::12, ::12], [8, 17, 26, 35], axis=1)
    np.testing.assert_allclose(np.delete(without_gaps, 8, axis=0), 0.75 * 255, atol=2)

    # The upper row of the animation is noise that ends as the sample, the lower one the predictions.
    denoising.save_animation(tmp_path / "a.webp")
    animation = Image.open(tmp_path / "a.webp")
    assert animation.n_frames == FRAMES
    rows = []
    for i in range(FRAMES):
        animation.seek(i)
        frame = np.asarray(animation.convert("L"), dtype=float)
        rows.append((frame[: len(frame) * 8 // 17], frame[len(frame) * 9 // 17 :]))
    assert animation.info["duration"] == LAST_FRAME
    assert rows[0][0].std() > 50
    assert max(abs(np.median(lower) - 0.75 * 255) for _, lower in rows) < 4
    assert np.abs(rows[-1][0] - rows[-1][1]).mean() < 4

    few = denoise(pipeline, 3, seed=1).strip(columns=10)
    assert few.size == (15 * (3 * 9 - 1), 15 * (4 * 9 - 1))
    torch.manual_seed(5)
    assert denoise(pipeline, 3, seed=1).strip(columns=10).tobytes() == few.tobytes()
