"""Finding the training images: a data set on the Hub or on disk, a folder of pictures, or the embedded digits."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
from tqdm.auto import tqdm

from ddpm_hf.config import TrainingConfig
from ddpm_hf.decoding import UnreadableImage, White, is_greyscale, largest_number
from ddpm_hf.folder import list_pictures, take_split
from ddpm_hf.labels import find_labels, label_pictures, name_classes, named_pictures
from ddpm_hf.run_files import is_run

EMBEDDED_DIGITS = Path(__file__).parent / "data" / "mnist_10k.parquet"
SAVED_TO_DISK = ("state.json", "dataset_dict.json")  # written by `save_to_disk` of datasets


def load_dataset(config: TrainingConfig) -> datasets.Dataset | datasets.IterableDataset:
    """The data set that the options name; with `streaming`, an iterable one.

    Of a data set, the split `dataset_split` is taken. So it is of a folder of pictures that is sorted into folders of
    splits, such as train and test; of any other folder, all pictures are.

    Returns:
        `datasets.Dataset`: A column `image` of undecoded images and, if the model is to be class-conditional, a column
            `label` of type ClassLabel.

    Raises:
        ValueError: If the folder is missing or holds no pictures, or the data set is empty, or has no such split or
            column, or no image has a label that is wanted.
    """
    if config.train_data_dir:
        return _load_folder(Path(config.train_data_dir), config)
    if config.dataset_name:
        dataset = _load_named(config)
    else:
        dataset = datasets.Dataset.from_parquet(str(EMBEDDED_DIGITS), cache_dir=config.cache_dir)

    columns = dataset.features or {}
    images = [name for name, feature in columns.items() if isinstance(feature, datasets.Image)]
    column = config.image_column or (images[0] if images else None)
    if column not in images:
        raise ValueError(f"--image_column {column}: the data set's image columns are {images}, of {list(columns)}.")
    if not config.streaming and not len(dataset):
        raise ValueError(
            f"--dataset_name {config.dataset_name} --dataset_split {config.dataset_split} holds no images."
        )
    names = {column: "image"}
    if config.class_conditional:
        names[find_labels(dataset, config)] = "label"
    dataset = dataset.select_columns(list(names)).cast_column(column, datasets.Image(decode=False))
    dataset = dataset.rename_columns({old: new for old, new in names.items() if old != new})
    return name_classes(dataset) if config.class_conditional else dataset


def _load_folder(folder: Path, config: TrainingConfig) -> datasets.Dataset:
    if not folder.is_dir():
        raise ValueError(f"--train_data_dir {folder}: there is no such folder.")
    output_dir = Path(config.output_dir)
    # Where both are one folder, the output folder is what has to change, and it is refused as such.
    if is_run(folder) and folder.resolve() != output_dir.resolve():
        raise ValueError(
            f"--train_data_dir {folder} is the folder of a run, whose samples are no data; name the folder of the "
            "pictures alone."
        )
    found = list_pictures(folder, output_dir)
    if not found.places:
        kinds = found.describe_kinds()
        raise ValueError(f"--train_data_dir {folder}: expected pictures, such as .jpg or .png; found {kinds}.")
    notes = [found.describe_left_out(), take_split(found, folder, config.dataset_split)]
    if config.image_column not in (None, "image"):
        found.keep(named_pictures(found, config.image_column))
    columns = {"image": [{"bytes": None, "path": place} for place in found.places.values()]}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    if config.class_conditional:
        columns["label"], note = label_pictures(found, config)
        features["label"] = datasets.Value("string")
        notes.append(note)
    say(notes)
    rows = datasets.Dataset.from_dict(columns, features)
    # The same pictures give the same name to what is made of them, in each process and in each run.
    content = [(place, found.stamps[name]) for name, place in found.places.items()]
    key = hashlib.sha256(repr((content, columns.get("label"))).encode()).hexdigest()[:16]
    dataset = datasets.Dataset(rows.data, info=rows.info, fingerprint=key)
    return name_classes(dataset) if config.class_conditional else dataset


def say(sentences: Iterable[str]):
    """Print what is worth it, from one of the processes."""
    if os.environ.get("RANK", "0") == "0":
        for sentence in filter(None, sentences):
            tqdm.write(sentence)


def _load_named(config: TrainingConfig) -> datasets.Dataset | datasets.IterableDataset:
    name, split = config.dataset_name, config.dataset_split
    try:
        if not config.streaming and any((Path(name) / file).exists() for file in SAVED_TO_DISK):
            saved = datasets.load_from_disk(name)
            if not isinstance(saved, datasets.DatasetDict):
                saved = {"train": saved, str(saved.split or "train"): saved}
            if split not in saved:
                raise ValueError(f"expected one of its splits, {', '.join(saved)}")
            return saved[split]
        options = {"split": split, "cache_dir": config.cache_dir, "streaming": config.streaming}
        dataset = datasets.load_dataset(name, config.dataset_config_name, **options)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        causes = dict.fromkeys((str(error), str(error.__cause__ or "")))
        reason = " ".join(" ".join(causes).split())
        raise ValueError(f"--dataset_name {name} --dataset_split {split} cannot be loaded: {reason}") from error
    if dataset.info.builder_name == "imagefolder":
        rule = "where a metadata file lists pictures, `datasets` reads only these"
        say([f"--dataset_name {name}: {rule}. --train_data_dir reads all pictures of a local folder."])
    return dataset


def label_settings(dataset: datasets.Dataset | datasets.IterableDataset) -> dict:
    """What the labels of a data set add to the configuration of a U-Net: their names, and one more, for none."""
    if "label" not in dataset.features:
        return {}
    names = dataset.features["label"].names
    return {"class_names": names, "num_class_embeds": len(names) + 1}


# ---- What is looked at before the images are decoded ----------------------------------------------------------------


def common_mode(dataset: datasets.Dataset | datasets.IterableDataset) -> str:
    """ "L" if images from all over the data set are greyscale, which their headers tell, else "RGB"."""
    greyscale, _ = _survey(dataset)
    return "L" if greyscale else "RGB"


def choose_white(dataset: datasets.Dataset | datasets.IterableDataset) -> White:
    """Choose the numbers that mean white in pictures of 16 bits and of floats, from those that [`common_mode`] sees.

    A picture that is not among these and holds larger numbers is not read wrongly: it is refused by name.
    """
    _, largest = _survey(dataset)
    white = White.above(largest["I"], largest["F"])
    for kind, number, usual in (("16 bits", white.integers, 65535), ("floating-point numbers", white.floats, 1)):
        if number != usual:
            say([f"White is {number:,} in the pictures of {kind}: no larger number was found in those looked at."])
    if 0 <= largest["RGB"] < 64:
        problem = f"of the upper 8 bits, which is all that Pillow reads, none is above {largest['RGB']} of 255"
        say([f"The pictures of 16 bits a colour are nearly black: {problem}. Save them in 8 bits to scale them."])
    return white


_SURVEYS = {}  # by the fingerprint of the data set, so that no picture is opened twice


def _survey(dataset: datasets.Dataset | datasets.IterableDataset) -> tuple[bool, dict[str, float]]:
    """Whether the pictures looked at are all greyscale, and the largest number of each kind, -1 if there are none."""
    key = getattr(dataset, "_fingerprint", None)  # a stream has none
    if key in _SURVEYS:
        return _SURVEYS[key]
    greyscale, largest = True, {"I": -1, "F": -1, "RGB": -1}
    for row in _examples(dataset):
        with suppress(UnreadableImage):
            greyscale = is_greyscale(row["image"]) and greyscale
            for kind, number in largest_number(row["image"]).items():
                largest[kind] = max(number, largest[kind])
    if key is not None:
        _SURVEYS[key] = (greyscale, largest)
    return greyscale, largest


def _examples(dataset: datasets.Dataset | datasets.IterableDataset) -> Iterable[dict]:
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.take(1000)
    # Ten runs of a hundred: a thousand single rows would draw much more of the memory-mapped file into memory.
    starts = np.linspace(0, max(len(dataset) - 100, 0), 10).astype(int)
    return dataset.select(sorted({i for start in starts for i in range(start, min(start + 100, len(dataset)))}))
