"""HDF5 files.

Listing one visits its hard links, at most so many objects and so deep: external and soft links are
never followed.  Refused: values in other files, arrays whose bytes are not stored, chunks that are
larger than their array or lie over one another, filters whose size cannot be checked.  The library
unfolds a chunk however large it becomes; so each packed chunk is unpacked here first, within the
size that is declared (jaxvol/data/io/hdf5_chunks.py).
"""

from __future__ import annotations

import functools
import math
import mmap
import os
from typing import Any

import numpy as np

from jaxvol.data.io import chunks, hdf5_chunks
from jaxvol.data.io.opened import Chunks, Opened, Shape, array_bytes, whole
from jaxvol.runtime.regular_files import open_regular

MAX_OBJECTS = 50_000  # groups and data sets that are looked at
MAX_KEPT_OPEN = 64  # data sets of one file
MAX_DEPTH = 200  # groups inside one another
MAX_ATTRIBUTES = 1 << 26  # bytes that the attributes of one object may unfold to
MAX_STRINGS = 4  # of variable length that are read without a look at how long they are
HEAP = b"GCOL\x01"  # mark of a heap of strings


def open_hdf5(path: str) -> Opened:
    import h5py

    open_regular(path).close()
    file = h5py.File(path, "r")
    arrays = _arrays(file)
    size = os.path.getsize(path)
    identity = (os.path.abspath(path), os.stat(path).st_ino, os.stat(path).st_mtime_ns, size)
    longest: list[int] = []

    # an open data set keeps the chunks that were read last
    @functools.lru_cache(MAX_KEPT_OPEN)
    def dataset(key: str) -> Any:
        return file[key.encode("utf-8", "surrogateescape")]

    def stored_chunks(key: str) -> Chunks:
        node = dataset(key)
        if node.chunks is None:
            return whole(key)
        total = math.prod(chunks.grid(node.shape, node.chunks))
        missing = max(0, total - node.id.get_num_chunks())
        return Chunks(missing, total, array_bytes(node.chunks, node.dtype))

    def read(key: str, index: Any) -> np.ndarray:
        node = dataset(key)
        if node.chunks is None:
            return node[index]
        return hdf5_chunks.read(node, index, (*identity, key), size)

    def metadata(key: str) -> dict[str, Any]:
        return {
            "attributes": _attributes(dataset(key), path, longest),
            "file_attributes": _attributes(file, path, longest),
        }

    def close() -> None:
        dataset.cache_clear()
        file.close()

    return Opened(
        arrays=arrays,
        fault=lambda key: _fault(dataset(key), size),
        chunks=stored_chunks,
        read=read,
        metadata=metadata,
        close=close,
        partial=True,
        keyed=True,
    )


def _arrays(file: Any) -> dict[str, tuple[Shape, np.dtype]]:
    """Shape and dtype of every data set that hard links lead to, each once, under its first name.

    A walk of our own, because the library's calls itself for every group in a group.
    """
    import h5py

    root = h5py.h5g.open(file.id, b"/")
    arrays, visited = {}, {_address(root)}
    waiting = [(root, name, "") for name in _links(root)]
    while waiting:
        group, name, prefix = waiting.pop()
        node = h5py.h5o.open(group, name)
        address = _address(node)
        if address in visited:
            continue
        visited.add(address)
        if len(visited) > MAX_OBJECTS:
            raise ValueError(f"more than {MAX_OBJECTS} groups and data sets")
        key = prefix + name.decode("utf-8", "surrogateescape")
        if isinstance(node, h5py.h5d.DatasetID):
            arrays[key] = tuple(node.shape or ()), node.dtype
        elif isinstance(node, h5py.h5g.GroupID):
            if key.count("/") >= MAX_DEPTH:
                raise ValueError(f"groups nested more than {MAX_DEPTH} deep")
            waiting += [(node, inner, key + "/") for inner in _links(node)]
    return arrays


def _links(group: Any) -> list[bytes]:
    """The names of a group's hard links, the last first."""
    import h5py

    names: list[bytes] = []

    def note(name: bytes, info: Any) -> None:
        if info.type == h5py.h5l.TYPE_HARD:
            names.append(name)

    group.links.iterate(note, info=True)
    return sorted(names, reverse=True)


def _address(node: Any) -> tuple:
    import h5py

    info = h5py.h5o.get_info(node)
    return info.fileno, info.addr


def _fault(node: Any, size: int) -> str:
    """Why the data set must not be read, in a file of `size` bytes; "" where it may."""
    if node.external or node.is_virtual:
        return "its values lie in other files; expected them in this one (copy the dataset)"
    if not node.shape or node.dtype.kind not in "biuf":
        return ""
    stored, expected = node.id.get_storage_size(), array_bytes(node.shape, node.dtype)
    if stored > size or (node.chunks is None and stored < expected):
        return (
            f"declares shape {node.shape} of {node.dtype} ({expected} bytes) but {stored} bytes "
            f"are stored, in a file of {size}"
        )
    if node.chunks is None:
        return ""
    return chunks.size_fault(node.shape, node.chunks, node.dtype.itemsize) or (
        hdf5_chunks.filter_fault(node)
    )


def _attributes(node: Any, path: str, longest: list[int]) -> dict[str, Any]:
    """Attributes that can be copied to another file: numbers and text, no references.

    Raises ValueError where they may unfold to more than MAX_ATTRIBUTES bytes, because any number
    of strings of variable length may be one and the same place of the file.  `longest` keeps the
    size that no string of the file exceeds, once it is known.
    """
    import h5py

    names, fixed, strings = [], 0, 0
    for name in node.attrs:
        attribute = node.attrs.get_id(name)
        count, dtype = math.prod(attribute.shape or ()), attribute.dtype
        if h5py.check_ref_dtype(dtype) is not None:
            continue
        if dtype.hasobject:
            strings += count
        else:
            fixed += count * dtype.itemsize
        names.append(name)
    if strings > MAX_STRINGS and not longest:
        longest.append(_longest_string(path, node.file.id.get_create_plist().get_sizes()[1]))
    if fixed + (strings * longest[0] if strings > MAX_STRINGS else 0) > MAX_ATTRIBUTES:
        raise ValueError(f"attributes that may unfold to more than {MAX_ATTRIBUTES} bytes")
    values = {name: node.attrs[name] for name in names}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (str, bytes, int, float, bool, np.generic))
        or isinstance(value, np.ndarray)
        and (value.dtype.kind in "biufSU" or all(isinstance(v, str) for v in value.flat))
    }


def _longest_string(path: str, width: int) -> int:
    """Bytes of the largest heap of strings in the file, which no string of it exceeds; the file
    writes lengths with `width` bytes.
    """
    with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        longest, place = 1, data.find(HEAP)
        while place >= 0:
            size = int.from_bytes(data[place + 8 : place + 8 + width], "little")
            # what ends behind the file is no heap: the library refuses it
            longest = max(longest, size if size <= len(data) - place else 1)
            place = data.find(HEAP, place + len(HEAP))
    return longest


def write_hdf5(path: str, key: str, array: np.ndarray, meta: dict[str, Any], like: str) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs.update(meta["file_attributes"])
        node = file.create_dataset(key or "data", data=array)
        node.attrs.update(meta["attributes"])
