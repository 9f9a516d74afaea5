"""Pictures of a run: grids of samples, the way from noise to samples, and the curve of the loss."""

import math
from itertools import count
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

SOFTWARE = "ddpm_hf"  # in the pictures that may be replaced


def image_grid(images: list[Image.Image], columns: int | None = None) -> Image.Image:
    """Images of one size and mode in a grid, row by row; by default as square as their number allows."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    grid = Image.new(images[0].mode, (columns * width, math.ceil(len(images) / columns) * height))
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * width, i // columns * height))
    return grid


@torch.no_grad()
def denoising_strip(pipeline: DiffusionPipeline, steps: int, rows: int = 4, columns: int = 10, seed: int = 0) -> Image:
    """What the network takes x_t for, at some of the steps from noise to sample: its predictions of x_0 (eq. 15).

    Args:
        pipeline ([`DDPMPipelineCustom`]): With a [`DDPMLinearScheduler`]. Its network is left in evaluation mode.
        steps (`int`): Denoising steps.
        rows (`int`): Samples, each with a row of its own.
        columns (`int`): Steps shown, as evenly as may be; the last column is the sample itself.
        seed (`int`): Of the noise.

    Returns:
        `PIL.Image.Image`: A grid of `rows` x `columns`; of fewer columns if there are fewer steps.
    """
    shown = set(np.linspace(0, steps - 1, columns).round().astype(int))
    predictions = []

    def keep_prediction(pipeline, step, timestep, tensors):
        x = tensors["sample"]  # x_t of the next timestep; after the last, x_0 itself
        if step in shown and step + 1 < steps:
            t = pipeline.scheduler.timesteps[step + 1]
            x = pipeline.scheduler.predict_x_0(pipeline.unet(x, t).sample, t, x)
        if step in shown:
            predictions.append((x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy())  # (rows, H, W, C)
        return {}

    pipeline.unet.eval()
    generator = torch.Generator(pipeline.device).manual_seed(seed)
    pipeline(rows, generator, steps, callback_on_step_end=keep_prediction)
    images = np.stack(predictions, axis=1)  # (rows, columns, H, W, C)
    return image_grid(pipeline.numpy_to_pil(images.reshape(-1, *images.shape[2:])), columns=len(predictions))


def loss_curve(steps: list[int], losses: list[float], size: tuple[int, int] = (800, 480)) -> Image.Image:
    """The loss over the optimizer steps on a logarithmic scale: each value in grey, their running mean in blue.

    Args:
        steps (`list[int]`): Optimizer steps, ascending.
        losses (`list[float]`): The loss at each of them; values that are not finite and positive are left out.
        size (`tuple[int, int]`): Width and height in pixels.

    Returns:
        `PIL.Image.Image`: Of mode RGB.
    """
    steps, losses = np.array(steps, dtype=float), np.array(losses, dtype=float)
    shown = np.isfinite(losses) & (losses > 0)
    steps, losses = steps[shown], losses[shown]
    canvas = Image.new("RGB", size, "white")
    if not len(losses):
        return canvas
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = 70, 30, size[0] - 20, size[1] - 40
    first, last = steps[0], max(steps[-1], steps[0] + 1)
    low, high = np.log10(losses.min()) - 0.05, np.log10(losses.max()) + 0.05

    def place(step, loss):
        x = left + (step - first) / (last - first) * (right - left)
        y = bottom - (np.log10(loss) - low) / (high - low) * (bottom - top)
        return float(x), float(y)

    # Axes: a line for 1, 2 and 5 in each decade of the loss, up to seven round numbers along the steps.
    for loss in (m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)):
        if low <= math.log10(loss) <= high:
            y = place(first, loss)[1]
            draw.line((left, y, right, y), fill="#e0e0e0")
            draw.text((left - 8, y), f"{loss:g}", fill="black", anchor="rm")
    spacing = next(m * 10**e for e in count() for m in (1, 2, 5) if 6 * m * 10**e >= last - first)
    for step in np.arange(math.ceil(first / spacing), last / spacing + 0.01) * spacing:
        draw.text((place(step, 10**low)[0], bottom + 8), f"{step:.0f}", fill="black", anchor="mt")
    draw.rectangle((left, top, right, bottom), outline="black")
    draw.text(((left + right) / 2, top - 8), "loss over optimizer steps", fill="black", anchor="mb")

    # Curves. The mean runs over a twentieth of the values on either side; over fewer at first, where the loss falls.
    reaches = np.minimum(np.arange(len(losses)) // 4, max(1, len(losses) // 20))
    mean = [losses[i - reach : i + reach + 1].mean() for i, reach in enumerate(reaches)]
    for values, colour, width in ((losses, "#b0b0b0", 1), (mean, "#1f5fbf", 3)):
        draw.line([place(s, v) for s, v in zip(steps, values)], fill=colour, width=width, joint="curve")
    return canvas


# ---- Marks ---------------------------------------------------------------------------------------------------------


def save_marked(picture: Image.Image, path: Path):
    """Save a picture; if it is a PNG, with a mark by which [`is_ours`] knows it again."""
    mark = PngInfo()
    mark.add_text("Software", SOFTWARE)
    picture.save(path, **({"pnginfo": mark} if path.suffix.lower() == ".png" else {}))


def is_ours(path: Path) -> bool:
    """Whether a picture was saved by [`save_marked`], so that it may be replaced without asking."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == SOFTWARE
    except Exception:  # whatever PIL makes of somebody's file
        return False
