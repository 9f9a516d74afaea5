"""Open stored pictures: files, members of ZIP files, addresses on the Hub, and bytes."""

import functools
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

from datasets.download.streaming_download_manager import xopen
from PIL import Image, ImageFile, UnidentifiedImageError

from ddpm_hf.terminal import one_line

IN_LOCAL_ZIP = re.compile(r"zip://(.*)::((?:/|[A-Za-z]:[/\\]).*)", re.DOTALL)  # /one.zip or C:\one.zip
MOST_BYTES = 2**30  # of an encoded picture, since a small ZIP file can hold a picture of any size

Result = TypeVar("Result")


class UnreadableImage(ValueError):
    """An error: a picture is corrupt, cut off, empty, suspiciously large, or of an unknown kind."""


def read_heif():
    """Let Pillow read HEIC and HEIF, the pictures of phones, if pillow-heif is installed."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


read_heif()


@contextmanager
def opened(image: dict | None) -> Iterator[ImageFile.ImageFile]:
    """Open an undecoded image of `datasets` with Pillow."""
    with file_of(image) as file, Image.open(file) as picture:
        yield picture


@contextmanager
def file_of(image: dict | None) -> Iterator[IO[bytes]]:
    """Open the file of an undecoded image of `datasets`."""
    if image is None:
        raise ValueError("there is no image")
    file = _file(image["path"]) if image["bytes"] is None else io.BytesIO(image["bytes"])
    with file:
        size = file.seek(0, io.SEEK_END)
        if not size:
            raise ValueError("the file is empty")
        if size > MOST_BYTES:
            raise ValueError(f"the file has more than {MOST_BYTES:,} bytes")
        file.seek(0)
        yield file


def _file(path: str | None) -> IO[bytes]:
    """Open a file by its path in `datasets`, which may lead into a ZIP file or to the Hub."""
    if path is None:
        raise ValueError("there is no image")
    if "://" not in path:
        if not Path(path).is_file():  # opening a pipe would wait for a writer
            raise ValueError("there is no such file")
        return open(path, "rb")
    if local := IN_LOCAL_ZIP.fullmatch(path):
        member, archive = local.groups()
        opened = _archive(archive, os.stat(archive).st_mtime_ns).open(member)
    else:
        opened = xopen(path, "rb")
    with opened as file:
        return io.BytesIO(file.read(MOST_BYTES + 1))


@functools.lru_cache(maxsize=16)
def _archive(path: str, changed: int) -> zipfile.ZipFile:
    """Open a ZIP file, whose list of contents is read once until the file changes."""
    return zipfile.ZipFile(path)


def attempt(decode: Callable[[], Result]) -> Result:
    """Call a function, and raise all its errors as UnreadableImage: decoders raise any error on broken files."""
    try:
        return decode()
    except UnidentifiedImageError:
        raise UnreadableImage("the file is no picture, or of an unknown format") from None
    except Exception as error:
        raise UnreadableImage(one_line(error)) from error
