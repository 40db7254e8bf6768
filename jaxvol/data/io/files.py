"""Volumes in files: HDF5, NumPy, Zarr and NIfTI, read and written without executing anything found
in them.

The extension names the container: .h5 .hdf5 .npy .npz .zarr .nii .nii.gz.  HDF5, .npz and Zarr
groups hold arrays under keys; .npy, .nii and a Zarr array hold one, whose key is "" (any other key
is ignored there).

What a header declares binds what is unpacked: reading headers costs memory in proportion to the
file; reading an array takes at most what its header declares, and one chunk; every step ends.  The
module of each container (hdf5, numpy_files, zarr_store, nifti) says what it may claim and what is
refused.  Every fault of a file is one UserError naming file, key, what was found and what was
expected.
"""

from __future__ import annotations

import hashlib
import logging
import os
from typing import Any

import numpy as np

from jaxvol.data.io.hdf5 import write_hdf5
from jaxvol.data.io.nifti import write_nifti
from jaxvol.data.io.numpy_files import write_npy, write_npz
from jaxvol.data.io.open_files import (
    EXTENSIONS as EXTENSIONS,
)
from jaxvol.data.io.open_files import (
    decoded,
    extension,
    file_identity,
    forget,
    of_shape,
    one_error,
    open_file,
    place,
    printable,
)
from jaxvol.data.io.opened import Opened, array_bytes
from jaxvol.data.io.zarr_store import write_zarr
from jaxvol.runtime import atomic
from jaxvol.runtime.regular_files import FileError, open_regular
from jaxvol.types import UserError

# an array in chunks may declare so many bytes for each that its chunks or its file hold; an array
# of few bytes any number
MAX_SPARSITY = 2000
MAX_SPARSE = 1 << 26

WRITERS = {
    ".h5": write_hdf5,
    ".npy": write_npy,
    ".npz": write_npz,
    ".zarr": write_zarr,
    ".nii": write_nifti,
    ".nii.gz": write_nifti,
}

Index = tuple[slice | int, ...]
MAX_NOTED = 1 << 16
# (file, key) whose chunks have been counted -> how many are missing, which has been said
_missing: dict[tuple, int] = {}


def inspect(path: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """key -> (shape, dtype) of every array in the file, read from its headers only."""
    return dict(open_file(str(path)).arrays)


def header(
    path: str, key: str = "", ndim: tuple[int, ...] = (), missing_chunks: str = "warn"
) -> tuple[str, tuple[int, ...], np.dtype]:
    """Key, shape and dtype of one sound numeric array; key "" means the only array of the file.

    Raises FileError when the file or key is missing, the array is not numeric, has a number of axes
    that is not in `ndim` (if given), is larger than the file can hold, or has no chunk at all. Some
    chunks missing, which read as the fill value, is a warning, or with missing_chunks = "error" a
    FileError.
    """
    if missing_chunks not in ("warn", "error"):
        raise UserError(f"data.missing_chunks is {missing_chunks!r}: expected 'warn' or 'error'")
    path = str(path)
    opened = open_file(path)
    checked = _header(path, opened, key, ndim)
    with one_error(path, checked[0]):
        missing, total, _ = opened.chunks(checked[0])
    if missing and missing_chunks == "error":
        raise FileError(
            f"{_missing_text(path, checked[0], missing, total)}: copy the file again, or set "
            "data.missing_chunks='warn' if it was written so"
        )
    return checked


def read(
    path: str, key: str = "", index: Index | None = None, ndim: tuple[int, ...] = ()
) -> np.ndarray:
    """One array, or the piece `index` (a tuple of slices and integers) of it, in the type it was
    stored in.

    HDF5, .npy, Zarr and .nii read only the piece; .npz and .nii.gz are decoded whole and the last
    of them kept in memory. Raises FileError as `header` does, and when the values cannot be read.
    """
    path = str(path)
    opened = open_file(path)
    key, shape, _ = _header(path, opened, key, ndim)
    try:
        with one_error(path, key):
            if index is None:
                return of_shape(opened.read(key, ()), shape, path, key)
            if opened.partial:
                return np.asarray(opened.read(key, tuple(index)))
            return np.array(decoded(path, key, opened, shape)[tuple(index)])
    except FileError:
        # a stale handle must not spoil the next try
        forget(path)
        raise


def metadata(path: str, key: str = "") -> dict[str, Any]:
    """`attributes` of the array, `file_attributes`, `affine` ([4, 4] or None), `spacing` (three
    numbers or None) and `missing_chunks` (how many of its chunks are not stored).
    """
    path = str(path)
    opened = open_file(path)
    key = _resolve(path, opened, key)
    with one_error(path, key):
        entries = {
            "attributes": {},
            "file_attributes": {},
            "affine": None,
            "spacing": None,
            "missing_chunks": opened.chunks(key).missing,
        } | opened.metadata(key)
        for attributes in (entries["attributes"], entries["file_attributes"]):
            if entries["spacing"] is None and np.size(attributes.get("spacing", ())) == 3:
                entries["spacing"] = tuple(float(s) for s in np.ravel(attributes["spacing"]))
        return entries


def write(path: str, key: str, array: np.ndarray, like: str = "", like_key: str = "") -> None:
    """Write `array` as float32 under `key`, atomically, keeping attributes, affine and spacing of
    the file `like`.

    The file appears under its name only when it is whole; a Zarr folder of that name is moved aside
    first.  Raises FileError when `like` is another container than `path`, or when the disk refuses.
    """
    path = str(path)
    container = extension(path)
    if like and extension(like) != container:
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
            WRITERS[container](str(temporary), key, np.asarray(array, np.float32), meta, like)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error}") from None


