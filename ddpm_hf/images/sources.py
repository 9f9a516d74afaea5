"""Find the training images: a data set on the Hub or on disk, a folder of pictures, or the embedded digits."""

import hashlib
from pathlib import Path

import datasets
import numpy as np

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.deep_survey import element_type
from ddpm_hf.images.folders import list_pictures, take_split
from ddpm_hf.images.labels import classes_of_folders, find_labels, label_pictures, name_classes, named_pictures
from ddpm_hf.places import check_pictures
from ddpm_hf.run_files import is_run
from ddpm_hf.terminal import one_line, say

EMBEDDED_DIGITS = Path(__file__).parent.parent / "data" / "mnist_10k.parquet"
SAVED_TO_DISK = ("state.json", "dataset_dict.json")  # written by `save_to_disk` of datasets


def load_dataset(
    config: TrainingConfig, flag: str = "--dataset_split", hint: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    """Load the data set that the options name.

    `dataset_split` chooses the split of a data set, or of a folder of pictures that is sorted into folders of splits,
    such as train and test. All pictures of any other folder are taken.

    Args:
        config ([`TrainingConfig`]): The options of the group "Data".
        flag (`str`): The option that names the split, for the messages.
        hint (`bool`): Whether to say it if the pictures are sorted by class, and the classes are not learned.

    Returns:
        `datasets.Dataset`: The column `image` of undecoded images and, for a class-conditional model, the column
            `label` of type ClassLabel. Or `image` is a column of arrays. With `streaming`, a
            `datasets.IterableDataset`.

    Raises:
        ValueError: If there is no such folder, data set, split or column, if there are no images, or if labels are
            asked for and no image has one.
    """
    if config.train_data_dir:
        return _load_folder(Path(config.train_data_dir), config, flag, hint)
    if config.dataset_name:
        dataset = _load_named(config.dataset_name, config, flag)
    else:
        dataset = datasets.Dataset.from_parquet(str(EMBEDDED_DIGITS), cache_dir=config.cache_dir)

    if not config.streaming and not len(dataset):
        raise ValueError(f"--dataset_name {config.dataset_name} {flag} {config.dataset_split} holds no images.")
    dataset = choose_columns(dataset, config)
    return name_classes(dataset) if config.class_conditional else dataset


def choose_columns(
    dataset: datasets.Dataset | datasets.IterableDataset, config: TrainingConfig
) -> datasets.Dataset | datasets.IterableDataset:
    """Return the data set with the columns `image`, undecoded, and `label`, if labels are asked for.

    Raises:
        ValueError: If there are no such columns.
    """
    columns = dataset.features or {}
    images = [name for name, feature in columns.items() if isinstance(feature, datasets.Image)]
    images += [name for name, feature in columns.items() if element_type(feature)]
    column = config.image_column or (images[0] if images else None)
    if column not in images:
        raise ValueError(f"--image_column {column}: the data set's image columns are {images}, of {list(columns)}.")
    names = {column: "image"}
    if config.class_conditional:
        names[find_labels(dataset, config)] = "label"
    dataset = dataset.select_columns(list(names))
    if isinstance(columns[column], datasets.Image):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset.rename_columns({old: new for old, new in names.items() if old != new})


def _load_folder(folder: Path, config: TrainingConfig, flag: str, hint: bool) -> datasets.Dataset:
    check_pictures(str(folder), None)
    # If both are one folder, the output folder has to change, and the check of that folder says so.
    if is_run(folder) and folder.resolve() != config.folder.resolve():
        raise ValueError(
            f"--train_data_dir {folder} is the folder of a run, and its samples are no training data; name the "
            "folder of the pictures alone."
        )
    found = list_pictures(folder, config.folder)
    if not found.places:
        kinds = found.describe_kinds()
        raise ValueError(f"--train_data_dir {folder}: expected pictures, such as .jpg or .png; found {kinds}.")
    notes = [found.describe_left_out(), take_split(found, folder, config.dataset_split, flag)]
    if config.image_column not in (None, "image"):
        found.keep(named_pictures(found, config.image_column))
    columns: dict[str, list] = {"image": [{"bytes": None, "path": place} for place in found.places.values()]}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    if config.class_conditional:
        columns["label"], note = label_pictures(found, config)
        features["label"] = datasets.Value("string")
        notes.append(note)
    elif hint and (classes := classes_of_folders(found)):
        notes.append(
            f"The pictures of {folder} lie in {len(classes)} folders, such as {classes[0]}. If these are classes, "
            "--class_conditional learns them, too, and draws better pictures in the same time."
        )
    say(notes)
    rows = datasets.Dataset.from_dict(columns, features)
    # The same pictures give the same fingerprint in every process and every run, and so the same cache.
    content = [(place, found.stamps[name]) for name, place in found.places.items()]
    key = hashlib.sha256(repr((content, columns.get("label"))).encode()).hexdigest()[:16]
    dataset = datasets.Dataset(rows.data, info=rows.info, fingerprint=key)
    return name_classes(dataset) if config.class_conditional else dataset


def _load_named(name: str, config: TrainingConfig, flag: str) -> datasets.Dataset | datasets.IterableDataset:
    check_pictures(None, name)
    split = config.dataset_split
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
        reason = ": ".join(
            dict.fromkeys(one_line(cause) for cause in (error, error.__cause__) if isinstance(cause, Exception))
        )
        raise ValueError(f"--dataset_name {name} {flag} {split} cannot be loaded: {reason}") from error
    if dataset.info.builder_name == "imagefolder":
        rule = "where a metadata file lists pictures, `datasets` reads only these"
        say([f"--dataset_name {name}: {rule}. --train_data_dir reads all pictures of a local folder."])
    return dataset


def label_settings(dataset: datasets.Dataset | datasets.IterableDataset) -> dict:
    """Return what labels add to the configuration of a U-Net.

    That is the names of the classes, their number plus one for no label, and the share of each class; a stream does not
    tell the shares.
    """
    if "label" not in dataset.features:
        return {}
    names = dataset.features["label"].names
    settings = {"class_names": names, "num_class_embeds": len(names) + 1}
    if isinstance(dataset, datasets.IterableDataset):
        return settings
    labels = dataset.select_columns("label").with_format("arrow")[:]["label"].drop_null().to_numpy()
    counts = np.bincount(labels[labels >= 0], minlength=len(names))  # -1 stands for no label
    if not counts.any():  # rows were not loaded, as for --dry_run
        return settings
    return {**settings, "class_frequencies": [round(share, 6) for share in (counts / counts.sum()).tolist()]}
