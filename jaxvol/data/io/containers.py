"""The five containers behind jaxvol/data/io/files.py: how each one is opened, listed, read and
written.

An opener reads headers only and may raise anything on a bad file; `files` turns that into one
UserError.  Libraries are
imported where they are used: a run on one container does not pay for the others.
"""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]
# arrays of an .npz with at most this many values and one axis are its attributes
SMALL = 64


class Opened(NamedTuple):
    """An open file: its arrays, and how to read a piece of one."""

    arrays: dict[str, tuple[Shape, np.dtype]]  # key -> shape, dtype
    faults: dict[str, str]  # key -> why its array must not be read
    # (key, index) -> the piece; index is () where not `partial`
    read: Callable[[str, Any], Any]
    # the entries of files.metadata that this container has
    metadata: Callable[[str], dict[str, Any]]
    close: Callable[[], None]
    partial: bool  # a piece costs less than the whole
    keyed: bool  # arrays have keys


def open_hdf5(path: str) -> Opened:
    import h5py

    file = h5py.File(path, "r")
    nodes: dict[str, Any] = {}
    file.visititems(
        lambda name, node: nodes.__setitem__(name, node) if isinstance(node, h5py.Dataset) else None
    )
    size = os.path.getsize(path)
    faults = {key: fault for key, node in nodes.items() if (fault := _hdf5_fault(node, size))}

    def metadata(key: str) -> dict[str, Any]:
        return {"attributes": _plain(nodes[key].attrs), "file_attributes": _plain(file.attrs)}

    return Opened(
        {key: (tuple(node.shape or ()), node.dtype) for key, node in nodes.items()},
        faults,
        lambda key, index: nodes[key][index],
        metadata,
        file.close,
        True,
        True,
    )


def _hdf5_fault(node: Any, size: int) -> str:
    if node.external or node.is_virtual:
        return "its values lie in other files; expected them in this one (copy the dataset)"
    if node.chunks is None and node.shape and node.dtype.kind in "biuf":
        stored, expected = (
            node.id.get_storage_size(),
            int(np.prod(node.shape, dtype=object)) * node.dtype.itemsize,
        )
        if stored < expected or stored > size:
            return (
                f"declares shape {node.shape} of {node.dtype} ({expected} bytes) but {stored} "
                "bytes are stored, "
                f"in a file of {size}"
            )
    return ""


def _plain(attributes: Any) -> dict[str, Any]:
    """Attributes that can be copied to another file: numbers and text, no references."""
    values = {name: attributes[name] for name in attributes}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (str, bytes, int, float, bool, np.generic))
        or isinstance(value, np.ndarray)
        and (value.dtype.kind in "biufSU" or all(isinstance(v, str) for v in value.flat))
    }


def write_hdf5(path: str, key: str, array: np.ndarray, meta: dict[str, Any], like: str) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs.update(meta["file_attributes"])
        node = file.create_dataset(key or "data", data=array)
        node.attrs.update(meta["attributes"])


def _npy_header(file: Any) -> tuple[Shape, bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"npy format {version} holds no plain numbers")


def _size_fault(shape: Shape, dtype: np.dtype, stored: int) -> str:
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.kind == "O":
        return "holds Python objects, which would have to be unpickled; expected numbers"
    return (
        ""
        if stored == expected
        else f"declares shape {shape} of {dtype} ({expected} bytes) but {stored} bytes are stored"
    )


