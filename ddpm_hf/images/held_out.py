"""The images that are held out: never trained on, and kept to measure what the training does to other images.

They are a share of the images (`--validation_fraction`), or another split (`--validation_split`).
"""

import dataclasses

import datasets
import numpy as np

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.batches import seed_of
from ddpm_hf.images.cache import ImageCache
from ddpm_hf.images.parts import ImagePart
from ddpm_hf.images.sources import load_dataset
from ddpm_hf.images.survey import choose_format
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.terminal import say


def load_split(dataset: datasets.Dataset, form: PixelFormat, config: TrainingConfig) -> datasets.Dataset | None:
    """Load the split that is held out. Return None if the options name none.

    Args:
        dataset (`datasets.Dataset`): The training images, from [`~ddpm_hf.images.sources.load_dataset`].
        form ([`~ddpm_hf.pixel_format.PixelFormat`]): Their pixels.
        config ([`TrainingConfig`]): `validation_split` is read, and the options of the group "Data".

    Returns:
        `datasets.Dataset`: As [`~ddpm_hf.images.sources.load_dataset`] returns it. Its labels are numbers of the
            classes of the training images. An image of another class has no label.

    Raises:
        ValueError: If there is no such split, or its images have other channels.
    """
    name = config.validation_split
    if name is None:
        return None
    of_training: dict = {"validation_split": None, "validation_steps": None, "keep_best": "none"}
    split = load_dataset(dataclasses.replace(config, dataset_split=name, **of_training), flag="--validation_split")
    theirs = choose_format(split, config)
    if (theirs.mode, theirs.channels) != (form.mode, form.channels):
        kinds = {"L": "greyscale", "RGB": "colour"}
        holds, trains = (kinds.get(each.mode, f"{each.describe()},") for each in (theirs, form))
        raise ValueError(f"--validation_split {name} holds {holds} pictures, and those to train on are {trains}.")
    if config.train_data_dir and (both := _paths(dataset) & _paths(split)):
        raise ValueError(
            f"--validation_split {name}: {len(both):,} of its pictures are trained on, too (--dataset_split "
            f"{config.dataset_split}), such as {min(both)}; name a split of other pictures."
        )
    return _with_classes_of(dataset, split, name) if "label" in dataset.features else split


def _paths(dataset: datasets.Dataset) -> set[str]:
    return {image["path"] for image in dataset["image"]}


def _with_classes_of(dataset: datasets.Dataset, split: datasets.Dataset, name: str) -> datasets.Dataset:
    """Return the split with the numbers that the training images have for its classes."""
    ours, theirs = dataset.features["label"], split.features["label"]
    if ours.names == theirs.names:
        return split
    if unknown := [each for each in theirs.names if each not in ours.names]:
        say(
            [f"--validation_split {name}: no training picture is of {', '.join(unknown)}; such pictures have no label."]
        )
    numbers = {i: ours.names.index(each) for i, each in enumerate(theirs.names) if each in ours.names}
    labels = [numbers.get(label, -1) for label in split["label"]]
    key = f"{split._fingerprint}-{dataset._fingerprint}"  # the same in every process, and so the same cache
    return split.remove_columns("label").add_column("label", labels, new_fingerprint=key, feature=ours)


def count_images(total: int | None, of_split: int | None, config: TrainingConfig) -> tuple[int | None, int]:
    """Return how many images are trained on, None for a stream, and how many are held out.

    Images that cannot be read are counted, too, since none is decoded yet.

    Args:
        total (`int`, *optional*): Images of the data set; None for a stream.
        of_split (`int`, *optional*): Images of the split that is held out, if there is one.
        config ([`TrainingConfig`]): `validation_fraction` counts.

    Raises:
        ValueError: If nothing is left to be trained on or to be held out.
    """
    fraction = config.validation_fraction
    if total is None or of_split is not None or fraction is None:
        return total, of_split or 0
    count = round(total * fraction)
    if not 0 < count < total:
        nothing = "holds out none" if not count else "leaves none to train on"
        raise ValueError(
            f"--validation_fraction {fraction:g} of {total:,} pictures {nothing}; one picture is {1 / total:.2g} of "
            "them."
        )
    return total - count, count


def held_out_numbers(total: int, count: int, seed: int, fingerprint: str) -> np.ndarray:
    """Choose which images are held out. It is a fixed function of the arguments, on every process and machine.

    Args:
        total (`int`): How many images there are.
        count (`int`): How many of them are held out.
        seed (`int`): The run's seed.
        fingerprint (`str`): The hash of the images.

    Returns:
        `numpy.ndarray`: `(count,)` int64, ascending.
    """
    order = np.random.default_rng(seed_of(seed, f"held out of {fingerprint}", 0)).permutation(total)
    return np.sort(order[:count])


def describe_held_out(held_out: ImageCache | ImagePart, config: TrainingConfig) -> dict:
    """Return how many images are held out, and what else is needed to find them again, for run.json."""
    if isinstance(held_out, ImagePart):
        whole = held_out.whole
        return {"images": len(held_out), "of": len(whole), "fingerprint": whole.fingerprint, "seed": config.seed}
    return {"images": len(held_out), "split": config.validation_split}


def part_images(images: ImageCache, count: int, seed: int, fingerprint: str) -> tuple[ImagePart, ImagePart]:
    """Return the part of the images that is trained on, and the part of `count` images that is held out.

    See [`held_out_numbers`].

    Raises:
        ValueError: If nothing is left to train on, since too many images cannot be read.
    """
    if count >= len(images):
        raise ValueError(
            f"{len(images):,} pictures can be read, and --validation_fraction holds out {count:,}; none is left to "
            "train on."
        )
    held_out = held_out_numbers(len(images), count, seed, fingerprint)
    trained_on = np.setdiff1d(np.arange(len(images)), held_out, assume_unique=True)
    return ImagePart(images, trained_on), ImagePart(images, held_out)
