"""Draw colour pictures to train on: faces put together at random, none of which shows a person.

python benchmarks/avatars.py pictures --count 10000 --size 32
"""

import argparse
import colorsys
import random
from pathlib import Path

from PIL import Image, ImageDraw
from tqdm.auto import tqdm

SKINS = ["#f6d5b8", "#e8b98e", "#c98f62", "#9c6239", "#6b4226", "#ffe1c9"]
HAIR = ["#1c1a18", "#4a2f1d", "#8a5a2b", "#c9a063", "#b5482a", "#9a9a9a", "#e8e3d8"]
STYLES = ["short", "long", "bald", "curly", "hat"]
DETAIL = 8  # a picture is drawn this many times larger, and then shrunk


def draw_avatar(seed: int, size: int) -> Image.Image:
    """Draw one face. The same seed gives the same face at every size."""
    return draw_labelled(seed, size)[0]


def draw_labelled(seed: int, size: int) -> tuple[Image.Image, int]:
    """Draw one face, and return its class too: one for each style of the hair with each colour of the skin."""
    rng = random.Random(seed)
    n = size * DETAIL
    hue = rng.random()
    top, bottom = (colorsys.hsv_to_rgb(hue, rng.uniform(0.1, 0.6), value) for value in (0.95, rng.uniform(0.5, 0.8)))
    picture = Image.composite(
        *(Image.new("RGB", (n, n), _hex(c)) for c in (bottom, top)), Image.linear_gradient("L").resize((n, n))
    )
    draw = ImageDraw.Draw(picture)
    x, y = n * rng.uniform(0.45, 0.55), n * rng.uniform(0.46, 0.54)
    wide, high = n * rng.uniform(0.2, 0.27), n * rng.uniform(0.27, 0.33)
    skin, hair = rng.choice(SKINS), rng.choice(HAIR)
    shirt = _hex(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.3, 0.9), rng.uniform(0.3, 0.9)))
    style = rng.choice(STYLES)

    if style == "long":
        draw.rounded_rectangle((x - wide * 1.25, y - high * 1.1, x + wide * 1.25, y + high * 1.3), wide, fill=hair)
    draw.ellipse((x - 2 * wide, y + high * 0.95, x + 2 * wide, y + high * 4), fill=shirt)  # shoulders
    draw.rectangle((x - wide * 0.4, y, x + wide * 0.4, y + high * 1.25), fill=skin)  # neck
    draw.ellipse((x - wide, y - high, x + wide, y + high), fill=skin)  # head
    for side in (-1, 1):
        draw.ellipse(_around(x + side * wide, y, wide * 0.18, high * 0.2), fill=skin)  # ear
    if style in ("short", "long"):
        draw.pieslice((x - wide * 1.08, y - high * 1.15, x + wide * 1.08, y + high * 0.7), 180, 360, fill=hair)
    if style == "curly":
        for i in range(9):
            draw.ellipse(
                _around(x + wide * (i - 4) / 3.6, y - high * (1.05 - abs(i - 4) * 0.13), wide * 0.34), fill=hair
            )
    if style == "hat":
        draw.rectangle((x - wide * 1.5, y - high * 0.62, x + wide * 1.5, y - high * 0.48), fill=shirt)
        draw.rounded_rectangle((x - wide, y - high * 1.4, x + wide, y - high * 0.5), wide * 0.3, fill=shirt)
    eye = _hex(colorsys.hsv_to_rgb(rng.random(), 0.6, 0.45))
    apart, size_of_eye = wide * rng.uniform(0.36, 0.5), wide * rng.uniform(0.1, 0.16)
    for side in (-1, 1):
        at = x + side * apart, y - high * 0.08
        draw.ellipse(_around(*at, size_of_eye * 1.5, size_of_eye), fill="white")
        draw.ellipse(_around(*at, size_of_eye * 0.8), fill=eye)
        brow = y - high * rng.uniform(0.28, 0.34)
        draw.line((at[0] - size_of_eye * 1.6, brow, at[0] + size_of_eye * 1.6, brow), fill=hair, width=max(1, n // 60))
    if rng.random() < 0.3:  # glasses
        for side in (-1, 1):
            draw.ellipse(_around(x + side * apart, y - high * 0.08, wide * 0.32), outline="#222222", width=n // 50)
        draw.line((x - apart * 0.4, y - high * 0.08, x + apart * 0.4, y - high * 0.08), fill="#222222", width=n // 50)
    draw.line((x, y, x - wide * 0.1, y + high * 0.25, x + wide * 0.06, y + high * 0.27), fill="#7a4a30", width=n // 60)
    smile, at = rng.uniform(0.1, 0.35), y + high * 0.45
    mouth = (x - wide * 0.4, at - high * smile, x + wide * 0.4, at + high * smile)
    if rng.random() < 0.3:
        draw.chord(mouth, 10, 170, fill="#a03030")
    else:
        draw.arc(mouth, 20, 160, fill="#a03030", width=n // 40)
    if rng.random() < 0.2:  # beard
        draw.chord((x - wide * 0.95, y - high * 0.6, x + wide * 0.95, y + high * 1.02), 40, 140, fill=hair)
    label = STYLES.index(style) * len(SKINS) + SKINS.index(skin)
    return picture.resize((size, size), Image.Resampling.BOX), label


def _hex(rgb: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * value):02x}" for value in rgb)


def _around(x: float, y: float, wide: float, high: float | None = None) -> tuple[float, float, float, float]:
    high = wide if high is None else high
    return x - wide, y - high, x + wide, y + high


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures are saved")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0, help="the first picture's; each takes the next one")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for i in tqdm(range(arguments.count), unit="img"):
        draw_avatar(arguments.seed + i, arguments.size).save(arguments.folder / f"{i:06d}.png")


if __name__ == "__main__":
    main()