def fingerprint(path: str) -> str:
    """Hexadecimal digest of a file's size, first and last 64 KiB (a Zarr folder: of its files'
    names and sizes).
    """
    path = str(path)
    digest = hashlib.blake2b(digest_size=16)
    with one_error(path, ""):
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
        with open_regular(path) as file:
            digest.update(file.read(1 << 16))
            file.seek(max(0, size - (1 << 16)))
            digest.update(file.read(1 << 16))
        return digest.hexdigest()


def _resolve(path: str, opened: Opened, key: str) -> str:
    if not opened.keyed:
        return ""
    names = sorted(opened.arrays)
    if key.strip("/") in opened.arrays:
        return key.strip("/")
    if not key and len(names) == 1:
        return names[0]
    listed = ", ".join(f"'{printable(n[:80])}' {opened.arrays[n][0]}" for n in names[:20]) + (
        ", ..." if len(names) > 20 else ""
    )
    wanted = "the key must be named, the file has not exactly one array"
    if key:
        wanted = f"no key '{printable(key)}'"
    raise FileError(f"{path}: {wanted}; keys found: {listed or 'none'}")


def _header(
    path: str, opened: Opened, key: str, ndim: tuple[int, ...]
) -> tuple[str, tuple[int, ...], np.dtype]:
    key = _resolve(path, opened, key)
    shape, dtype = opened.arrays[key]
    where = place(path, key)
    with one_error(path, key):
        fault = opened.fault(key)
    if fault:
        raise FileError(
            f"{where}: {fault}; the file is truncated or corrupt, or of a kind that is not read"
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
    _check_chunks(path, opened, key)
    return key, shape, dtype


def _check_chunks(path: str, opened: Opened, key: str) -> None:
    """FileError when no chunk is stored, or too few for what is declared; some missing is said
    once.
    """
    identity = (*file_identity(path), key)
    if identity in _missing:
        return
    shape, dtype = opened.arrays[key]
    with one_error(path, key):
        missing, total, _ = opened.chunks(key)
    size = array_bytes(shape, dtype)
    sparse = size > MAX_SPARSE and total > MAX_SPARSITY * (total - missing)
    if missing >= total or (sparse and size > MAX_SPARSITY * _stored_bytes(path)):
        raise FileError(
            f"{place(path, key)}: declares shape {shape} of {dtype} ({size} bytes) but "
            f"{total - missing} of its {total} chunks are stored, which cannot hold it; the file "
            "is corrupt or was never filled"
        )
    if missing:
        logging.warning("%s", _missing_text(path, key, missing, total))
    if len(_missing) >= MAX_NOTED:
        _missing.clear()
    _missing[identity] = missing


def _missing_text(path: str, key: str, missing: int, total: int) -> str:
    return (
        f"{place(path, key)}: {missing} of its {total} chunks are missing and read as the fill "
        "value (a writer may have left them out, or a copy broke off)"
    )


def _stored_bytes(path: str) -> int:
    if os.path.isdir(path):
        return sum(
            os.path.getsize(os.path.join(folder, name))
            for folder, _, names in os.walk(path)
            for name in names
        )
    return os.path.getsize(path)