def open_npy(path: str) -> Opened:
    with open(path, "rb") as file:
        shape, fortran, dtype = _npy_header(file)
        offset = file.tell()
    fault = _size_fault(shape, dtype, os.path.getsize(path) - offset)
    # mapped only when it is read: an empty or faulty array cannot be
    data: list[np.ndarray] = []

    def read(key: str, index: Any) -> np.ndarray:
        if not data:
            data.append(np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C"))
        return np.array(data[0][index])

    return Opened(
        {"": (shape, dtype)},
        {"": fault} if fault else {},
        read,
        lambda key: {},
        data.clear,
        True,
        False,
    )


def write_npy(path: str, key: str, array: np.ndarray, meta: dict[str, Any], like: str) -> None:
    np.save(path, array, allow_pickle=False)


def open_npz(path: str) -> Opened:
    archive = zipfile.ZipFile(path)
    arrays: dict[str, tuple[Shape, np.dtype]] = {}
    faults: dict[str, str] = {}
    size = os.path.getsize(path)
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            continue
        key = info.filename[: -len(".npy")]
        with archive.open(info) as file:
            shape, _, dtype = _npy_header(file)
            fault = _size_fault(shape, dtype, info.file_size - file.tell())
        arrays[key] = shape, dtype
        if fault or info.compress_size > size:
            faults[key] = fault or f"declares {info.compress_size} bytes in a file of {size}"

    def read(key: str, index: Any) -> np.ndarray:
        with archive.open(key + ".npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def metadata(key: str) -> dict[str, Any]:
        small = [
            k
            for k, (shape, dtype) in arrays.items()
            if k != key
            and len(shape) <= 1
            and np.prod(shape) <= SMALL
            and dtype.kind in "biufSU"
            and k not in faults
        ]
        return {"file_attributes": {k: read(k, ()) for k in small}}

    return Opened(arrays, faults, read, metadata, archive.close, False, True)


def write_npz(path: str, key: str, array: np.ndarray, meta: dict[str, Any], like: str) -> None:
    # np.savez cannot write a key called "file"
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in {**meta["file_attributes"], key or "data": array}.items():
            with archive.open(name + ".npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(values), allow_pickle=False)


def open_zarr(path: str) -> Opened:
    import zarr

    root = zarr.open(path, mode="r")
    nodes = (
        {"": root}
        if isinstance(root, zarr.Array)
        else {
            key: node for key, node in root.members(max_depth=None) if isinstance(node, zarr.Array)
        }
    )
    arrays = {key: (tuple(node.shape), np.dtype(node.dtype)) for key, node in nodes.items()}
    faults = {}
    for key, node in nodes.items():
        chunk = int(np.prod(node.chunks, dtype=object)) * arrays[key][1].itemsize
        settings = {
            name: value for name, value in node.metadata.to_dict().items() if name != "attributes"
        }
        # refused here whatever this version of zarr would do with such a codec
        if "pickle" in str(settings).lower() or arrays[key][1].kind == "O":
            faults[key] = "its chunks would have to be unpickled; expected numbers"
        elif chunk > max(
            4 * int(np.prod(node.shape, dtype=object)) * arrays[key][1].itemsize, 1 << 26
        ):
            faults[key] = (
                f"declares chunks {node.chunks} ({chunk} bytes) for shape {node.shape}; expected "
                "chunks of its size"
            )

    def metadata(key: str) -> dict[str, Any]:
        return {
            "attributes": dict(nodes[key].attrs),
            "file_attributes": dict(root.attrs) if key else {},
        }

    return Opened(
        arrays,
        faults,
        lambda key, index: nodes[key][index],
        metadata,
        lambda: None,
        True,
        "" not in nodes,
    )


def write_zarr(path: str, key: str, array: np.ndarray, meta: dict[str, Any], like: str) -> None:
    import zarr

    # chunks of fill values are written too: a missing chunk would read as zeros
    with zarr.config.set({"array.write_empty_chunks": True}):
        root = zarr.open_group(path, mode="w")
        root.attrs.update(meta["file_attributes"])
        node = root.create_array(key or "data", shape=array.shape, dtype=array.dtype)
        node[...] = array
        node.attrs.update(meta["attributes"])


def open_nifti(path: str) -> Opened:
    import nibabel

    image = nibabel.load(path)
    if not isinstance(image, (nibabel.Nifti1Image, nibabel.Nifti2Image)):
        raise ValueError(f"found a {type(image).__name__}, not a NIfTI image")
    shape, dtype = tuple(int(n) for n in image.shape), image.header.get_data_dtype()
    faults, compressed, offset = {}, path.lower().endswith(".gz"), int(image.dataobj.offset)
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if not compressed:
        stored = os.path.getsize(path) - offset
        if stored < expected:
            faults[""] = (
                f"declares shape {shape} of {dtype} ({expected} bytes) but {stored} bytes are "
                "stored"
            )

    def read(key: str, index: Any) -> np.ndarray:
        if not compressed:
            return np.asarray(image.dataobj[index] if index else image.dataobj)
        # to its very end: only there is the checksum
        with gzip.open(path) as file:
            whole = file.read(offset + expected)
            while file.read(1 << 20):
                pass
        return np.asarray(type(image).from_bytes(whole).dataobj)

    def metadata(key: str) -> dict[str, Any]:
        return {
            "affine": np.array(image.affine),
            "spacing": tuple(float(z) for z in image.header.get_zooms()[:3]),
        }

    return Opened({"": (shape, dtype)}, faults, read, metadata, lambda: None, not compressed, False)


def write_nifti(path: str, key: str, array: np.ndarray, meta: dict[str, Any], like: str) -> None:
    import nibabel

    if not like:
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
        return
    source = nibabel.load(like)
    # the header is copied: codes, units and spacing stay
    image = type(source)(array, source.affine, source.header)
    image.set_data_dtype(np.float32)
    nibabel.save(image, path)
