"""From a picture as it is stored, of any format and mode, to the uint8 pixels that a model is trained on."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ddpm_hf.config import TrainingConfig

GREYSCALE_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")

# The aligned pictures of CelebA, and the square around the face that makes CelebA-64 of them.
CELEBA_SIZE, CELEBA_SQUARE = (178, 218), 140


class UnreadableImage(ValueError):
    """A picture that is corrupt, cut off, empty, suspiciously large, or of a kind that cannot be told."""


def is_greyscale(image: dict | None) -> bool:
    """Whether an undecoded image of `datasets` is greyscale, which its header tells.

    Raises:
        UnreadableImage: If the header cannot be read.
    """
    return _attempt(lambda: _open(image).mode in GREYSCALE_MODES)


def decode_image(image: dict | None, mode: str, config: TrainingConfig) -> np.ndarray:
    """Decode an image of `datasets`, turn it upright, and bring it to the size of the training images.

    Args:
        image (`dict`): `bytes`, or else `path`; None where the data set has no image.
        mode (`str`): "L" or "RGB".
        config ([`TrainingConfig`]): `resolution`, `image_fit`, `center_crop` and `celeba_crop` are read.

    Returns:
        `numpy.ndarray`: `(height, width, channels)` uint8; see [`fit_image`].

    Raises:
        UnreadableImage: If the image cannot be decoded.
        ValueError: If it has fewer pixels than the options ask for.
    """
    upright = _attempt(lambda: to_eight_bits(ImageOps.exif_transpose(_open(image)), mode))
    pixels = fit_image(upright, config)
    return pixels.reshape(*pixels.shape[:2], len(mode))


def _open(image: dict | None) -> Image.Image:
    if image is None:
        raise ValueError("there is no image")
    data = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    if not data:
        raise ValueError("the file is empty")
    return Image.open(io.BytesIO(data))


def _attempt(decode):
    """Decoders raise whatever a broken file makes them stumble over, so every exception means the same here."""
    try:
        return decode()
    except UnidentifiedImageError:
        raise UnreadableImage("the file is no picture, or of an unknown format") from None
    except Exception as error:
        raise UnreadableImage(str(error) or type(error).__name__) from error


def to_eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image of any mode to "L" or "RGB".

    Transparent pixels show white behind them. Integers of 16 bits are divided by 257; floating-point values are taken
    as 0 to 1, or, if one of them is larger than 1, as 0 to 255.

    Raises:
        ValueError: If numbers are outside of these ranges.
    """
    if image.mode[0] in "IF":
        numbers = np.asarray(image, dtype=np.float64)
        white = 65535.0 if image.mode[0] == "I" else 1.0 if numbers.max() <= 1 else 255.0
        if not (numbers.min() >= 0 and numbers.max() <= white):
            raise ValueError(f"expected numbers from 0 to {white:g}, found {numbers.min():g} to {numbers.max():g}")
        image = Image.fromarray(np.round(numbers * (255 / white)).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(mode) if image.mode in ("1", "L", "RGB", "RGBA") else image.convert("RGB").convert(mode)


def fit_image(image: Image.Image, config: TrainingConfig) -> np.ndarray:
    """Bring an image to the training resolution.

    Args:
        image (`PIL.Image.Image`): Of mode L or RGB.
        config ([`TrainingConfig`]): With `image_fit="crop"`, the short side is shrunk to `resolution`, antialiased; the
            long side is cut too if `center_crop`, and else left for the random crop of every batch. With `"pad"`, the
            image is centred on black. `celeba_crop` first cuts out the 140 x 140 pixels around the face.

    Returns:
        `numpy.ndarray`: `(height, width)` or `(height, width, 3)`, uint8; `resolution` is the smaller of the first two.

    Raises:
        ValueError: If the image is smaller than the resolution (`"crop"`) or larger (`"pad"`), or not of the size of
            CelebA's pictures (`celeba_crop`).
    """
    resolution = config.resolution
    if config.celeba_crop:
        if image.size != CELEBA_SIZE:
            raise ValueError(
                f"{image.width}x{image.height} pixels, and --celeba_crop is for the aligned pictures of CelebA, of "
                "178x218; pass --no_celeba_crop."
            )
        left, top = ((side - CELEBA_SQUARE) // 2 for side in CELEBA_SIZE)
        image = image.crop((left, top, left + CELEBA_SQUARE, top + CELEBA_SQUARE))
    if config.image_fit == "pad":
        if max(image.size) > resolution:
            raise ValueError(
                f"{image.width}x{image.height} pixels do not fit into {resolution}; pass --image_fit crop."
            )
        canvas = Image.new(image.mode, (resolution, resolution))
        canvas.paste(image, ((resolution - image.width) // 2, (resolution - image.height) // 2))
        return np.asarray(canvas)
    if min(image.size) < resolution:
        raise ValueError(
            f"{image.width}x{image.height} pixels are fewer than --resolution {resolution}; lower the resolution, pass "
            "--image_fit pad, or remove the image."
        )
    if config.center_crop:
        size = (resolution, resolution)
    else:
        size = tuple(round(side * resolution / min(image.size)) for side in image.size)
    return np.asarray(ImageOps.fit(image, size, Image.Resampling.BICUBIC))
