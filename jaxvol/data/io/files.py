"""Volumes in files: HDF5, NumPy, Zarr and NIfTI, read and written without executing anything found
in them.

The extension names the container: .h5 .hdf5 .npy .npz .zarr .nii .nii.gz.  HDF5, .npz and Zarr
groups hold arrays under keys; .npy, .nii and a Zarr array hold one, whose key is "" (any other key
is ignored there).  Every fault of a file is one UserError naming file, key, what was found and what
was expected.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxvol.data.io import containers
from jaxvol.data.io.containers import Opened
from jaxvol.runtime import atomic
from jaxvol.types import UserError

EXTENSIONS = (".h5", ".hdf5", ".npy", ".npz", ".zarr", ".nii", ".nii.gz")
MAX_OPEN = 32  # files that one thread keeps open
MAX_DECODED = 1 << 30  # bytes kept of arrays that can only be decoded whole
MAX_RATIO = 2000  # deflate reaches 1032; a file that promises more than this is lying
MAX_SPARSE = 1 << 26  # bytes that any file may promise (small arrays of fill values)

OPENERS = {
    ".h5": containers.open_hdf5,
    ".npy": containers.open_npy,
    ".npz": containers.open_npz,
    ".zarr": containers.open_zarr,
    ".nii": containers.open_nifti,
    ".nii.gz": containers.open_nifti,
}
WRITERS = {
    ".h5": containers.write_hdf5,
    ".npy": containers.write_npy,
    ".npz": containers.write_npz,
    ".zarr": containers.write_zarr,
    ".nii": containers.write_nifti,
    ".nii.gz": containers.write_nifti,
}

Index = tuple[slice | int, ...]
_local = threading.local()
_decoded: collections.OrderedDict[tuple, np.ndarray] = collections.OrderedDict()
_decoded_lock = threading.Lock()


class FileError(UserError, OSError):
    """A file that is missing, damaged or not what was expected; an OSError too, so that a reader
    may try again or skip it.
    """


def extension(path: str) -> str:
    """The container of `path`; UserError when there is none for this extension."""
    for end in sorted(EXTENSIONS, key=len, reverse=True):
        if str(path).lower().endswith(end):
            return ".h5" if end == ".hdf5" else end
    raise FileError(
        f"{path}: no container has this extension; expected one of {' '.join(EXTENSIONS)}"
    )


def inspect(path: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """key -> (shape, dtype) of every array in the file, read from its headers only."""
    return dict(_open(str(path)).arrays)


def header(
    path: str, key: str = "", ndim: tuple[int, ...] = ()
) -> tuple[str, tuple[int, ...], np.dtype]:
    """Key, shape and dtype of one sound numeric array; key "" means the only array of the file.

    Raises FileError when the file or key is missing, the array is not numeric, has a number of axes
    that is not in `ndim` (if given), or is larger than the file can hold.
    """
    return _header(str(path), _open(str(path)), key, ndim)


def read(
    path: str, key: str = "", index: Index | None = None, ndim: tuple[int, ...] = ()
) -> np.ndarray:
    """One array, or the piece `index` (a tuple of slices and integers) of it, in the type it was
    stored in.

    HDF5, .npy, Zarr and .nii read only the piece; .npz and .nii.gz are decoded whole and the last
    of them kept in memory. Raises FileError as `header` does, and when the values cannot be read.
    """
    path = str(path)
    opened = _open(path)
    key, shape, _ = _header(path, opened, key, ndim)
    try:
        with _guard(path, key):
            if index is None:
                return _sound(opened.read(key, ()), shape, path, key)
            if opened.partial:
                return np.asarray(opened.read(key, tuple(index)))
            return np.array(_whole(path, key, opened, shape)[tuple(index)])
    except UserError:
        # a stale handle must not spoil the next try
        _local.opened.pop(_identity(path), None)
        raise


def metadata(path: str, key: str = "") -> dict[str, Any]:
    """`attributes` of the array, `file_attributes`, `affine` ([4, 4] or None) and `spacing` (three
    numbers or None).
    """
    path = str(path)
    opened = _open(path)
    key = _resolve(path, opened, key)
    with _guard(path, key):
        found = {
            "attributes": {},
            "file_attributes": {},
            "affine": None,
            "spacing": None,
        } | opened.metadata(key)
        for attributes in (found["attributes"], found["file_attributes"]):
            if found["spacing"] is None and np.size(attributes.get("spacing", ())) == 3:
                found["spacing"] = tuple(float(s) for s in np.ravel(attributes["spacing"]))
        return found


def write(path: str, key: str, array: np.ndarray, like: str = "", like_key: str = "") -> None:
    """Write `array` as float32 under `key`, atomically, keeping attributes, affine and spacing of
    the file `like`.

    The file appears under its name only when it is whole; a Zarr folder of that name is moved aside
    first.  Raises FileError when `like` is another container than `path`, or when the disk refuses.
    """
    path = str(path)
    kind = extension(path)
    if like and extension(like) != kind:
        raise FileError(
            f"{path}: cannot keep the attributes of {like}, which is another container; expected "
            "the same extension"
        )
    meta = (
        metadata(like, like_key)
        if like
        else {"attributes": {}, "file_attributes": {}, "affine": None, "spacing": None}
    )
    try:
        with atomic.replacing(path) as temporary:
            WRITERS[kind](str(temporary), key, np.asarray(array, np.float32), meta, like)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error}") from None


def fingerprint(path: str) -> str:
    """Hexadecimal digest of a file's size, first and last 64 KiB (a Zarr folder: of its files'
    names and sizes).
    """
    path = str(path)
    digest = hashlib.blake2b(digest_size=16)
    with _guard(path, ""):
        if os.path.isdir(path):
            for folder, folders, names in os.walk(path):
                folders.sort()
                for name in sorted(names):
                    inner = os.path.join(folder, name)
                    digest.update(
                        f"{os.path.relpath(inner, path)} {os.path.getsize(inner)}\n".encode()
                    )
            return digest.hexdigest()
        size = os.path.getsize(path)
        digest.update(str(size).encode())
        with open(path, "rb") as file:
            digest.update(file.read(1 << 16))
            file.seek(max(0, size - (1 << 16)))
            digest.update(file.read(1 << 16))
        return digest.hexdigest()


def _where(path: str, key: str) -> str:
    return f"{path}, key '{key}'" if key else path


@contextlib.contextmanager
def _guard(path: str, key: str) -> Iterator[None]:
    """Turn whatever a library raises on a bad file into one UserError (`FileError`)."""
    try:
        yield
    except UserError:
        raise
    # libraries raise anything on corrupt bytes, from KeyError to zlib.error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise FileError(
            f"{_where(path, key)}: cannot be read as {extension(path)} ({type(error).__name__}: "
            f"{reason}); "
            "the file is truncated, corrupt or of another format: write it again or leave it out"
        ) from None


def _resolve(path: str, opened: Opened, key: str) -> str:
    if not opened.keyed:
        return ""
    names = sorted(opened.arrays)
    if key.strip("/") in opened.arrays:
        return key.strip("/")
    if not key and len(names) == 1:
        return names[0]
    listed = ", ".join(f"'{n}' {opened.arrays[n][0]}" for n in names[:20]) + (
        ", ..." if len(names) > 20 else ""
    )
    wanted = (
        f"no key '{key}'" if key else "the key must be named, the file has not exactly one array"
    )
    raise FileError(f"{path}: {wanted}; keys found: {listed or 'none'}")


def _header(
    path: str, opened: Opened, key: str, ndim: tuple[int, ...]
) -> tuple[str, tuple[int, ...], np.dtype]:
    key = _resolve(path, opened, key)
    shape, dtype = opened.arrays[key]
    where = _where(path, key)
    if key in opened.faults:
        raise FileError(
            f"{where}: {opened.faults[key]}; the file is truncated or corrupt, or of a kind that "
            "is not read"
        )
    if dtype.kind not in "biuf":
        raise FileError(
            f"{where}: found values of type {dtype}; expected numbers (bool, integer or real "
            "floating point)"
        )
    if 0 in shape:
        raise FileError(
            f"{where}: found shape {shape}, which holds no values; expected at least one along "
            "every axis"
        )
    if ndim and len(shape) not in ndim:
        expected = " or ".join(str(n) for n in sorted(set(ndim)))
        raise FileError(
            f"{where}: found shape {shape} with {len(shape)} axes; expected {expected} axes"
        )
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size > MAX_SPARSE and size > MAX_RATIO * (stored := _stored_bytes(path)):
        raise FileError(
            f"{where}: declares shape {shape} of {dtype} ({size} bytes) in a file of {stored} "
            "bytes, which cannot "
            "hold it; the file is corrupt or was never filled"
        )
    return key, shape, dtype


def _whole(path: str, key: str, opened: Opened, shape: tuple[int, ...]) -> np.ndarray:
    """A decoded array, kept for the next piece; two threads may decode the same one, which costs
    only time.
    """
    identity = (*_identity(path), key)
    with _decoded_lock:
        if identity in _decoded:
            _decoded.move_to_end(identity)
            return _decoded[identity]
    whole = _sound(opened.read(key, ()), shape, path, key)
    if whole.nbytes <= MAX_DECODED:
        with _decoded_lock:
            _decoded[identity] = whole
            while sum(a.nbytes for a in _decoded.values()) > MAX_DECODED:
                _decoded.popitem(last=False)
    return whole


def _sound(value: Any, shape: tuple[int, ...], path: str, key: str) -> np.ndarray:
    value = np.asarray(value)
    if value.shape != shape:
        raise FileError(
            f"{_where(path, key)}: read shape {value.shape}; its header declares {shape}"
        )
    return value


def _identity(path: str) -> tuple:
    try:
        stat = os.stat(path)
    except OSError as error:
        raise FileError(
            f"{path}: {error.strerror}; expected a file with extension {' '.join(EXTENSIONS)}"
        ) from None
    return os.path.abspath(path), stat.st_ino, stat.st_mtime_ns, stat.st_size


def _stored_bytes(path: str) -> int:
    if os.path.isdir(path):
        return sum(
            os.path.getsize(os.path.join(folder, name))
            for folder, _, names in os.walk(path)
            for name in names
        )
    return os.path.getsize(path)


def _open(path: str) -> Opened:
    """The open file, from this thread's cache; a changed file, or a forked process,
    opens it anew.
    """
    kind, identity = extension(path), _identity(path)
    # handles do not survive a fork: forget them without closing
    if getattr(_local, "pid", None) != os.getpid():
        _local.pid, _local.opened = os.getpid(), collections.OrderedDict()
    cache = _local.opened
    if identity in cache:
        cache.move_to_end(identity)
        return cache[identity]
    if os.path.isdir(path) != (kind == ".zarr"):
        raise FileError(
            f"{path}: found a {'folder' if os.path.isdir(path) else 'file'}; expected a "
            f"{'folder (Zarr directory store)' if kind == '.zarr' else 'file'}"
        )
    with _guard(path, ""):
        opened = OPENERS[kind](path)
    cache[identity] = opened
    while len(cache) > MAX_OPEN:
        cache.popitem(last=False)[1].close()
    return opened
