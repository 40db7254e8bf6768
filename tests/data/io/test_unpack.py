"""Unpacking gives back what was packed and never more than was asked for; chunks of any grid are
put together as NumPy indexes the whole.
"""

import bz2
import gzip
import io
import lzma
import struct
import zlib

import h5py
import numcodecs
import numpy as np
import pytest

from jaxvol.data.io import chunks, files, hdf5_chunks
from jaxvol.data.io.unpack import Unpacked, unpack

PACK = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bz2": bz2.compress,
    "lzma": lzma.compress,
    "zstd": numcodecs.Zstd().encode,
    "blosc": numcodecs.Blosc().encode,
    "lz4": numcodecs.LZ4().encode,
}
ERRORS = (ValueError, EOFError, OSError, RuntimeError, zlib.error, lzma.LZMAError)


@pytest.mark.parametrize("codec", PACK)
def test_what_was_packed_comes_back_and_no_more(codec):
    for data in (np.random.default_rng(0).bytes(100_000), bytes(3_000_000), b"abc" * 7):
        packed = bytes(PACK[codec](data))
        for limit, exact in ((len(data), True), (len(data), False), (len(data) + 5, False)):
            assert bytes(unpack(codec, packed, limit, exact)) == data
        with pytest.raises(ValueError):
            unpack(codec, packed, len(data) - 1)
        with pytest.raises(ERRORS):
            unpack(codec, packed, len(data) + 5, True)
        with pytest.raises(ERRORS):
            unpack(codec, packed[:-1], len(data))


@pytest.mark.parametrize("codec", ["gzip", "bz2", "lzma"])
def test_streams_that_follow_one_another_are_one(codec):
    packed = PACK[codec](b"first") + PACK[codec](b"") + PACK[codec](b" second")
    stream = Unpacked(codec, io.BytesIO(packed))
    assert stream.read(3) == b"fir" and stream.read(0) == b""
    pieces = [b"fir"]
    while piece := stream.read(4):
        assert len(piece) <= 4
        pieces.append(piece)
    assert b"".join(pieces) == b"first second"


def test_what_follows_a_stream():
    assert unpack("gzip", gzip.compress(b"a") + bytes(40_000) + gzip.compress(b"b"), 9) == b"ab"
    for codec in ("zlib", "bz2", "lzma"):
        assert unpack(codec, PACK[codec](b"a") + b"what is no stream", 9) == b"a"
    with pytest.raises(zlib.error):
        unpack("gzip", gzip.compress(b"a") + b"what is no stream", 9)


def test_a_zstd_frame_that_states_no_size():
    block = (1 << 17) << 3 | 2
    frame = struct.pack("<IBB", 0xFD2FB528, 0, 7 << 3)
    frame += block.to_bytes(3, "little") + b"x" + (block | 1).to_bytes(3, "little") + b"y"
    whole = b"x" * (1 << 17) + b"y" * (1 << 17)
    for limit, exact in ((1 << 18, True), (1 << 18, False), (1 << 19, False)):
        assert bytes(unpack("zstd", frame, limit, exact)) == whole
    for limit, exact in ((1000, True), (1000, False), (1 << 17, False)):
        with pytest.raises((ValueError, RuntimeError)):
            unpack("zstd", frame, limit, exact)


def test_lzma_dictionaries_are_bounded():
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    packed = lzma.compress(b"abc", lzma.FORMAT_RAW, filters=filters)
    settings = {"format": lzma.FORMAT_RAW, "filters": filters}
    assert unpack("lzma", packed, 3, settings=settings) == b"abc"
    filters[0]["dict_size"] = 1 << 30
    with pytest.raises(ValueError, match="dictionary"):
        unpack("lzma", packed, 3, settings=settings)


def random_index(rng, shape):
    """Integers and slices for some of the axes."""
    index = []
    for n in shape[: int(rng.integers(len(shape) + 1))]:
        ends = [None if rng.random() < 0.3 else int(rng.integers(-n - 2, n + 3)) for _ in range(2)]
        place = slice(*ends, None if rng.random() < 0.5 else int(rng.integers(1, 4)))
        index.append(int(rng.integers(-n, n)) if rng.random() < 0.3 else place)
    return tuple(index)


def test_pieces_of_chunks_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    for _ in range(500):
        axes = int(rng.integers(0, 4))
        shape = tuple(int(n) for n in rng.integers(1, 9, axes))
        chunk = tuple(int(n) for n in rng.integers(1, 6, axes))
        grid = chunks.grid(shape, chunk)
        whole = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        padded = np.full([n * c for n, c in zip(grid, chunk, strict=True)], -1)
        padded[tuple(map(slice, shape))] = whole
        index = random_index(rng, shape)
        piece = chunks.spans(index, shape, chunk)
        values = np.full([span.count for span in piece], -1)
        for number in chunks.places(piece, np.arange(int(np.prod(grid))), grid):
            parts = [span.part(n) for span, n in zip(piece, number, strict=True)]
            origin = [n * c for n, c in zip(number, chunk, strict=True)]
            block = padded[tuple(slice(o, o + c) for o, c in zip(origin, chunk, strict=True))]
            values[tuple(out for _, out in parts)] = block[tuple(inside for inside, _ in parts)]
        kept = [span.count for span in piece if not span.drop]
        np.testing.assert_array_equal(values.reshape(kept), whole[index])


def test_few_stored_chunks_of_an_endless_grid():
    shape, chunk = (1 << 40, 1 << 20), (1, 1)
    piece = chunks.spans((slice(None), 7), shape, chunk)
    stored = np.array([7, (5 << 20) + 7, (5 << 20) + 8])
    grid = chunks.grid(shape, chunk)
    assert list(chunks.places(piece, stored, grid)) == [(0, 7), (5, 7)]
    assert "too many" in chunks.size_fault((1 << 40, 1 << 40), chunk, 4)
    assert "expected chunks of its size" in chunks.size_fault((5, 6), (1 << 20, 1 << 20), 4)


def test_many_chunks_of_hdf5_are_read_in_slabs(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_chunks, "SLAB", 4)
    whole = np.arange(11 * 7 * 5, dtype="f4").reshape(11, 7, 5)
    path = str(tmp_path / "a.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=whole, chunks=(2, 3, 2), compression="gzip")
    rng = np.random.default_rng(1)
    for index in [(), *(random_index(rng, whole.shape) for _ in range(100))]:
        np.testing.assert_array_equal(files.read(path, "x", index), whole[index])
    monkeypatch.setattr(hdf5_chunks, "MAX_TOUCHED", 10)
    with pytest.raises(files.FileError, match="expected 10"):
        files.read(path, "x")


def test_lzf_is_counted_where_it_might_be_long(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5_chunks, "LZF_SLACK", -(1 << 40))
    whole = np.random.default_rng(0).integers(0, 3, (16, 16, 16)).astype("f4")
    for name in ("sound", "long"):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            node = file.create_dataset("x", data=whole, chunks=(8, 8, 8), compression="lzf")
            if name == "long":
                _, packed = node.id.read_direct_chunk((0, 0, 0))
                node.id.write_direct_chunk((0, 0, 0), packed + b"\xe0\xff\x00" * 100)
    np.testing.assert_array_equal(files.read(str(tmp_path / "sound.h5")), whole)
    with pytest.raises(files.FileError, match="lzf block unfolds to more than"):
        files.read(str(tmp_path / "long.h5"))
