"""Make a process on Linux as strict as on Windows: what only POSIX has is taken away, what Windows refuses fails.

The rules for files hold inside of one folder, so that other libraries keep their temporary files.
"""

import builtins
import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import signal
import stat
import sys
from pathlib import Path

import filelock

NO_SIGNALS = {name for name in dir(signal) if name.startswith("SIG") and name.isalnum()} - {
    *("SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM")
}
NO_NAMES = ("sched_getaffinity", "killpg", "getuid", "geteuid", "O_DIRECTORY", "fork")
NO_MODULES = ("fcntl", "resource", "pwd", "grp")
LONGEST = 259  # characters of a path; a folder has to leave 12 for a file in it
REFUSED = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$|^(CON|PRN|AUX|NUL|COM\d|LPT\d)(\.|$)', re.IGNORECASE)


def refuse(number: int, reason: str, *paths):
    raise OSError(number, f"{reason} (like Windows)", *map(str, paths[:1]))


class Files:
    """The functions that open, move and delete files, with the rules of Windows for what is in a folder."""

    def __init__(self, folder: Path):
        self.folder = os.path.realpath(folder)
        self.open_file, self.open, self.fsync = io.open, os.open, os.fsync
        self.mkdir, self.rmdir, self.unlink = os.mkdir, os.rmdir, os.unlink
        self.rename, self.replace = os.rename, os.replace

    def start(self):
        builtins.open = io.open = self.like_open_file
        os.open, os.fsync = self.like_open, self.like_fsync
        os.mkdir, os.rmdir = self.like_mkdir, self.like_rmdir
        os.unlink = os.remove = self.like_unlink
        os.rename, os.replace = self.like_rename, self.like_replace
        os.symlink = os.link = self.like_link
        shutil._use_fd_functions = False  # rmtree opens folders with them

    def like_link(self, source, *rest, **options):
        refuse(errno.EPERM, "a required privilege is not held", source)

    def inside(self, path) -> str | None:
        """Return the whole path of what is in the folder."""
        if isinstance(path, int):
            return None
        path = os.path.abspath(os.fsdecode(path))
        return path if f"{path}/".startswith(f"{self.folder}/") else None

    def check_name(self, path, room: int = 0):
        if path := self.inside(path):
            if REFUSED.search(os.path.basename(path)):
                refuse(errno.EINVAL, "the file name is incorrect", path)
            self.check_length(path, room)

    def check_length(self, path: str, room: int = 0):
        if len(path) > LONGEST - room:
            refuse(errno.ENOENT, "the path is too long", path)

    def check_unused(self, path):
        """Refuse a file that this process has open or in its memory, and a folder with such a file."""
        if path := self.inside(path):
            used = []
            for number in os.listdir("/proc/self/fd"):
                with contextlib.suppress(FileNotFoundError):  # another thread has closed it
                    used.append(os.readlink(f"/proc/self/fd/{number}"))
            with self.open_file("/proc/self/maps", encoding="utf-8") as maps:
                used += [line.rstrip("\n").split(maxsplit=5)[-1] for line in maps if "/" in line]
            if held := [each for each in used if f"{each}/".startswith(f"{path}/")]:
                refuse(errno.EACCES, f"another process uses {held[0]}", path)

    def like_open_file(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest, **options):
        if path := self.inside(file):
            self.check_name(path) if set(mode) & set("wax") else self.check_length(path)
            if "b" not in mode:
                encoding = "cp1252" if encoding in (None, "locale") else encoding
                newline = "\r\n" if newline is None and set(mode) & set("wax") else newline
        return self.open_file(file, mode, buffering, encoding, errors, newline, *rest, **options)

    def like_open(self, path, flags, *rest, **options):
        if self.inside(path):
            self.check_name(path)
            if os.path.isdir(path):
                refuse(errno.EACCES, "a folder cannot be opened", path)
        return self.open(path, flags, *rest, **options)

    def like_fsync(self, file):
        number = file if isinstance(file, int) else file.fileno()
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            refuse(errno.EBADF, "a file that is open for reading only cannot be synced")
        self.fsync(number)

    def like_mkdir(self, path, *rest, **options):
        self.check_name(path, room=12)
        self.mkdir(path, *rest, **options)

    def like_rmdir(self, path, **options):
        self.check_unused(path)
        self.rmdir(path, **options)

    def like_unlink(self, path, **options):
        self.check_unused(path)
        if self.inside(path) and os.path.exists(path) and not os.stat(path).st_mode & stat.S_IWRITE:
            refuse(errno.EACCES, "a file that may not be written cannot be deleted", path)
        self.unlink(path, **options)

    def like_rename(self, source, target, **options):
        if self.inside(target) and os.path.lexists(target):
            refuse(errno.EEXIST, "a file that exists cannot be renamed to", target)
        self.like_replace(source, target, **options)

    def like_replace(self, source, target, **options):
        for path in (source, target):
            self.check_unused(path)
        self.check_name(target, room=12 if os.path.isdir(source) else 0)
        if self.inside(target) and os.path.isdir(target):
            refuse(errno.EACCES, "a folder cannot be replaced", target)
        self.replace(source, target, **options)


def be_like_windows(folder: Path):
    """Change this process for good. Libraries that look for names of POSIX when they are imported have to come first.

    Args:
        folder (`Path`): Where the rules for files hold.
    """
    for name in NO_SIGNALS:
        delattr(signal, name)
    for name in NO_NAMES:
        delattr(os, name)
    sys.modules.update(dict.fromkeys(NO_MODULES))  # an import of them fails
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="cp1252", errors=stream.errors)  # as where the output goes into a file
    release = filelock.UnixFileLock._release

    def release_and_remove(lock):
        release(lock)
        os.unlink(lock.lock_file)

    filelock.UnixFileLock._release = release_and_remove
    Files(folder).start()
