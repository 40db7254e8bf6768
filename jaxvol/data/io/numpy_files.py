"""NumPy's own files, .npy and .npz.

.npy: a header of at most 10,000 characters, then just the bytes that it declares; the file is
mapped and only the piece is read.  .npz: a zip archive of such files, stored or deflated, anything
else is refused; an array is unpacked whole, which takes what its header declares, and that has to
be what the archive declares.  Refused: Python objects, other sizes, entries over one another.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from typing import Any, BinaryIO

import numpy as np

from jaxvol.data.io.archive import check_entries
from jaxvol.data.io.opened import Opened, Shape, array_bytes, size_fault, whole
from jaxvol.runtime.regular_files import open_regular

# arrays of an .npz with at most this many values, on one axis or none, are its attributes; each
# takes at most so many bytes, and all of them as many again as the file
SMALL = 64
SMALL_BYTES = 1 << 20
MAX_HEADER = 10_000  # characters; NumPy reads no more without being told to trust the file


def read_header(file: BinaryIO) -> tuple[Shape, bool, np.dtype]:
    """(shape, whether in Fortran order, dtype) at the beginning of an .npy file.

    Raises ValueError for another version, a header that is cut, too long or no header.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format {version} holds no plain numbers")
    width = 2 if version == (1, 0) else 4
    length = file.read(width)
    if int.from_bytes(length, "little") > MAX_HEADER:
        raise ValueError(f"a header of more than {MAX_HEADER} characters")
    text = io.BytesIO(length + file.read(int.from_bytes(length, "little")))
    if width == 2:
        return np.lib.format.read_array_header_1_0(text)
    return np.lib.format.read_array_header_2_0(text)


def open_npy(path: str) -> Opened:
    with open_regular(path) as file:
        shape, fortran, dtype = read_header(file)
        offset = file.tell()
    fault = size_fault(shape, dtype, os.path.getsize(path) - offset)
    # mapped only when it is read: an empty or faulty array cannot be
    mapped: list[np.ndarray] = []

    def read(key: str, index: Any) -> np.ndarray:
        if not mapped:
            mapped.append(np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C"))
        return np.array(mapped[0][index])

    return Opened(
        arrays={"": (shape, dtype)},
        fault=lambda key: fault,
        chunks=whole,
        read=read,
        metadata=lambda key: {},
        close=mapped.clear,
        partial=True,
        keyed=False,
    )


def write_npy(path: str, key: str, array: np.ndarray, meta: dict[str, Any], like: str) -> None:
    np.save(path, array, allow_pickle=False)


def open_npz(path: str) -> Opened:
    source = open_regular(path)
    archive = zipfile.ZipFile(source)
    size = os.path.getsize(path)
    check_entries(archive, size, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    arrays: dict[str, tuple[Shape, np.dtype]] = {}
    faults: dict[str, str] = {}
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            continue
        key = info.filename[: -len(".npy")]
        with archive.open(info) as file:
            shape, _, dtype = read_header(file)
            faults[key] = size_fault(shape, dtype, info.file_size - file.tell())
        arrays[key] = shape, dtype

    def read(key: str, index: Any) -> np.ndarray:
        with archive.open(key + ".npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def metadata(key: str) -> dict[str, Any]:
        attributes, left = {}, size + SMALL_BYTES
        for name, (shape, dtype) in arrays.items():
            taken = array_bytes(shape, dtype)
            if name == key or faults[name] or not _small(shape, dtype) or taken > left:
                continue
            attributes[name], left = read(name, ()), left - taken
        return {"file_attributes": attributes}

    def close() -> None:
        archive.close()
        source.close()

    return Opened(
        arrays=arrays,
        fault=faults.__getitem__,
        chunks=whole,
        read=read,
        metadata=metadata,
        close=close,
        partial=False,
        keyed=True,
    )


def _small(shape: Shape, dtype: np.dtype) -> bool:
    """Whether an array of an .npz is one of its attributes."""
    return (
        len(shape) <= 1
        and math.prod(shape) <= SMALL
        and array_bytes(shape, dtype) <= SMALL_BYTES
        and dtype.kind in "biufSU"
    )


def write_npz(path: str, key: str, array: np.ndarray, meta: dict[str, Any], like: str) -> None:
    # np.savez cannot write a key called "file"
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in {**meta["file_attributes"], key or "data": array}.items():
            with archive.open(name + ".npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(values), allow_pickle=False)
