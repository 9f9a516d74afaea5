"""Pictures that are smaller than the resolution: find them by their headers, and enlarge, leave out or refuse them."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import datasets

from ddpm_hf.config import TrainingConfig
from ddpm_hf.files import read_json, write_json
from ddpm_hf.images.arrays import name_of, sides_of_array
from ddpm_hf.images.decoding import CELEBA_SIZE, CELEBA_SQUARE
from ddpm_hf.images.stored import UnreadableImage, attempt, opened
from ddpm_hf.terminal import say

EXIF_ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the values of pictures that lie on a side
SHOWN = 3  # pictures that a message names


def sort_out_small(dataset: datasets.Dataset, config: TrainingConfig) -> tuple[datasets.Dataset, list[dict]]:
    """Find all pictures that are smaller than the resolution, before any is decoded, and do as `small_images` says.

    The headers are read once. What was found is kept beside the cache of decoded images.

    Args:
        dataset (`datasets.Dataset`): Undecoded images, from [`~ddpm_hf.images.sources.load_dataset`].
        config ([`TrainingConfig`]): `small_images`, and the options that decide about the size.

    Returns:
        `tuple`: The data set, without the small pictures if they are left out; and the small pictures, the smallest
            first, each as [`find_small`] describes it. A stream comes back as it is, since its pictures are not there
            yet, and so does a data set whose pictures are padded.

    Raises:
        ValueError: If there are small pictures and `small_images` is "error", or all are left out.
        OSError: If the list of them cannot be kept.
    """
    if isinstance(dataset, datasets.IterableDataset) or config.image_fit == "pad":
        return dataset, []
    path = _list_file(config, dataset._fingerprint)
    small = _kept(path, dataset, config)
    if not small:
        return dataset, []
    treat_small(small, f"{len(dataset):,} images", config, path)
    if config.small_images == "skip":
        left_out = {line["row"] for line in small}
        dataset = dataset.select([i for i in range(len(dataset)) if i not in left_out])
    return dataset, small


def treat_small(small: list[dict], of_images: str, config: TrainingConfig, where: Path):
    """Say how many pictures are small and what becomes of them, or refuse them all in one line.

    Args:
        small (`list[dict]`): The small pictures, at least one.
        of_images (`str`): What they are taken from, such as "1,000 images".
        config ([`TrainingConfig`]): Its `small_images` decides.
        where (`Path`): The file that lists them.

    Raises:
        ValueError: If `small_images` is "error", or all pictures are left out.
    """
    names = ", ".join(f"{_name(line)} ({_sides(line, config)})" for line in small[:SHOWN])
    more = ", ..." if len(small) > SHOWN else ""
    problem = (
        f"{len(small):,} of {of_images} have fewer pixels than --resolution {config.resolution}; the smallest: "
        f"{names}{more}; all are listed in {where}"
    )
    if config.small_images == "error":
        raise ValueError(
            f"{problem}. Pass --small_images upscale to enlarge them, --small_images skip to leave them out, or "
            "--image_fit pad to centre them on black; or lower --resolution."
        )
    if config.small_images == "skip" and f"{len(small):,} images" == of_images:
        raise ValueError(f"{problem}. --small_images skip leaves none; lower --resolution.")
    done = {"upscale": "They are enlarged", "skip": "They are left out"}[config.small_images]
    say([f"{problem}. {done} (--small_images {config.small_images})."])


def list_small(small: list[dict], config: TrainingConfig, name: str, writes: bool) -> Path:
    """Return the path of the list of the small pictures of a stream. One process writes it, beside the cache."""
    path = _list_file(config, name)
    if writes:
        _keep(path, None, small)
    return path


def find_small(
    pool: ThreadPoolExecutor, images: list, numbers: Iterable[int], config: TrainingConfig
) -> list[dict | None]:
    """Find the small ones among images of a data set, by their headers.

    Args:
        pool (`ThreadPoolExecutor`): The threads that read.
        images (`list`): Undecoded images of `datasets`.
        numbers (`Iterable[int]`): The numbers of their rows.
        config ([`TrainingConfig`]): The options of the group "Data".

    Returns:
        `list`: For each image its `row`, `image` (a path or the number of the row), `height` and `width` upright, in
            pixels; None if it is large enough, or if its header cannot be read.
    """

    def look(item: tuple[int, dict | None]) -> dict | None:
        row, image = item
        try:
            sides = attempt(lambda: _small_sides(image, config))
        except UnreadableImage:
            return None  # it is noted when it is decoded
        if sides is None:
            return None
        return {"row": row, "image": name_of(image, row), "height": sides[0], "width": sides[1]}

    return list(pool.map(look, zip(numbers, images)))


def by_size(small: list[dict]) -> list[dict]:
    """Sort small pictures, those of the shortest sides first."""
    return sorted(small, key=lambda line: (min(line["height"], line["width"]), line["height"] * line["width"]))


def _small_sides(image: dict | None, config: TrainingConfig) -> tuple[int, int] | None:
    """Return height and width of an image that is smaller than the resolution; None for others."""
    height, width = config.size
    if sides := sides_of_array(image):
        rows, columns = sides
        return None if rows >= height and columns >= width else (rows, columns)
    with opened(image) as picture:
        columns, rows = picture.size
        if config.celeba_crop and picture.size == CELEBA_SIZE:
            columns = rows = CELEBA_SQUARE
        # Finding out whether a picture lies on a side can take as long as decoding it. Mostly it does not matter.
        if min(rows, columns) >= max(height, width):
            return None
        if picture.getexif().get(EXIF_ORIENTATION) in TURNED:
            rows, columns = columns, rows
    return None if rows >= height and columns >= width else (rows, columns)


def _name(line: dict) -> str:
    return f"image {line['image']}" if isinstance(line["image"], int) else line["image"]


def _sides(line: dict, config: TrainingConfig) -> str:
    """Name the size of a picture: width first, as usual, or as in the option where that names both."""
    if isinstance(config.resolution, int):
        return f"{line['width']}x{line['height']}"
    return f"{line['height']}x{line['width']}, height x width"


# ---- The kept list -------------------------------------------------------------------------------------------------


def _list_file(config: TrainingConfig, fingerprint: str) -> Path:
    key = hashlib.sha256(repr((fingerprint, config.size, config.celeba_crop)).encode()).hexdigest()[:16]
    return Path(config.cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf" / "small" / f"{key}.json"


def _kept(path: Path, dataset: datasets.Dataset, config: TrainingConfig) -> list[dict]:
    """Return the list of small pictures of a data set. Read the headers if it is not kept, or broken."""
    if path.exists():
        try:
            return read_json(path, {"images": int, "small": list})["small"]
        except ValueError as error:
            say([f"{error}. The headers are read again."])
    small = by_size(list(_all_small(dataset, config)))
    _keep(path, len(dataset), small)
    return small


def _keep(path: Path, count: int | None, small: list[dict]):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"images": count, "small": small})
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}. Name another --cache_dir.") from error


def _all_small(dataset: datasets.Dataset, config: TrainingConfig) -> Iterator[dict]:
    images = dataset.select_columns("image")
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(images), 256):
            found = find_small(pool, images[first : first + 256]["image"], count(first), config)
            yield from (line for line in found if line is not None)
