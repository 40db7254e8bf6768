"""Files that are kept open between reads, the arrays of those that are decoded whole, and the one
message for whatever a library raises.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import threading
from collections.abc import Iterator

import numpy as np

from jaxvol.data.io.hdf5 import open_hdf5
from jaxvol.data.io.nifti import open_nifti
from jaxvol.data.io.numpy_files import open_npy, open_npz
from jaxvol.data.io.opened import Opened
from jaxvol.data.io.zarr_store import open_zarr
from jaxvol.runtime.regular_files import FileError
from jaxvol.types import UserError

EXTENSIONS = (".h5", ".hdf5", ".npy", ".npz", ".zarr", ".nii", ".nii.gz")
MAX_OPEN = 32  # files that one thread keeps open
LONGEST_NAME = 200  # characters of a key that messages show
MAX_DECODED = 1 << 30  # bytes kept of arrays that can only be decoded whole

OPENERS = {
    ".h5": open_hdf5,
    ".npy": open_npy,
    ".npz": open_npz,
    ".zarr": open_zarr,
    ".nii": open_nifti,
    ".nii.gz": open_nifti,
}

_local = threading.local()
_decoded: collections.OrderedDict[tuple, np.ndarray] = collections.OrderedDict()
_decoded_lock = threading.Lock()


def extension(path: str) -> str:
    """The container of `path`; FileError when there is none for this extension."""
    for end in sorted(EXTENSIONS, key=len, reverse=True):
        if str(path).lower().endswith(end):
            return ".h5" if end == ".hdf5" else end
    raise FileError(
        f"{path}: no container has this extension; expected one of {' '.join(EXTENSIONS)}"
    )


def open_file(path: str) -> Opened:
    """The open file, from this thread's cache; a changed file, or a forked process, opens it
    anew.
    """
    container, identity = extension(path), file_identity(path)
    # handles do not survive a fork: forget them without closing
    if getattr(_local, "pid", None) != os.getpid():
        _local.pid, _local.opened = os.getpid(), collections.OrderedDict()
    cache = _local.opened
    if identity in cache:
        cache.move_to_end(identity)
        return cache[identity]
    if os.path.isdir(path) != (container == ".zarr"):
        raise FileError(
            f"{path}: found a {'folder' if os.path.isdir(path) else 'file'}; expected a "
            f"{'folder (Zarr directory store)' if container == '.zarr' else 'file'}"
        )
    with one_error(path, ""):
        opened = OPENERS[container](path)
    # what is found out about an array is found out once
    opened = opened._replace(
        fault=functools.cache(opened.fault), chunks=functools.cache(opened.chunks)
    )
    cache[identity] = opened
    while len(cache) > MAX_OPEN:
        cache.popitem(last=False)[1].close()
    return opened


def forget(path: str) -> None:
    """The next read opens the file anew."""
    _local.opened.pop(file_identity(path), None)


def file_identity(path: str) -> tuple:
    """What changes when the file does; FileError when there is none."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FileError(
            f"{path}: {reason}; expected a file with extension {' '.join(EXTENSIONS)}"
        ) from None
    return os.path.abspath(path), stat.st_ino, stat.st_mtime_ns, stat.st_size


def decoded(path: str, key: str, opened: Opened, shape: tuple[int, ...]) -> np.ndarray:
    """A decoded array, kept for the next piece; two threads may decode the same one, which costs
    only time.
    """
    identity = (*file_identity(path), key)
    with _decoded_lock:
        if identity in _decoded:
            _decoded.move_to_end(identity)
            return _decoded[identity]
    values = of_shape(opened.read(key, ()), shape, path, key)
    if values.nbytes <= MAX_DECODED:
        with _decoded_lock:
            _decoded[identity] = values
            while sum(a.nbytes for a in _decoded.values()) > MAX_DECODED:
                _decoded.popitem(last=False)
    return values


def of_shape(values: object, shape: tuple[int, ...], path: str, key: str) -> np.ndarray:
    """The values as an array; FileError when it has not the shape that the header declares."""
    array = np.asarray(values)
    if array.shape != shape:
        raise FileError(
            f"{place(path, key)}: read shape {array.shape}; its header declares {shape}"
        )
    return array


def place(path: str, key: str) -> str:
    """The file and key, as messages name them."""
    return f"{path}, key '{printable(key)}'" if key else path


def printable(text: str) -> str:
    """A name out of a file, cut, without what would move a terminal's cursor or break a line."""
    return "".join(c if c.isprintable() else "?" for c in text[:LONGEST_NAME])


@contextlib.contextmanager
def one_error(path: str, key: str) -> Iterator[None]:
    """Turn whatever a library raises on a bad file into one UserError (`FileError`)."""
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise FileError(f"{place(path, key)}: {error}") from None
    # libraries raise anything on corrupt bytes, from KeyError to zlib.error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise FileError(
            f"{place(path, key)}: cannot be read as {extension(path)} ({type(error).__name__}: "
            f"{reason}); the file is truncated, corrupt or of another format: write it again or "
            "leave it out"
        ) from None
