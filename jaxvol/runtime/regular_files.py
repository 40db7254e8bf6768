"""Files that others wrote are opened only where they are regular files.

Opening a named pipe waits for a writer, a device may never end, a socket cannot be opened: whoever
reads a path out of a manifest, a folder or a flag uses `open_regular`, which refuses them at once.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from jaxvol.types import UserError

NAMES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


class FileError(UserError, OSError):
    """A file that is missing, damaged or not what was expected; an OSError too, so that a reader
    may try again or skip it.
    """


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """The regular file at `path`, opened for reading bytes; links are followed.

    Never waits: it looks before it opens, opens without blocking and looks again at what it got.
    Raises FileError when it is anything but a regular file or its name holds a NUL, and the
    system's own OSError (FileNotFoundError, PermissionError, ...) when it cannot be opened.
    """
    try:
        _refuse_others(path, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise FileError(f"{str(path)!r}: a file name cannot hold a NUL character") from None
    try:
        _refuse_others(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _refuse_others(path: str | os.PathLike, mode: int) -> None:
    if not stat.S_ISREG(mode):
        name = NAMES[stat.S_IFMT(mode)] if stat.S_IFMT(mode) in NAMES else "no file"
        raise FileError(f"{path}: found {name}; expected a regular file")
