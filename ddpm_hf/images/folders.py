"""A folder of pictures: which of its files are pictures, also those in ZIP files, and which are left out."""

import os
import re
import stat
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from ddpm_hf.run_files import is_run

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_NAMES = {name for names in SPLITS.values() for name in names}

# Files that lie beside pictures and are none: nobody expects to train on them, so they are not mentioned.
_SIDECARS = {".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".txt", ".xml", ".yaml", ".yml"}
_HEIF = "pip install pillow-heif reads them"
_TAR = "unpack it, or use .zip"
_HINTS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), _HEIF),
    **dict.fromkeys((".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"), _TAR),
    "linked folder": "name one itself, or copy its pictures",
    "misnamed file": "the name is not UTF-8",
    "run picture": "in the folders of runs",
}


@dataclass
class Pictures:
    """What a folder holds. A file goes by its path in the folder, with / between the parts; a ZIP file is a folder.

    Attributes:
        places (`dict[str, str]`): The pictures, sorted, and where each is read from: a path, or `zip://member::archive`.
        stamps (`dict[str, tuple]`): Size and time of change of the file that each picture is read from.
        metadata (`dict[str, str]`): The metadata files, and where each is read from.
        left_out (`Counter`): How many of which kind are no pictures.
    """

    places: dict[str, str] = field(default_factory=dict)
    stamps: dict[str, tuple] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    left_out: Counter = field(default_factory=Counter)

    def keep(self, names: list[str]):
        """Take these of the pictures only."""
        self.places = {name: self.places[name] for name in names}

    def describe_left_out(self) -> str:
        """What is left out, as a sentence; nothing if that is not worth one."""
        parts = []
        for kind, count in sorted(self.left_out.items()):
            if kind not in _SIDECARS:
                plural = "" if count == 1 or kind[0] == "." else "s"
                parts.append(f"{count:,} {kind}{plural}{_hint(kind)}")
        return f"Left out of pictures: {', '.join(parts)}." if parts else ""

    def describe_kinds(self) -> str:
        """What the folder holds if it holds no pictures."""
        kinds = ", ".join(f"{kind}{_hint(kind)}" for kind in sorted(self.left_out))
        return f"only {kinds}" if kinds else "no files"


def _hint(kind: str) -> str:
    return f" ({_HINTS[kind]})" if kind in _HINTS else ""


def picture_suffixes() -> set[str]:
    """The suffixes of the formats that are read here, in small letters."""
    forms = Image.registered_extensions()
    return {suffix for suffix, form in forms.items() if form in Image.OPEN and form != "HDF5"}


def list_pictures(folder: Path, output_dir: Path) -> Pictures:
    """List the pictures in a folder and in its sub-folders. Links to folders are not followed, since they may go round.

    Args:
        folder (`Path`): The folder.
        output_dir (`Path`): A folder within it that is left out, as the folders of runs are: their samples are none of
            the data.
    """
    root, output_dir = folder.resolve(), output_dir.resolve()
    found, suffixes = Pictures(), picture_suffixes()

    def skip(error):
        found.left_out["unreadable folder"] += 1

    for at, folders, files in os.walk(root, onerror=skip):
        for name in list(folders):
            path = Path(at, name)
            if path == output_dir or is_run(path):
                inside = sum(_suffix(file) in suffixes for _, _, files in os.walk(path) for file in files)
                found.left_out.update({"run picture": inside} if inside else {})
            elif path.is_symlink():
                found.left_out["linked folder"] += 1
            elif _is_hidden_folder(name):
                found.left_out["hidden folder"] += 1
            else:
                continue
            folders.remove(name)
        if _suffix(at) in suffixes and not folders and not files:
            found.left_out["empty folder"] += 1  # called like a picture
        within = Path(at).relative_to(root).as_posix().removeprefix(".")
        for name in files:
            _add_file(found, f"{within}/{name}".removeprefix("/"), os.path.join(at, name), suffixes)
    found.places = dict(sorted(found.places.items()))
    return found


