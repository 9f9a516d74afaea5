"""Pictures of the way from noise to samples: a strip of what the network predicts, and an animation."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ddpm_hf.pictures import image_grid
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler

FRAMES = 28  # of the animation; every third of them makes the ten columns of a strip
FRAME, LAST_FRAME = 100, 2500  # milliseconds that a frame is shown


@dataclass
class Denoising:
    """Samples on their way out of the noise.

    Args:
        x_t (`list[list[PIL.Image.Image]]`): For each of some steps, the noisy samples after it.
        x_0 (`list[list[PIL.Image.Image]]`): For each of these steps, the x_0 that the network predicts from them
            (eq. 15). After the last step, both are the samples themselves.
        form ([`~ddpm_hf.pixel_format.PixelFormat`]): The pixels of the samples.
    """

    x_t: list[list[Image.Image]]
    x_0: list[list[Image.Image]]
    form: PixelFormat

    def strip(self, columns: int = 10) -> Image.Image:
        """Return a grid of the predictions: a row for each sample, and a column for each of some steps."""
        shown = np.linspace(0, len(self.x_0) - 1, min(columns, len(self.x_0))).round().astype(int)
        rows = zip(*(self.x_0[i] for i in shown))
        return self.form.captioned(image_grid([picture for row in rows for picture in row], columns=len(shown)))

    def save_animation(self, path: Path):
        """Save an endless animation: the noisy samples in the upper row, the predictions in the lower one."""
        pairs = zip(self.x_t, self.x_0)
        first, *others = (self.form.captioned(image_grid([*x_t, *x_0], columns=len(x_t))) for x_t, x_0 in pairs)
        durations = [FRAME] * len(others) + [LAST_FRAME]
        first.save(path, save_all=True, append_images=others, duration=durations, loop=0, quality=75)


@torch.no_grad()
def denoise(pipeline: DiffusionPipeline, steps: int, num_images: int = 4, seed: int = 0) -> Denoising:
    """Draw samples, of the classes in turns, and keep some of the steps.

    Args:
        pipeline ([`DDPMPipelineCustom`]): Its network is left in evaluation mode.
        steps (`int`): Denoising steps. `FRAMES` of them are kept, evenly spaced, or all if there are fewer.
        num_images (`int`): Number of samples.
        seed (`int`): Seed of the noise.
    """
    kept = set(np.linspace(0, steps - 1, FRAMES).round().astype(int))
    form = PixelFormat.of_model(pipeline.unet.config)
    x_t: list[list[Image.Image]] = []
    x_0: list[list[Image.Image]] = []
    predictor = DDPMLinearScheduler.from_config(pipeline.scheduler.config)

    def pictures(x: torch.Tensor) -> list[Image.Image]:
        arrays = (x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()  # (N, H, W, C)
        return pipeline.numpy_to_pil(form.bands_to_show(arrays))

    def keep(pipeline, step, timestep, tensors):
        x = tensors["sample"]  # x_t of the next timestep; after the last, x_0 itself
        if step not in kept:
            return {}
        x_t.append(pictures(x))
        if step + 1 < steps:
            t = pipeline.scheduler.timesteps[step + 1]
            x = predictor.predict_x_0(pipeline.unet(x, t, numbers).sample[:, : x.shape[1]], t, x)
        x_0.append(pictures(x))
        return {}

    names = pipeline.unet.config.get("class_names")
    numbers = torch.arange(num_images, device=pipeline.device) % len(names) if names else None
    labels = [names[i % len(names)] for i in range(num_images)] if names else None
    pipeline.unet.eval()
    generator = torch.Generator(pipeline.device).manual_seed(seed)
    pipeline(num_images, generator, steps, callback_on_step_end=keep, class_labels=labels)
    return Denoising(x_t, x_0, form)
