"""Pictures of any depth and number of channels: read them as arrays, and bring them to the training resolution.

They are NumPy files, TIFF files with any number of bands or pages, pictures of 16 bits or of floating-point numbers,
and columns of arrays in a data set.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.stored import UnreadableImage, attempt, file_of
from ddpm_hf.pixel_format import PixelFormat, number

NPY, TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how such files begin
SAMPLES_PER_PIXEL = 277  # a tag of TIFF
WIDE = "int64"  # stands for all whole numbers of more than 16 bits


class OutOfRange(ValueError):
    """An error: a picture has numbers outside of the range, or NaN.

    Args:
        smallest, largest (`float`): Its smallest and its largest number; NaN if it has NaN.
    """

    def __init__(self, smallest: float, largest: float):
        super().__init__(f"its numbers reach from {number(smallest)} to {number(largest)}")
        self.smallest, self.largest = smallest, largest


def is_array(image: Any) -> bool:
    """Return whether an image of a data set is an array, and no file."""
    return isinstance(image, list | np.ndarray)


def name_of(image: Any, row: int) -> str | int:
    """Return how messages call an image of a data set: by its path, or by the number of its row."""
    return (image.get("path") if isinstance(image, dict) else None) or row


def depth_of(image: Any) -> str:
    """Tell by the header how an image can be read.

    Returns:
        `str`: "eight": by Pillow, with 8 bits a channel. "deep": by Pillow, and it has 16 bits or more. "array": not by
            Pillow.

    Raises:
        UnreadableImage: If it cannot be read.
    """

    def look() -> str:
        if is_array(image):
            return "array"
        with file_of(image) as file:
            start = _start_of(file)
            if start.startswith(NPY):
                return "array"
            try:
                with Image.open(file) as picture:
                    is_deep, mode = picture.mode[0] in "IF" or ";16" in str(picture.tile), picture.mode
                    samples = getattr(picture, "tag_v2", {}).get(SAMPLES_PER_PIXEL, 1)
            except UnidentifiedImageError:
                if start.startswith(TIFF):
                    return "array"
                raise
        several = samples > 4 or (mode[0] in "IF" and samples > 1)  # Pillow would take a part of the bands
        return "array" if several else "deep" if is_deep else "eight"

    return attempt(look)


def sides_of_array(image: Any) -> tuple[int, int] | None:
    """Return height and width of an array or a NumPy file by its header; None for other files."""
    if is_array(image):
        return _checked_shape(np.shape(image))[:2]
    with file_of(image) as file:
        if not _start_of(file).startswith(NPY):
            return None
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return _checked_shape(read(file)[0])[:2]


def read_array(image: Any) -> np.ndarray:
    """Read an image of a data set with all its channels and bits.

    Returns:
        `numpy.ndarray`: `(H, W, C)`, uint8, uint16, int16, int64 (for all wider whole numbers), float32 or float64.

    Raises:
        UnreadableImage: If it cannot be read, or holds no numbers of such a shape.
    """

    def read() -> np.ndarray:
        if is_array(image):
            return _checked(np.asarray(image))
        with file_of(image) as file:
            start = _start_of(file)
            if start.startswith(NPY):
                return _checked(np.load(file, allow_pickle=False))
            if start.startswith(TIFF):
                return _checked(_read_tiff(file))
            return _checked(_read_picture(file))

    return attempt(read)


def _start_of(file: IO[bytes]) -> bytes:
    start = file.read(len(NPY))
    file.seek(0)
    return start


def _read_tiff(file: IO[bytes]) -> np.ndarray:
    """Read a TIFF file. Its bands, and its pages if there are several, become the channels."""
    import tifffile  # imported here, since few need it

    with suppress(ValueError), tifffile.TiffFile(file) as tiff:  # a ValueError: it is compressed in a way of Pillow's
        if len(tiff.series) > 1:
            raise UnreadableImage("its pages differ in size or type")
        series = tiff.series[0]
        if series.keyframe.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            array, axes = series.asarray(), series.axes
            array = np.moveaxis(array, (axes.index("Y"), axes.index("X")), (0, 1))
            return array.reshape(*array.shape[:2], -1)
    file.seek(0)
    return _read_picture(file)


def _read_picture(file: IO[bytes]) -> np.ndarray:
    """Read a picture that Pillow opens, and all pages of a TIFF file."""
    with Image.open(file) as picture:
        if picture.mode[0] not in "IF" and ";16" in str(picture.tile):
            raise ValueError("it has 16 bits a colour, of which Pillow reads 8; save it as .tif or .npy")
        if (samples := getattr(picture, "tag_v2", {}).get(SAMPLES_PER_PIXEL, 1)) > len(picture.getbands()):
            raise ValueError(f"it has {samples} bands, compressed; pip install imagecodecs reads them")
        pages = []
        for page in range(getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1):
            picture.seek(page)
            upright = ImageOps.exif_transpose(picture)
            if upright.mode not in ("L", "LA", "RGB", "RGBA") and upright.mode[0] not in "IF":
                upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
            pages.append(np.asarray(upright).reshape(upright.height, upright.width, -1))
        return np.concatenate(pages, axis=2)


def _checked(array: np.ndarray) -> np.ndarray:
    """Return an array as `(H, W, C)` of a type that [`read_array`] names."""
    shape = _checked_shape(array.shape)
    if array.dtype.kind not in "uif":
        raise ValueError(f"it holds {array.dtype}; expected whole or floating-point numbers")
    if array.dtype.kind == "f":
        kind = "float64" if array.dtype.itemsize > 4 else "float32"
    else:
        kind = {"uint8": "uint8", "int8": "int16", "uint16": "uint16", "int16": "int16"}.get(array.dtype.name, WIDE)
    return array.astype(kind).reshape(shape)


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return `(H, W, C)` for the shape of an array with or without channels."""
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"its shape is {shape}; expected (height, width) or (height, width, channels)")
    height, width, channels = (*shape, 1)[:3]
    if height <= 8 and min(width, channels) >= 16:
        raise ValueError(f"its shape is {shape}; expected the channels last, as np.moveaxis(array, 0, -1) does it")
    return height, width, channels


