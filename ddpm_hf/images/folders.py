"""Find the pictures in a folder, also those in ZIP files, and say which files are left out."""

import os
import re
import stat
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from ddpm_hf.run_files import is_run
from ddpm_hf.terminal import one_line

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_NAMES = {name for names in SPLITS.values() for name in names}

ARRAYS = ".npy"  # the suffix of NumPy files

# Files that often lie beside pictures. Nobody expects to train on them, so they are not mentioned.
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
    """The files in a folder by their names: paths in the folder, with / between the parts. A ZIP file is a folder.

    Attributes:
        places (`dict[str, str]`): The pictures, sorted, and where to read each: a path, or `zip://member::archive`.
        stamps (`dict[str, tuple]`): The size and time of change of the file that each picture is in.
        metadata (`dict[str, str]`): The metadata files, and where to read each.
        arrays (`dict[str, str]`): NumPy files, and where to read each. They are pictures in a folder without others.
        left_out (`Counter`): How many files of each kind are left out.
    """

    places: dict[str, str] = field(default_factory=dict)
    stamps: dict[str, tuple] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, str] = field(default_factory=dict)
    left_out: Counter = field(default_factory=Counter)

    def keep(self, names: list[str]):
        """Keep these pictures only."""
        self.places = {name: self.places[name] for name in names}

    def describe_left_out(self) -> str:
        """Say in a sentence what is left out. Return an empty text if nothing is worth a mention."""
        parts = []
        for kind, count in sorted(self.left_out.items()):
            if kind not in _SIDECARS:
                plural = "" if count == 1 or kind[0] == "." else "s"
                parts.append(f"{count:,} {kind}{plural}{_hint(kind)}")
        return f"Left out of pictures: {', '.join(parts)}." if parts else ""

    def describe_kinds(self) -> str:
        """Say what a folder without pictures holds."""
        kinds = ", ".join(f"{kind}{_hint(kind)}" for kind in sorted(self.left_out))
        return f"only {kinds}" if kinds else "no files"


def _hint(kind: str) -> str:
    return f" ({_HINTS[kind]})" if kind in _HINTS else ""


def picture_suffixes() -> set[str]:
    """Return the suffixes of the formats that Pillow can read here, in small letters."""
    forms = Image.registered_extensions()
    return {suffix for suffix, form in forms.items() if form in Image.OPEN and form != "HDF5"}


def list_pictures(folder: Path, output_dir: Path) -> Pictures:
    """List the pictures in a folder and its sub-folders. Links to folders may form circles and are not followed.

    Args:
        folder (`Path`): The folder.
        output_dir (`Path`): The folder of this run. It is left out, as are the folders of other runs: their samples are
            not training data.
    """
    root, output_dir = folder.resolve(), output_dir.resolve()
    found, suffixes = Pictures(), picture_suffixes()

    def skip(error: OSError):
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
            found.left_out["empty folder"] += 1  # with the name of a picture
        within = Path(at).relative_to(root).as_posix().removeprefix(".")
        for name in files:
            _add_file(found, f"{within}/{name}".removeprefix("/"), os.path.join(at, name), suffixes)
    if found.places and found.arrays:
        found.left_out[ARRAYS] += len(found.arrays)
    found.places = dict(sorted((found.places or found.arrays).items()))
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
    except Exception as error:  # a broken file can cause any error
        found.left_out[f"broken archive, {name!r} ({one_line(error)})"] += 1
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
    elif kind == ARRAYS:
        found.arrays[name], found.stamps[name] = place, stamp
    elif file in METADATA:
        found.metadata[name] = place
    elif not kind:
        found.left_out["suffixless file"] += 1
    else:
        found.left_out[kind if re.fullmatch(r"\.\w{1,12}", kind) else "file of another kind"] += 1


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_hidden_folder(name: str) -> bool:
    """Return whether a folder is hidden; `datasets` skips the same ones."""
    return name.startswith((".", "__"))


def take_split(found: Pictures, folder: Path, split: str, flag: str = "--dataset_split") -> str:
    """Keep the pictures of a split only, if all pictures are in folders with names of splits.

    Args:
        found ([`Pictures`]): The pictures in the folder. Those of other splits are removed from it.
        folder (`Path`): The folder, for the messages.
        split (`str`): The split: train, or test, or train+test, ...
        flag (`str`): The option that names it, for the messages.

    Returns:
        `str`: A sentence that says which pictures were taken; an empty text if no picture is in a folder of a split, or
            if all splits were taken.

    Raises:
        ValueError: If there is no such split.
    """
    tops = {name: folder_name(PurePosixPath(name).parts[0]) if "/" in name else "" for name in found.places}
    splits = sorted(set(tops.values()))
    if not {top.lower() for top in splits} <= SPLIT_NAMES:
        if split != "train":
            raise ValueError(
                f"{flag} {split}: {folder} is not sorted into folders of splits, such as train and test; "
                "leave the option out to take all of its pictures, or name the folder to take in --train_data_dir."
            )
        some = [top for top in splits if top.lower() in SPLIT_NAMES]
        if not some:
            return ""
        return f"All pictures of {folder} are taken, also those in {', '.join(some)}: not all are in folders of splits."
    chosen = []
    for part in split.split("+"):
        wanted = next((names for names in SPLITS.values() if part in names), (part,))
        same = [top for top in splits if top.lower() in wanted]
        if not same:
            raise ValueError(
                f"{flag} {split}: {folder} holds the folders {', '.join(splits)}; expected one of these "
                "splits, or several with + between them."
            )
        chosen += same
    rest = sorted(set(splits) - set(chosen))
    if not rest:
        return ""
    counts = Counter(tops.values())
    found.keep([name for name, top in tops.items() if top in chosen])
    taken, others = (", ".join(f"{top} ({counts[top]:,})" for top in names) for names in (sorted(set(chosen)), rest))
    return f"{flag} {split} takes the pictures of {folder} in {taken}; not those in {others}."


def folder_name(part: str) -> str:
    """Return the name of a folder. A ZIP file counts as a folder; its name is without the suffix."""
    return part[:-4] if part.lower().endswith(".zip") else part
