"""Finding the training images: a data set on the Hub or on disk, a folder of pictures, or the embedded digits."""

import glob
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from ddpm_hf.config import TrainingConfig
from ddpm_hf.decoding import UnreadableImage, is_greyscale

EMBEDDED_DIGITS = Path(__file__).parent / "data" / "mnist_10k.parquet"
PICTURE_SUFFIXES = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
SAVED_TO_DISK = ("state.json", "dataset_dict.json")  # written by `save_to_disk` of datasets


def load_dataset(config: TrainingConfig) -> datasets.Dataset | datasets.IterableDataset:
    """The data set that the options name; with `streaming`, an iterable one.

    Returns:
        `datasets.Dataset`: A column `image` of undecoded images and, if the model is to be class-conditional, a column
            `label` of type ClassLabel.

    Raises:
        ValueError: If the folder is missing or holds no pictures, or the data set is empty, or has no such split or
            column.
    """
    if config.train_data_dir:
        dataset = _load_folder(Path(config.train_data_dir), config.cache_dir)
    elif config.dataset_name:
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
    is_named = not config.class_conditional or isinstance(dataset.features["label"], datasets.ClassLabel)
    return dataset if is_named else dataset.class_encode_column("label")


def _load_folder(folder: Path, cache_dir: str | None) -> datasets.Dataset:
    if not folder.is_dir():
        raise ValueError(f"--train_data_dir {folder}: there is no such folder.")
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if path.is_file()}
    if not suffixes & PICTURE_SUFFIXES:
        found = f"only {', '.join(sorted(s or 'files without a suffix' for s in suffixes))}" if suffixes else "no files"
        raise ValueError(f"--train_data_dir {folder}: expected pictures, such as .jpg or .png; found {found}.")
    everything = {"train": glob.escape(str(folder.resolve())) + "/**"}
    return datasets.load_dataset("imagefolder", data_files=everything, split="train", cache_dir=cache_dir)


def _load_named(config: TrainingConfig) -> datasets.Dataset | datasets.IterableDataset:
    name, split = config.dataset_name, config.dataset_split
    try:
        if not config.streaming and any((Path(name) / file).exists() for file in SAVED_TO_DISK):
            saved = datasets.load_from_disk(name)
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        options = {"split": split, "cache_dir": config.cache_dir, "streaming": config.streaming}
        return datasets.load_dataset(name, config.dataset_config_name, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--dataset_name {name} --dataset_split {split} cannot be loaded: {reason}") from error


def find_labels(dataset: datasets.Dataset | datasets.IterableDataset, config: TrainingConfig) -> str:
    """The column of the labels.

    Raises:
        ValueError: If there is none, or it is of another type than ClassLabel, text or whole numbers; when streaming,
            of another than ClassLabel, since the others have to be collected first.
    """
    columns = dataset.features or {}
    classes = [name for name, feature in columns.items() if isinstance(feature, datasets.ClassLabel)]
    column = config.label_column or (classes[0] if classes else None)
    values = () if config.streaming else ("string", "large_string", "int8", "int16", "int32", "int64", "uint8")
    others = [name for name, feature in columns.items() if getattr(feature, "dtype", None) in values]
    if column not in classes + others:
        raise ValueError(
            f"--class_conditional --label_column {column}: the columns that can be labels are "
            f"{list(dict.fromkeys(classes + others))}, of {list(columns)}; name one with --label_column."
        )
    return column


def label_settings(dataset: datasets.Dataset | datasets.IterableDataset) -> dict:
    """What the labels of a data set add to the configuration of a U-Net: their names, and one more, for none."""
    if "label" not in dataset.features:
        return {}
    names = dataset.features["label"].names
    return {"class_names": names, "num_class_embeds": len(names) + 1}


def common_mode(dataset: datasets.Dataset | datasets.IterableDataset) -> str:
    """ "L" if images from all over the data set are greyscale, which their headers tell, else "RGB"."""
    if isinstance(dataset, datasets.IterableDataset):
        rows = dataset.take(1000)
    else:
        # Ten runs of a hundred: a thousand single rows would draw much more of the memory-mapped file into memory.
        starts = np.linspace(0, max(len(dataset) - 100, 0), 10).astype(int)
        rows = dataset.select(sorted({i for start in starts for i in range(start, min(start + 100, len(dataset)))}))
    for row in rows:
        with suppress(UnreadableImage):
            if not is_greyscale(row["image"]):
                return "RGB"
    return "L"