def kind_of(array: np.ndarray) -> str:
    """Return the type of an array from [`read_array`], with one name for all floating-point numbers."""
    return "float32" if array.dtype.kind == "f" else array.dtype.name


# ---- To the size of the training images ----------------------------------------------------------------------------


def decode_array(image: Any, form: PixelFormat, config: TrainingConfig) -> np.ndarray:
    """Read an image of a data set, and bring it to the size of the training images and to the type of the cache.

    Returns:
        `numpy.ndarray`: `(height, width, C)` of the type `form.stored`, as [`~ddpm_hf.images.decoding.fit_image`] fits
            pictures.

    Raises:
        UnreadableImage: If it cannot be read.
        OutOfRange: If it has numbers outside of the range, or NaN.
        ValueError: If its channels, type or size do not fit.
    """
    array = read_array(image)
    if array.shape[2] != form.channels or kind_of(array) not in (form.dtype, WIDE):
        raise ValueError(
            f"{array.shape[2]} channels of {kind_of(array)}, and others have {form.channels} of {form.dtype}; keep "
            "those alike in a folder of their own."
        )
    check_range(array, form)
    array = fit_array(array, form, config)
    if form.stored != form.dtype:
        array = (array.astype(np.float64) - form.low) * (255 / (form.high - form.low))
    if form.stored != "float32" and array.dtype.kind == "f":
        array = array.round()
    return np.ascontiguousarray(array.astype(form.stored))


def check_range(array: np.ndarray, form: PixelFormat):
    """Raise an [`OutOfRange`] if an array has numbers outside of the range, or NaN."""
    smallest, largest = array.min(), array.max()
    if not (form.low <= smallest and largest <= form.high):
        raise OutOfRange(float(smallest), float(largest))


def fit_array(array: np.ndarray, form: PixelFormat, config: TrainingConfig) -> np.ndarray:
    """Bring an array `(H, W, C)` to the training resolution, band by band, as pictures are. See `decode_array`."""
    height, width = config.size
    rows, columns = array.shape[:2]
    sides = f"{rows}x{columns} pixels (height x width)"
    if config.image_fit == "pad":
        if rows > height or columns > width:
            raise ValueError(f"{sides} do not fit into --resolution {config.resolution}; pass --image_fit crop.")
        top, left = (height - rows) // 2, (width - columns) // 2
        canvas = np.full((height, width, form.channels), form.low, dtype=np.float64)
        canvas[top : top + rows, left : left + columns] = array
        return canvas
    if config.small_images != "upscale" and (rows < height or columns < width):
        raise ValueError(
            f"{sides} are fewer than --resolution {config.resolution}; pass --small_images upscale or skip, or "
            "--image_fit pad, or lower the resolution."
        )
    if not config.center_crop and columns * height > rows * width:  # the width is cut later
        width = round(columns * height / rows)
    elif not config.center_crop:
        height = round(rows * width / columns)
    if (rows, columns) == (height, width):
        return array
    bands = [Image.fromarray(band.astype(np.float32)) for band in np.moveaxis(array, 2, 0)]
    fitted = [ImageOps.fit(band, (width, height), Image.Resampling.BICUBIC) for band in bands]
    return np.stack([np.asarray(band) for band in fitted], axis=2).clip(form.low, form.high)  # bicubic overshoots


def refuse_leaving(leaving: Sequence[dict], of_images: str, form: PixelFormat):
    """Raise a ValueError that names all pictures whose numbers leave the range, if there are any.

    Args:
        leaving (`Sequence[dict]`): `image`, `smallest` and `largest` of each.
        of_images (`str`): What they are taken from, such as "1,000 images".
        form ([`~ddpm_hf.pixel_format.PixelFormat`]): The range.
    """
    if not leaving:
        return
    numbers = np.array([[line["smallest"], line["largest"]] for line in leaving])
    finite = np.isfinite(numbers).all(1)
    names = ", ".join(
        f"{line['image']} ({'NaN' if np.isnan(both).any() else f'{number(both[0])} to {number(both[1])}'})"
        for line, both in zip(leaving[:3], numbers)
    )
    advice = []
    if finite.any():
        least, most = min(numbers[finite].min(), form.low), max(numbers[finite].max(), form.high)
        advice.append(f"pass --value_range {number(least)} {number(most)}, which holds them")
    if not finite.all():
        advice.append("replace NaN and infinity by numbers of the range")
    raise ValueError(
        f"{len(leaving):,} of {of_images} leave the range from {number(form.low)} to {number(form.high)} of "
        f"--value_range: {names}{', ...' if len(leaving) > 3 else ''}; {', and '.join(advice)}."
    )
