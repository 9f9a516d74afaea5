"""Labels of the training images: columns, folders by class and metadata files become the classes of a model."""

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets.download.streaming_download_manager import xopen

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.folders import SPLIT_NAMES, Pictures, folder_name
from ddpm_hf.terminal import one_line

MANY = 20  # pictures in a folder that is taken for a class
BY_CLASS = "give --train_data_dir a folder for each class (pics/cat/1.png, pics/dog/1.png)"

# ---- Columns -------------------------------------------------------------------------------------------------------


def find_labels(dataset: datasets.Dataset | datasets.IterableDataset, config: TrainingConfig) -> str:
    """Return the name of the column of labels.

    Raises:
        ValueError: If there is no such column, or its type is not ClassLabel, text, whole number or true and false. A
            stream needs ClassLabel, since the other types have to be collected first.
    """
    columns = dataset.features or {}
    classes = [name for name, feature in columns.items() if isinstance(feature, datasets.ClassLabel)]
    column = config.label_column or (classes[0] if classes else None)
    others = [] if config.streaming else [name for name, feature in columns.items() if _can_be_labels(feature)]
    if column is None or column not in classes + others:
        shown = [column] if column in columns else columns
        types = ", ".join(f"{name} holds {_type_of(columns[name])}" for name in shown)
        fitting = "ClassLabel" if config.streaming else "ClassLabel, texts, whole numbers, or true and false"
        raise ValueError(
            f"--class_conditional --label_column {column}: the columns that can be labels are "
            f"{list(dict.fromkeys(classes + others))}, of {list(columns)}; {types}. Labels are {fitting}. Name a "
            f"column of these with --label_column, or {BY_CLASS}."
        )
    return column


