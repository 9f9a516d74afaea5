"""Decode stored pictures, of any format and mode, to the uint8 pixels that a model is trained on."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.arrays import OutOfRange, check_range, decode_array, name_of
from ddpm_hf.images.stored import UnreadableImage, attempt, opened
from ddpm_hf.pixel_format import BANDS, PixelFormat

GREYSCALE_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")

# The aligned pictures of CelebA, and the square around the face that makes CelebA-64 of them.
CELEBA_SIZE, CELEBA_SQUARE = (178, 218), 140


@dataclass(frozen=True)
class White:
    """The numbers that mean white in pictures of 16 bits, and in those of floating-point numbers."""

    integers: int = 65535
    floats: int = 1

    @classmethod
    def above(cls, integer: float, number: float) -> "White":
        """Choose white by the largest numbers of a data set; -1 stands for a kind of picture that it does not hold.

        Cameras and scanners of 10, 12 or 14 bits write files of 16 bits, so white may be less than 65535.
        """
        depths = range(8, 16) if integer >= 0 else ()
        integers = next((2**bits - 1 for bits in depths if integer < 2**bits), cls.integers)
        return cls(integers, 255 if number > 1 else cls.floats)


def is_greyscale(image: dict | None) -> bool:
    """Return whether the header of an undecoded image of `datasets` says that it is greyscale.

    Raises:
        UnreadableImage: If the header cannot be read.
    """

    def look() -> bool:
        with opened(image) as picture:
            return picture.mode in GREYSCALE_MODES

    return attempt(look)


def largest_number(image: dict | None) -> dict[str, float]:
    """Return the largest number in an undecoded image of `datasets` that has more than 8 bits.

    Returns:
        `dict`: The kind of number -> the largest. "I" stands for integers, "F" for floats, "RGB" for the upper 8 of 16
            bits of a colour: Pillow reads no more. Empty for other images.

    Raises:
        UnreadableImage: If the image cannot be read.
    """

    def look() -> dict[str, float]:
        with opened(image) as picture:
            if picture.mode in ("RGB", "RGBA") and ";16" in str(picture.tile):
                return {"RGB": int(np.asarray(picture.convert("RGB")).max())}
            if picture.mode[0] not in "IF":
                return {}
            numbers = np.asarray(picture, dtype=np.float64)
            return {picture.mode[0]: numbers.max()} if numbers.min() >= 0 else {}

    return attempt(look)


def decode_image(image: dict | None, mode: str, config: TrainingConfig, white: White | None = None) -> np.ndarray:
    """Decode an image of `datasets`, turn it upright, and bring it to the size of the training images.

    Args:
        image (`dict`): `bytes` or, if these are None, `path`. None where the data set has no image.
        mode (`str`): A mode of Pillow with 8 bits a channel: "L", "LA", "RGB" or "RGBA".
        config ([`TrainingConfig`]): `resolution`, `image_fit`, `center_crop` and `celeba_crop` count.
        white ([`White`], *optional*): See [`to_eight_bits`].

    Returns:
        `numpy.ndarray`: `(height, width, channels)` uint8; see [`fit_image`].

    Raises:
        UnreadableImage: If the image cannot be decoded.
        ValueError: If its size does not fit the options; see [`fit_image`].
    """

    def decode() -> Image.Image:
        with opened(image) as picture:
            return to_eight_bits(ImageOps.exif_transpose(picture), mode, white)

    pixels = fit_image(attempt(decode), config)
    return pixels.reshape(*pixels.shape[:2], len(mode))


def to_eight_bits(image: Image.Image, mode: str, white: White | None = None) -> Image.Image:
    """Convert an image of any mode to 8 bits a channel. Without a channel for it, what is transparent is put on white.

    Args:
        image (`PIL.Image.Image`): The image.
        mode (`str`): "L", "LA", "RGB" or "RGBA".
        white ([`White`], *optional*): The numbers that become 255 in images of 16 bits and of floats. By default 65535
            for 16 bits; for floats 1, or 255 if a number of this image is larger than 1.

    Raises:
        ValueError: If a number is negative or larger than white.
    """
    if image.mode[0] in "IF":
        numbers = np.asarray(image, dtype=np.float64)
        white = white or White.above(-1, numbers.max())
        largest = white.integers if image.mode[0] == "I" else white.floats
        if not (numbers.min() >= 0 and numbers.max() <= largest):
            raise ValueError(f"expected numbers from 0 to {largest:g}, found {numbers.min():g} to {numbers.max():g}")
        image = Image.fromarray(np.round(numbers * (255 / largest)).astype(np.uint8))
    if mode in ("LA", "RGBA"):
        return image if image.mode == mode else image.convert("RGBA").convert(mode)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(mode) if image.mode in ("1", "L", "RGB", "RGBA") else image.convert("RGB").convert(mode)


def fit_image(image: Image.Image, config: TrainingConfig) -> np.ndarray:
    """Bring an image to the training resolution.

    Args:
        image (`PIL.Image.Image`): Of mode L, LA, RGB or RGBA.
        config ([`TrainingConfig`]): `image_fit="crop"` shrinks the image until one side is that of
            `resolution`, antialiased; with `small_images="upscale"` it grows if need be. `center_crop` also cuts the
            side that is too long; otherwise every batch crops it at random. `image_fit="pad"` centres the image on
            black. `celeba_crop` first cuts out the 140 x 140 pixels around the face.

    Returns:
        `numpy.ndarray`: `(height, width)` or `(height, width, channels)`, uint8. Height or width is that of
            `resolution`, and neither is less.

    Raises:
        ValueError: If the image is smaller than the resolution and not to be enlarged (`"crop"`), or larger (`"pad"`),
            or has another size than the pictures of CelebA (`celeba_crop`).
    """
    height, width = config.size
    if config.celeba_crop:
        if image.size != CELEBA_SIZE:
            raise ValueError(
                f"{image.width}x{image.height} pixels, and --celeba_crop is for the aligned pictures of CelebA, of "
                "178x218; pass --no_celeba_crop."
            )
        left, top = ((side - CELEBA_SQUARE) // 2 for side in CELEBA_SIZE)
        image = image.crop((left, top, left + CELEBA_SQUARE, top + CELEBA_SQUARE))
    if config.image_fit == "pad":
        if image.height > height or image.width > width:
            raise ValueError(
                f"{_pixels_of(image, config)} do not fit into --resolution {config.resolution}; pass --image_fit crop."
            )
        canvas = Image.new(image.mode, (width, height))
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return np.asarray(canvas)
    if config.small_images != "upscale" and (image.height < height or image.width < width):
        raise ValueError(
            f"{_pixels_of(image, config)} are fewer than --resolution {config.resolution}; pass "
            "--small_images upscale or skip, or --image_fit pad, or lower the resolution."
        )
    if not config.center_crop and image.width * height > image.height * width:  # the width is cut later
        width = round(image.width * height / image.height)
    elif not config.center_crop:
        height = round(image.height * width / image.width)
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))


def _pixels_of(image: Image.Image, config: TrainingConfig) -> str:
    """Name the size of an image: width first, as usual, or as in the option where that names both."""
    if isinstance(config.resolution, int):
        return f"{image.width}x{image.height} pixels"
    return f"{image.height}x{image.width} pixels (height x width)"


def refuse_unreadable(unreadable: list[dict], count: int, config: TrainingConfig, where: str):
    """Raise a ValueError if all of `count` images are unreadable, or more than `max_unreadable` allows."""
    if len(unreadable) > config.max_unreadable * count or len(unreadable) == count:
        first = unreadable[0]
        raise ValueError(
            f"{len(unreadable):,} of {count:,} images cannot be read, and --max_unreadable {config.max_unreadable} "
            f"allows {int(config.max_unreadable * count):,}: {first['image']} ({first['reason']}), ...; {where}. "
            "Remove them, or allow more."
        )


def decode_rows(
    pool: ThreadPoolExecutor,
    rows: dict[str, list],
    numbers: Iterable[int],
    form: PixelFormat,
    config: TrainingConfig,
    white: White | None,
) -> Iterable[tuple[np.ndarray | dict, int]]:
    """Decode the images of some rows, in parallel.

    Args:
        pool (`ThreadPoolExecutor`): The threads.
        rows (`dict`): The columns `image`, undecoded images of `datasets`, and `label` if there are labels.
        numbers (`Iterable[int]`): The numbers of these rows.
        form ([`~ddpm_hf.pixel_format.PixelFormat`]): The pixels to return.
        config, white: See [`decode_image`].

    Returns:
        `Iterable[tuple]`: A pair for each row: the image, or a dictionary of `image` and `reason` if it cannot be read,
            and of `image`, `smallest` and `largest` if its numbers leave the range; and the label, -1 if there is none.

    Raises:
        ValueError: If the size of an image does not fit the options. The message names the image.
    """

    def decode(item: tuple[int, dict | None]) -> np.ndarray | dict:
        i, image = item
        name = name_of(image, i)
        try:
            if form.mode == BANDS:
                return decode_array(image, form, config)
            pixels = decode_image(image, form.mode, config, white)
            check_range(pixels, form)
            return pixels
        except OutOfRange as error:
            return {"image": name, "smallest": error.smallest, "largest": error.largest}
        except UnreadableImage as error:
            return {"image": name, "reason": str(error)}
        except ValueError as error:
            raise ValueError(f"Image {name}: {error}") from error

    return zip(pool.map(decode, zip(numbers, rows["image"])), labels_of(rows))


def labels_of(rows: dict[str, list]) -> list[int]:
    """Return the labels of rows, -1 for those that have none."""
    return [-1 if label is None else label for label in rows.get("label", [None] * len(rows["image"]))]
