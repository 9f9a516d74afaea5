"""What a data set on the Hub says about itself. It suffices for --dry_run, which fetches no pictures."""

from pathlib import Path

import datasets

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.opening import FoundImages
from ddpm_hf.images.sources import choose_columns
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.places import DATASET_CARD, why_unreachable
from ddpm_hf.terminal import one_line, say


def announced_images(config: TrainingConfig) -> FoundImages | None:
    """Describe the images of a data set on the Hub that is not on this machine yet, and say what is assumed.

    Args:
        config ([`TrainingConfig`]): The options of the group "Data".

    Returns:
        [`FoundImages`]: A data set with the columns and without rows, and the numbers that the Hub tells. None if the
        images are on this machine: they can be looked at.

    Raises:
        ValueError: If the data set has no such configuration, split or column.
    """
    name = config.dataset_name
    if name is None or Path(name).exists():
        return None
    info, missing = _read_info(config, name)
    if info is None:
        return None
    of_split, held_out = (_rows(info, split, name) for split in (config.dataset_split, config.validation_split))
    count = None if config.streaming else of_split
    unknown = [] if count or config.streaming else ["the number of images"]
    features = info.features or datasets.Features({config.image_column or "image": datasets.Image()})
    dataset = datasets.Dataset.from_dict({column: [] for column in features}, features)
    has_classes = any(isinstance(kind, datasets.ClassLabel) for kind in dataset.features.values())
    if config.class_conditional and not has_classes:
        unknown.append("the classes")
        dataset = dataset.select_columns([])
    else:
        dataset = choose_columns(dataset, config)
    mode = config.image_mode if config.image_mode in ("L", "LA", "RGB", "RGBA") else "RGB"
    about = f" Not known: {' and '.join(unknown)}, since {missing}." if unknown else ""
    size = "" if "resolution" in config.given else f" for {config.resolution} pixels"
    assumed = f"takes its pictures for {mode} ones that are large enough{size}"
    say([f"--dry_run downloads nothing of {name}, and {assumed}.{about}"])
    return FoundImages(dataset, None, [], PixelFormat(mode, len(mode)), count, held_out)


def _read_info(config: TrainingConfig, name: str) -> tuple[datasets.DatasetInfo | None, str]:
    """Return what a data set says about itself, None if it is on this machine, and why something may be missing."""
    if reason := why_unreachable(name, DATASET_CARD, "dataset"):
        return datasets.DatasetInfo(), f"the Hub cannot be reached ({reason})"
    try:
        builder = datasets.load_dataset_builder(name, config.dataset_config_name, cache_dir=config.cache_dir)
    except ConnectionError as error:  # it needs more than the card, which is in the cache
        return datasets.DatasetInfo(), f"the Hub cannot be reached ({one_line(error)})"
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"--dataset_name {name} cannot be loaded: {one_line(error)}") from error
    is_here = Path(builder.cache_dir).exists() and not config.streaming
    return None if is_here else builder.info, "the data set does not tell"


def _rows(info: datasets.DatasetInfo, split: str | None, name: str) -> int | None:
    """Return how many images a split has, if the data set tells.

    None for a split such as train+test or train[:10%]: only the data itself tells its size.

    Raises:
        ValueError: If it tells its splits, and this is none of them.
    """
    if split is None or not info.splits:
        return None
    if split not in info.splits:
        if not split.isidentifier():  # a part of a split, or several of them
            return None
        raise ValueError(f"--dataset_name {name} has no split {split}; expected one of {', '.join(info.splits)}.")
    return info.splits[split].num_examples
