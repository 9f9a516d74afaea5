"""Look at some pictures of any depth before all are read: which channels, type and range do they have?"""

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import datasets
import numpy as np

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.arrays import WIDE, OutOfRange, check_range, depth_of, kind_of, name_of, read_array, refuse_leaving
from ddpm_hf.images.stored import UnreadableImage
from ddpm_hf.pixel_format import BANDS, PixelFormat, number
from ddpm_hf.terminal import say


def element_type(feature: Any) -> str | None:
    """Return the type of the numbers if a column of a data set holds arrays `(H, W)` or `(H, W, C)`; else None."""
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return feature.dtype
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    is_number = isinstance(feature, datasets.Value) and re.fullmatch(r"(u?int|float)\d+", feature.dtype)
    return feature.dtype if depth in (2, 3) and is_number else None


def is_deep(examples: Iterable[tuple[int, dict]], config: TrainingConfig) -> bool:
    """Return whether the pictures looked at are to be read as arrays, and not by Pillow with 8 bits a channel."""
    if config.image_mode == BANDS:
        return True
    asked, depths = config.preserve_input_precision or config.range_of_pixels is not None, set()
    for _, row in examples:
        with suppress(UnreadableImage):
            depths.add(depth_of(row["image"]))
        if depths - {"array"} and not asked:  # the usual case: looking at the others would take time
            return False
    return depths == {"array"} or (asked and bool(depths - {"eight"}))


def survey_arrays(examples: Iterable[tuple[int, dict]], element: str | None, config: TrainingConfig) -> PixelFormat:
    """Decide about the pixels of pictures of any depth, from those looked at.

    Args:
        examples (`Iterable[tuple]`): Numbers of rows, and the rows.
        element (`str`, *optional*): The type of the numbers in a column of arrays; see [`element_type`].
        config ([`TrainingConfig`]): The options of the group "Data".

    Raises:
        ValueError: If the pictures differ in channels or type, leave the range or need one, or cannot be read at all.
    """
    if config.celeba_crop:
        raise ValueError("--celeba_crop is for the 8-bit pictures of CelebA; pass --no_celeba_crop.")
    first: tuple | None = None
    smallest, largest, leaving, count, problem, image = np.inf, -np.inf, [], 0, "", None
    for i, row in examples:
        try:
            array = read_array(row["image"])
        except UnreadableImage as error:
            problem = f"{name_of(row['image'], i)}: {error}"
            continue
        array = array if element is None else array.astype(_narrow(element))
        name, about = name_of(row["image"], i), (array.shape[2], kind_of(array))
        first, image = first or (name, about), image or row["image"]
        if about != first[1]:
            had, has = (f"{channels} channels of {kind}" for channels, kind in (first[1], about))
            raise ValueError(f"{first[0]} has {had}, and {name} has {has}; keep those alike in a folder of their own.")
        count, low, high = count + 1, float(array.min()), float(array.max())
        if config.range_of_pixels is None and not np.isfinite((low, high)).all():
            raise ValueError(
                f"{name} holds {'NaN' if np.isnan(low) else 'infinity'}; replace it by numbers of the range."
            )
        smallest, largest = min(low, smallest), max(high, largest)
        if config.range_of_pixels is not None:
            try:
                check_range(array, PixelFormat(BANDS, about[0], about[1], *config.range_of_pixels))
            except OutOfRange as error:
                leaving.append({"image": name, "smallest": error.smallest, "largest": error.largest})
    if first is None:
        raise ValueError(f"no image of those looked at can be read: {problem or 'there is none'}.")
    channels, kind = first[1]
    if config.image_mode not in ("auto", BANDS) and len(config.image_mode) != channels:
        raise ValueError(
            f"--image_mode {config.image_mode}: {first[0]} has {channels} channels of {kind}, which are not converted; "
            f"pass --image_mode {BANDS}, or save pictures of 8 bits."
        )
    low, high = config.range_of_pixels or _usual_range(kind, smallest, largest, first[0])
    dtype = _type_for(low, high) if kind == WIDE else kind
    form = PixelFormat(BANDS, channels, dtype, low, high)
    refuse_leaving(leaving, f"{count:,} images looked at", form)
    stored = dtype if config.preserve_input_precision or dtype == "uint8" else "uint8"
    suffix = ".png" if (dtype, channels) == ("uint16", 1) else ".tif" if _is_tiff(image) else ".npy"
    return PixelFormat(BANDS, channels, dtype, float(low), float(high), stored, suffix)


def _narrow(element: str) -> str:
    """Return the type among those of [`read_array`] that holds the numbers of a type."""
    kind = np.dtype(element)
    if kind.kind == "f":
        return "float32"
    return {"uint8": "uint8", "int8": "int16", "uint16": "uint16", "int16": "int16"}.get(kind.name, WIDE)


def _type_for(low: float, high: float) -> str:
    """Return the smallest type of whole numbers that holds a range; float32 if none of 16 bits does."""
    for dtype in ("uint8", "int16", "uint16"):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    return "float32"


def _usual_range(kind: str, smallest: float, largest: float, name: str | int) -> tuple[float, float]:
    """Return the range that numbers usually have, if those looked at lie in it.

    Whole numbers begin at 0 and end with 8 to 16 bits, the fewest that suffice; floating-point ones end at 1 or 255.
    """
    if kind == "uint8":
        return 0, 255
    ends = [1, 255] if kind == "float32" else [2**bits - 1 for bits in range(8, 17)]
    end = next((end for end in ends if 0 <= smallest and largest <= end), None)
    found = f"the numbers of {kind} in the images looked at reach from {number(smallest)} to {number(largest)}"
    if end is None:
        raise ValueError(f"{found}, such as those of {name}; pass --value_range LOW HIGH, such as -1000 3000.")
    say([f"The range of the pixels is 0 to {end:,}: {found}. --value_range LOW HIGH names another."])
    return 0, end


def _is_tiff(image: Any) -> bool:
    place = (image.get("path") or "") if isinstance(image, dict) else ""
    return place.split("::")[0].lower().endswith((".tif", ".tiff"))