def _can_be_labels(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and _is_label(feature.pa_type)


def _is_label(kind: pa.DataType) -> bool:
    texts = pa.types.is_string, pa.types.is_large_string
    return any(is_kind(kind) for is_kind in (*texts, pa.types.is_integer, pa.types.is_boolean))


def _type_of(feature: Any) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def name_classes(dataset: datasets.Dataset | datasets.IterableDataset) -> datasets.Dataset | datasets.IterableDataset:
    """Turn the column `label` into a ClassLabel, with the names sorted as [`sort_names`] does.

    Raises:
        ValueError: If no image has a label, or the names of the classes are those of splits.
    """
    if isinstance(dataset, datasets.IterableDataset):
        _refuse_splits(dataset.features["label"].names)
        return dataset
    column = dataset.select_columns("label").with_format("arrow")[:]["label"]
    if isinstance(dataset.features["label"], datasets.ClassLabel):
        _refuse_splits(dataset.features["label"].names)
        labelled = pa.compute.any(pa.compute.greater_equal(column, 0)).as_py()
    else:
        texts = pa.compute.cast(column, pa.string())
        names = sort_names(texts.unique().drop_null().to_pylist())
        _refuse_splits(names)
        # Data sets write -1 for an image without a label.
        labelled = names not in ([], ["-1"])
        numbers = pa.compute.index_in(texts, pa.array(names, pa.string())).cast(pa.int64())
        key = hashlib.sha256(repr((dataset._fingerprint, names)).encode()).hexdigest()[:16]
        dataset = dataset.remove_columns("label").add_column(
            "label", numbers.to_pylist(), new_fingerprint=key, feature=datasets.ClassLabel(names=names)
        )
    if not labelled:
        raise ValueError(
            "--class_conditional: no image has a label; take another split with --dataset_split, name another column "
            f"with --label_column, or {BY_CLASS}."
        )
    return dataset


def sort_names(names: Iterable[str]) -> list[str]:
    """Sort the names of classes: as numbers if all are whole numbers, else as texts."""
    names = sorted(names)
    return sorted(names, key=int) if all(re.fullmatch("-?[0-9]{1,99}", name) for name in names) else names


def _refuse_splits(names: list[str]):
    if names and {name.lower() for name in names} <= SPLIT_NAMES:
        raise ValueError(
            f"--class_conditional: the folders {', '.join(names)} are splits, not classes; "
            f"{BY_CLASS}, or name a column with --label_column."
        )


# ---- Folders -------------------------------------------------------------------------------------------------------


def label_pictures(found: Pictures, config: TrainingConfig) -> tuple[list[str | None], str]:
    """Return the labels of the pictures in a folder: those of its metadata files, or else the names of the sub-folders.

    Returns:
        `tuple`: A label for each picture, or None; and a note, which may be empty.

    Raises:
        ValueError: If there are no labels, or a metadata file is broken.
    """
    tables = read_metadata(found)
    column, folder = config.label_column or "label", config.train_data_dir
    if any(column in table.column_names for table in tables.values()):
        labels = _labels_of_metadata(found, tables, column, config.image_column)
        missing = sum(labels.get(name) is None for name in found.places)
        said = f"Without a label in the metadata of {folder}: {missing:,} of {len(found.places):,} pictures."
        return [labels.get(name) for name in found.places], said if missing else ""
    if column != "label":
        columns = sorted({name for table in tables.values() for name in table.column_names})
        raise ValueError(
            f"--label_column {column}: the metadata of {folder} holds the columns {columns}; name one of these, or "
            f"{BY_CLASS} and leave the option out."
        )
    parents = [PurePosixPath(name).parent for name in found.places]
    classes: list[str | None] = [folder_name(parent.name) for parent in parents]
    if len({len(parent.parts) for parent in parents}) > 1:
        problem = "some lie deeper than others"
    elif len(set(classes)) == 1:
        problem = f"all lie in {classes[0] or 'one folder'}"
    else:
        return classes, ""
    raise ValueError(
        f"--class_conditional --label_column {config.label_column}: the pictures of {folder} are not sorted by class: "
        f"{problem}, and the only column is image. Make a folder for each class (pics/cat/1.png, "
        "pics/dog/1.png), or write metadata.csv with the columns file_name and label, or another that --label_column "
        "names."
    )


def classes_of_folders(found: Pictures) -> list[str]:
    """Return the names of the folders that the pictures are sorted into, if these look like classes: many in each."""
    counts = Counter(PurePosixPath(name).parent for name in found.places)
    depths = {len(parent.parts) for parent in counts}
    if len(counts) < 2 or len(depths) > 1 or min(counts.values()) < MANY:
        return []
    names = sorted({folder_name(parent.name) for parent in counts})
    return [] if {name.lower() for name in names} <= SPLIT_NAMES else names


def named_pictures(found: Pictures, image_column: str) -> list[str]:
    """Return the pictures that the metadata files of a folder name in the column `<image_column>_file_name`.

    Raises:
        ValueError: If there is no such column, or a metadata file is broken.
    """
    tables = read_metadata(found)
    columns = {name for table in tables.values() for name in table.column_names}
    if f"{image_column}_file_name" not in columns:
        images = ["image", *(name.removesuffix("_file_name") for name in columns if name.endswith("_file_name"))]
        raise ValueError(
            f"--image_column {image_column}: the data set's image columns are {images}; name one of these."
        )
    named = {name for at, table in tables.items() for name in _files_of(found, at, table, image_column)}
    return [name for name in found.places if name in named]


def read_metadata(found: Pictures) -> dict[str, pa.Table]:
    """Read the metadata files of a folder of pictures.

    Raises:
        ValueError: If a file is broken. The message names it.
    """
    return {name: _read_table(name, place) for name, place in found.metadata.items()}


def _read_table(name: str, place: str) -> pa.Table:
    try:
        with xopen(place, "rb") as file:
            if name.endswith(".parquet"):
                return pa.parquet.read_table(file)
            if name.endswith(".jsonl"):
                return pa.json.read_json(file)
            texts = {"file_name": pa.string(), "image_file_name": pa.string()}
            nothing = {"null_values": [""], "strings_can_be_null": True}
            return pa.csv.read_csv(file, convert_options=pa.csv.ConvertOptions(column_types=texts, **nothing))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"{place} cannot be read: {one_line(error)}. Mend it; without --class_conditional it is not needed."
        ) from error


def _labels_of_metadata(
    found: Pictures, tables: dict[str, pa.Table], column: str, image_column: str | None
) -> dict[str, str | None]:
    labels: dict[str, str | None] = {}
    for at, table in tables.items():
        if column in table.column_names:
            kind = table.schema.field(column).type
            if not (_is_label(kind) or pa.types.is_null(kind)):
                raise ValueError(
                    f"--label_column {column}: this column of {found.metadata[at]} holds {kind}, and labels are texts, "
                    f"whole numbers, or true and false; name another column, or {BY_CLASS}."
                )
            values = table.column(column).cast(pa.string()).to_pylist()
            labels.update(zip(_files_of(found, at, table, image_column), values))
    return labels


def _files_of(found: Pictures, at: str, table: pa.Table, image_column: str | None) -> list[str]:
    """Return the names in the folder of the pictures that a metadata file lists."""
    choices = (f"{image_column or 'image'}_file_name", "file_name")
    column = next((name for name in choices if name in table.column_names), None)
    if column is None:
        raise ValueError(
            f"{found.metadata[at]} has the columns {table.column_names}; expected file_name, the picture of each row."
        )
    files = [posixpath.normpath(posixpath.join(posixpath.dirname(at), str(name))) for name in table[column].to_pylist()]
    unknown = [file for file in files if file not in found.stamps]
    if unknown:
        others = f" and {len(unknown) - 1:,} others" if unknown[1:] else ""
        raise ValueError(
            f"{found.metadata[at]} names {unknown[0]!r}{others}: there is no such picture in the folder. Write each "
            "as its path from the folder of this file."
        )
    return files
