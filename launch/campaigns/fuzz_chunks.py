"""Zarr and HDF5 files whose chunks unfold to far more than is declared, or that have far too many
parts.  Every builder is (folder, size) -> path; `size` is how many bytes it tries to unfold to.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numcodecs
import numpy as np
from fuzz_seeds import NAMES, volume

Builder = Callable[[Path, int], Path]


def zstd_without_size(size: int) -> bytes:
    """A frame of zstd that does not say how long it is, in blocks of one repeated byte."""
    blocks = [((1 << 17) << 3 | 2).to_bytes(3, "little") + b"\0"] * (size >> 17)
    blocks[-1] = ((1 << 17) << 3 | 3).to_bytes(3, "little") + b"\0"
    return struct.pack("<IBB", 0xFD2FB528, 0, 7 << 3) + b"".join(blocks)


BOMBS: dict[str, tuple[list[dict], Callable[[int], bytes]]] = {
    "zlib": ([{"id": "zlib"}], lambda n: zlib.compress(bytes(n), 1)),
    "gzip": ([{"id": "gzip"}], lambda n: gzip.compress(bytes(n), 1)),
    "bz2": ([{"id": "bz2"}], lambda n: bz2.compress(bytes(n), 1)),
    "lzma": ([{"id": "lzma"}], lambda n: lzma.compress(bytes(n), preset=0)),
    "zstd": ([{"id": "zstd"}], lambda n: bytes(numcodecs.Zstd().encode(bytes(n)))),
    "zstd without size": ([{"id": "zstd"}], zstd_without_size),
    "lz4": ([{"id": "lz4"}], lambda n: numcodecs.LZ4().encode(bytes(n))),
    "blosc": ([{"id": "blosc"}], lambda n: numcodecs.Blosc().encode(bytes(n))),
    "zlib in zlib": (
        [{"id": "zlib"}, {"id": "zlib"}],
        lambda n: zlib.compress(zlib.compress(bytes(n), 1), 9),
    ),
    "zlib in blosc in bz2": (
        [{"id": "zlib"}, {"id": "blosc"}, {"id": "bz2"}],
        lambda n: bz2.compress(numcodecs.Blosc().encode(zlib.compress(bytes(n), 1))),
    ),
}


def zarr_folder(
    folder: Path, codecs: list[dict], chunks: list[int], version: int = 2, shape=(5, 6, 7)
) -> Path:
    """The metadata of an array without any chunk."""
    path = folder / "a.zarr"
    path.mkdir()
    if version == 2:
        *filters, compressor = codecs or [None]
        document = {
            "zarr_format": 2,
            "shape": shape,
            "chunks": chunks,
            "dtype": "<f4",
            "compressor": compressor,
            "filters": filters or None,
            "fill_value": 0,
            "order": "C",
        }
        (path / ".zarray").write_text(json.dumps(document))
        return path
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0,
        "codecs": codecs,
    }
    (path / "zarr.json").write_text(json.dumps(document))
    return path


def zarr_bomb(name: str) -> Builder:
    """A chunk that unfolds to far more than the 840 bytes declared."""

    def build(folder: Path, size: int) -> Path:
        codecs, pack = BOMBS[name]
        path = zarr_folder(folder, codecs, [5, 6, 7])
        (path / "0.0.0").write_bytes(pack(size))
        return path

    return build


def zarr_3_bomb(folder: Path, size: int) -> Path:
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    codecs += [{"name": "gzip", "configuration": {"level": 1}}] * 2
    path = zarr_folder(folder, codecs, [5, 6, 7], 3)
    (path / "c.0.0.0").write_bytes(gzip.compress(gzip.compress(bytes(size), 1)))
    return path


def zarr_shard_bomb(folder: Path, size: int) -> Path:
    """A shard whose only chunk unfolds for ever."""
    inner = [{"name": "bytes", "configuration": {"endian": "little"}}]
    inner += [{"name": "gzip", "configuration": {"level": 1}}]
    settings = {"chunk_shape": [5, 6, 7], "codecs": inner, "index_codecs": inner[:1]}
    codecs = [{"name": "sharding_indexed", "configuration": settings}]
    path = zarr_folder(folder, codecs, [5, 6, 7], 3)
    data = gzip.compress(bytes(size), 1)
    (path / "c.0.0.0").write_bytes(data + struct.pack("<QQ", 0, len(data)))
    return path


def zarr_many_chunks(folder: Path, size: int) -> Path:
    """2^24 chunks of one voxel, of which there is one."""
    path = zarr_folder(folder, [], [1, 1, 1], shape=(256, 256, 256))
    (path / "0.0.0").write_bytes(struct.pack("<f", 1))
    return path


def zarr_long_chunk(folder: Path, size: int) -> Path:
    """A chunk without any codec whose file is far longer, and empty on the disk."""
    path = zarr_folder(folder, [], [5, 6, 7])
    with open(path / "0.0.0", "wb") as file:
        file.truncate(size)
    return path


def zarr_special_chunk(make: Callable[[Path], object]) -> Builder:
    def build(folder: Path, size: int) -> Path:
        path = zarr_folder(folder, [], [5, 6, 7])
        make(path / "0.0.0")
        return path

    return build


def link_outside(path: Path) -> None:
    """A link that leaves the store, to a file that would fit."""
    outside = path.parent.parent / "outside"
    outside.write_bytes(volume().tobytes())
    path.symlink_to(outside)


def zarr_linked_group(folder: Path, size: int) -> Path:
    """A group with links to itself, so that it seems to go on for ever."""
    path = folder / "a.zarr"
    path.mkdir()
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    for name in "abcd":
        (path / name).symlink_to(path)
    return path


def hdf5_chunk(filters: int) -> Builder:
    """A raw chunk, deflated once or twice, that unfolds to far more than the 840 bytes declared."""

    def build(folder: Path, size: int) -> Path:
        with h5py.File(folder / "a.h5", "w") as file:
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_chunk((5, 6, 7))
            for _ in range(filters):
                plan.set_filter(h5py.h5z.FILTER_DEFLATE, 0, (1,))
            space = h5py.h5s.create_simple((5, 6, 7))
            h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plan)
            data = bytes(size)
            for _ in range(filters):
                data = zlib.compress(data, 1)
            file["x"].id.write_direct_chunk((0, 0, 0), data)
        return folder / "a.h5"

    return build


def hdf5_scale(folder: Path, size: int) -> Path:
    """A filter whose parameters say that a chunk has far more numbers than it has."""
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", data=np.zeros((5, 6, 7), "i4"), chunks=(5, 6, 7), scaleoffset=0)
    data = (folder / "a.h5").read_bytes()
    place = data.find(struct.pack("<III", 2, 0, 210))
    (folder / "a.h5").write_bytes(
        data[: place + 8] + struct.pack("<I", size // 4) + data[place + 12 :]
    )
    return folder / "a.h5"


def hdf5_strings(folder: Path, size: int) -> Path:
    """Attributes whose strings of variable length are all the same place of the file."""
    count, long = 4000, max(1 << 12, size // 4000)
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = volume()
        names = ["a" * long, *[f"{i:08d}" for i in range(count - 1)]]
        file["x"].attrs.create("names", names, dtype=h5py.string_dtype())
    data = bytearray((folder / "a.h5").read_bytes())
    second = data.find(struct.pack("<I", 8), 0)
    while second >= 16 and data[second - 16 : second - 12] != struct.pack("<I", long):
        second = data.find(struct.pack("<I", 8), second + 1)
    place = second - 16
    data[place : place + 16 * count] = data[place : place + 16] * count
    (folder / "a.h5").write_bytes(bytes(data))
    return folder / "a.h5"


def hdf5_unwritten(folder: Path, size: int) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", (5, 6, 7), "f4", chunks=(1, 6, 7), compression="gzip")
    return folder / "a.h5"


def hdf5_voxel_chunks(folder: Path, size: int) -> Path:
    """2^24 chunks of one voxel, of which there is one."""
    with h5py.File(folder / "a.h5", "w") as file:
        node = file.create_dataset("x", (256, 256, 256), "f4", chunks=(1, 1, 1))
        node[0, 0, 0] = 1
    return folder / "a.h5"


def hdf5_many(folder: Path, size: int) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        for i in range(20_000):
            file[f"x{i}"] = i
    return folder / "a.h5"


def hdf5_names(folder: Path, size: int) -> Path:
    """Data sets whose names break lines, leave folders, or are no text."""
    with h5py.File(folder / "a.h5", "w") as file:
        for name in NAMES:
            file[name.replace("/", "|")] = volume()
        space = h5py.h5s.create_simple((3,))
        h5py.h5d.create(file.id, b"\xff\xfe", h5py.h5t.IEEE_F32LE, space)
    return folder / "a.h5"


def hdf5_deep(folder: Path, size: int) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        group = file
        for _ in range(3000):
            group = group.create_group("g")
        group["x"] = volume()
    return folder / "a.h5"


ZARR: dict[str, Builder] = {name: zarr_bomb(name) for name in BOMBS} | {
    "gzip in gzip, version 3": zarr_3_bomb,
    "shard": zarr_shard_bomb,
    "chunks of one voxel": zarr_many_chunks,
    "long chunk": zarr_long_chunk,
    "chunk is a pipe": zarr_special_chunk(os.mkfifo),
    "chunk is a device": zarr_special_chunk(lambda path: path.symlink_to("/dev/zero")),
    "link outside": zarr_special_chunk(link_outside),
    "links in a circle": zarr_linked_group,
}
HDF5: dict[str, Builder] = {
    "deflate": hdf5_chunk(1),
    "deflate in deflate": hdf5_chunk(2),
    "scaled": hdf5_scale,
    "shared strings": hdf5_strings,
    "unwritten": hdf5_unwritten,
    "chunks of one voxel": hdf5_voxel_chunks,
    "many": hdf5_many,
    "deep": hdf5_deep,
    "names": hdf5_names,
}
