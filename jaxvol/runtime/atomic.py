"""Files that a reader, or a kill, sees with their old content or with the new, never with a part.

Every file is written beside its destination, synced to the disk, and renamed in one step.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

NAME_END = 16  # characters of a name that its temporary file keeps: libraries look at the ending


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace the file `path` by `text` in UTF-8; missing folders are made.  Raises OSError.

    Half of a character, as names of files may hold one that are no UTF-8, is written as an escape.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Replace the file `path` by `data`; missing folders are made.  Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """For libraries that write to a path: `with replacing("a.npz") as path: np.savez(path, ...)`.

    Gives a path in the same folder with the same ending, and renames what was written there when
    the block ends; after an exception the destination is as it was before.  What was written may
    be a folder (Zarr): it takes the place of an earlier folder.  A file never replaces a folder,
    nor a folder a file.  The mode is that of any new file: 0644 under the usual umask.  Raises
    OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name[-NAME_END:].lower().lstrip('.')}")
    try:
        yield temporary
        if temporary.is_dir():
            _replace_folder(temporary, path)
        else:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Rename a folder; an earlier one of that name is moved aside first, and removed afterwards."""
    if not path.is_dir():
        os.rename(temporary, path)  # NotADirectoryError where a file has the name
        return
    aside = path.with_name(f".{uuid.uuid4().hex}.old")
    os.rename(path, aside)
    os.rename(temporary, path)
    shutil.rmtree(aside)
