"""Pictures of a run: grids of samples, and the curve of the loss."""

import math
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

LARGE = 512  # pixels
SOFTWARE = "ddpm_hf"  # the mark of pictures that may be replaced


def image_grid(images: list[Image.Image], columns: int | None = None) -> Image.Image:
    """Return a grid of images of one size and mode with white gaps, filled row by row, and enlarged if it is small.

    By default it is nearly square.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    gap = max(1, width // 16)
    rows = math.ceil(len(images) / columns)
    grid = Image.new(images[0].mode, (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return enlarged(grid)


def enlarged(picture: Image.Image) -> Image.Image:
    """Return a picture with each pixel as a square of pixels, so that its longer side has at least `LARGE`."""
    factor = math.ceil(LARGE / max(picture.size))
    return picture.resize([factor * side for side in picture.size], Image.Resampling.NEAREST)


def loss_curve(
    steps: list[int],
    losses: list[float],
    size: tuple[int, int] = (800, 480),
    held_out: tuple[list[int], list[float]] = ([], []),
) -> Image.Image:
    """Draw the loss over the optimizer steps on a logarithmic scale: each value in grey, the running mean in blue.

    The loss of images that are held out is a second curve, in red.

    Args:
        steps (`list[int]`): Optimizer steps, ascending.
        losses (`list[float]`): The loss at each step. Values that are not finite and positive are left out.
        size (`tuple[int, int]`): Width and height in pixels.
        held_out (`tuple`): Steps and losses of the second curve.

    Returns:
        `PIL.Image.Image`: A picture of mode RGB. It is white if no value is left.
    """
    # Imported here, since it takes long. Figures without pyplot need no display and leave no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    (x, y), others = _drawable(steps, losses), _drawable(*held_out)
    if not len(y):
        return Image.new("RGB", size, "white")
    # The mean covers a twentieth of the values on each side, and fewer at the start, where the loss falls fast.
    reaches = np.minimum(np.arange(len(y)) // 4, max(1, len(y) // 20))
    mean = [y[i - reach : i + reach + 1].mean() for i, reach in enumerate(reaches)]

    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    # Fixed, with room for labels such as 0.0005: a layout that looks for room takes as long as the drawing.
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.11, top=0.97)
    marker = "." if len(y) == 1 else ""  # one point makes no line
    axes.semilogy(x, y, color="#b0b0b0", linewidth=1, marker=marker, label="loss")
    axes.semilogy(x, mean, color="#1f5fbf", linewidth=3, marker=marker, label="running mean")
    if len(others[0]):
        axes.semilogy(*others, color="#c03020", linewidth=2, marker="o", markersize=4, label="held-out loss")
    axes.set(xlabel="optimizer step", ylabel="loss")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color="#e0e0e0")
    axes.legend()
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _drawable(steps: list[int], losses: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the points that a logarithmic scale can show."""
    x, y = np.array(steps, dtype=float), np.array(losses, dtype=float)
    shown = np.isfinite(y) & (y > 0)
    return x[shown], y[shown]


# ---- Marks ---------------------------------------------------------------------------------------------------------


def save_marked(picture: Image.Image, path: Path):
    """Save a picture. A PNG gets a mark that [`is_ours`] recognises; the writers of other formats ignore it."""
    mark = PngInfo()
    mark.add_text("Software", SOFTWARE)
    picture.save(path, pnginfo=mark)


def is_ours(path: Path) -> bool:
    """Return whether [`save_marked`] saved this picture. If so, it may be replaced without asking."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == SOFTWARE
    except Exception:  # PIL raises many kinds of errors for files of others
        return False