def _add_file(found: Pictures, name: str, path: str, suffixes: set[str]):
    try:
        name.encode()
        status = os.stat(path)
    except UnicodeEncodeError:
        found.left_out["misnamed file"] += 1
        return
    except OSError:
        found.left_out["broken link"] += 1
        return
    if not stat.S_ISREG(status.st_mode):
        found.left_out["special file"] += 1
        return
    stamp = (status.st_size, status.st_mtime_ns)
    if _suffix(name) != ".zip":
        _add(found, name, path, stamp, suffixes)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member.filename for member in archive.infolist() if not member.is_dir()]
    except Exception as error:  # a broken file makes it stumble over anything
        found.left_out[f"broken archive, {name!r} ({' '.join(str(error).split())})"] += 1
        return
    for member in members:
        if any(map(_is_hidden_folder, PurePosixPath(member).parts[:-1])):
            found.left_out["hidden folder"] = max(1, found.left_out["hidden folder"])
        else:
            _add(found, f"{name}/{member}", f"zip://{member}::{path}", stamp, suffixes)


def _add(found: Pictures, name: str, place: str, stamp: tuple, suffixes: set[str]):
    file, kind = name.rsplit("/", 1)[-1], _suffix(name)
    if file.startswith("."):
        found.left_out.update(["hidden picture"] if kind in suffixes else [])
    elif kind in suffixes:
        found.places[name], found.stamps[name] = place, stamp
    elif file in METADATA:
        found.metadata[name] = place
    elif not kind:
        found.left_out["suffixless file"] += 1
    else:
        found.left_out[kind if re.fullmatch(r"\.\w{1,12}", kind) else "file of another kind"] += 1


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_hidden_folder(name: str) -> bool:
    """Whether `datasets` would not look into it either."""
    return name.startswith((".", "__"))


def take_split(found: Pictures, folder: Path, split: str) -> str:
    """Take the pictures of a split only, if all pictures are in folders that are called like splits.

    Args:
        found ([`Pictures`]): The pictures in the folder; those of other splits are taken away.
        folder (`Path`): Its name, for what is said.
        split (`str`): The value of --dataset_split: train, or test, or train+test, ...

    Returns:
        `str`: What was taken, as a sentence; nothing if that is all.

    Raises:
        ValueError: If there is no such split.
    """
    tops = {name: folder_name(PurePosixPath(name).parts[0]) if "/" in name else "" for name in found.places}
    splits = sorted(set(tops.values()))
    if not {top.lower() for top in splits} <= SPLIT_NAMES:
        if split != "train":
            raise ValueError(
                f"--dataset_split {split}: {folder} is not sorted into folders of splits, such as train and test; "
                "leave the option out to take all of its pictures, or name the folder to take in --train_data_dir."
            )
        some = [top for top in splits if top.lower() in SPLIT_NAMES]
        if not some:
            return ""
        return f"All pictures of {folder} are taken, also those in {', '.join(some)}, since others lie beside them."
    chosen = []
    for part in split.split("+"):
        wanted = next((names for names in SPLITS.values() if part in names), (part,))
        same = [top for top in splits if top.lower() in wanted]
        if not same:
            raise ValueError(
                f"--dataset_split {split}: {folder} holds the folders {', '.join(splits)}; expected one of these "
                "splits, or several with + between them."
            )
        chosen += same
    rest = sorted(set(splits) - set(chosen))
    if not rest:
        return ""
    counts = Counter(tops.values())
    found.keep([name for name, top in tops.items() if top in chosen])
    taken, others = (", ".join(f"{top} ({counts[top]:,})" for top in names) for names in (sorted(set(chosen)), rest))
    return f"--dataset_split {split} takes the pictures of {folder} in {taken}; not those in {others}."


def folder_name(part: str) -> str:
    """The name of a folder; a ZIP file counts as one, without its suffix."""
    return part[:-4] if part.lower().endswith(".zip") else part
