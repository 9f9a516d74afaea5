"""Pictures of a run, drawn with Pillow: grids of samples, and the curve of the loss."""

import math

import numpy as np
from PIL import Image, ImageDraw


def image_grid(images: list[Image.Image]) -> Image.Image:
    """Images of one size and mode in a grid as square as their number allows, row by row."""
    columns = math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    grid = Image.new(images[0].mode, (columns * width, math.ceil(len(images) / columns) * height))
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * width, i // columns * height))
    return grid


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

    # Axes: a line for 1, 2 and 5 in each decade of the loss, five numbers along the steps.
    for loss in (m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)):
        if low <= math.log10(loss) <= high:
            y = place(first, loss)[1]
            draw.line((left, y, right, y), fill="#e0e0e0")
            draw.text((left - 8, y), f"{loss:g}", fill="black", anchor="rm")
    for step in np.linspace(first, last, 5):
        draw.text((place(step, 10**low)[0], bottom + 8), f"{step:.0f}", fill="black", anchor="mt")
    draw.rectangle((left, top, right, bottom), outline="black")
    draw.text(((left + right) / 2, top - 8), "loss over optimizer steps", fill="black", anchor="mb")

    # Curves. The mean runs over a twentieth of the values on either side.
    reach = max(1, len(losses) // 20)
    mean = [losses[max(0, i - reach) : i + reach + 1].mean() for i in range(len(losses))]
    for values, colour, width in ((losses, "#b0b0b0", 1), (mean, "#1f5fbf", 3)):
        draw.line([place(s, v) for s, v in zip(steps, values)], fill=colour, width=width, joint="curve")
    return canvas
