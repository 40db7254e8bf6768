"""Chunks of HDF5 data sets: none is given to the library before its size is known.

A chunk goes through filters, of which the library undoes the last first and lets each make what it
likes.  deflate, bzip2, blosc and zstd are unpacked here within the declared size; lzf is counted;
szip, nbit, scaleoffset, lz4 and bitshuffle state a size, which has to be the declared one.  A chunk
that has passed is remembered, so that it is looked at once for each process.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxvol.data.io import chunks
from jaxvol.data.io.unpack import check_size, unpack

MAX_TOUCHED = 1 << 20  # chunks that one read may lie in
SLAB = 1 << 12  # chunks that the library is given at once; it keeps a note on each
MAX_REMEMBERED = 1 << 18
SHUFFLE, FLETCHER32, SZIP, NBIT, SCALEOFFSET, LZF = 2, 3, 4, 5, 6, 32000
UNPACKED = {1: "zlib", 307: "bz2", 32001: "blosc", 32015: "zstd"}
STATED = {32004: "lz4", 32008: "bitshuffle"}  # eight bytes, the highest first
LZF_RATIO = 88  # three bytes of lzf make 264
LZF_SLACK = 1 << 26  # bytes that lzf may make before they are counted, which is slow
NAMES = {SHUFFLE: "shuffle", FLETCHER32: "fletcher32", SZIP: "szip", NBIT: "nbit", LZF: "lzf"}
NAMES |= {SCALEOFFSET: "scaleoffset"} | UNPACKED | STATED

_checked: set[tuple] = set()  # (file, data set, chunk) whose size is known


def filters(node: Any) -> list[tuple[int, tuple[int, ...]]]:
    """(number, parameters) of a data set's filters, in the order in which they were applied."""
    plan = node.id.get_create_plist()
    return [plan.get_filter(i)[::2][:2] for i in range(plan.get_nfilters())]


def filter_fault(node: Any) -> str:
    """Why the data set's filters are not trusted; "" where they are."""
    steps, elements = filters(node), math.prod(node.chunks)
    for place, (number, values) in enumerate(steps):
        if number not in NAMES:
            return f"its filter {number} is none whose size can be checked; write it with gzip"
        if number in (NBIT, SCALEOFFSET) and (len(values) < 3 or values[2] != elements):
            return f"its filter {NAMES[number]} is set for other chunks than {node.chunks}"
        # what such a filter makes is not unpacked here, so nothing can be said of what follows
        before = {step for step, _ in steps[:place]}
        if number not in UNPACKED and number not in (SHUFFLE, FLETCHER32) and before - {SHUFFLE}:
            return f"its filter {NAMES[number]} lies over another; write it with one of them"
    return ""


def read(node: Any, index: tuple, dataset: tuple, size: int) -> np.ndarray:
    """The piece `index` of a chunked data set, in a file of `size` bytes; `dataset` identifies
    both.

    Raises ValueError where a chunk unfolds to more than is declared, or the piece lies in more
    than MAX_TOUCHED chunks.
    """
    piece = chunks.spans(index, node.shape, node.chunks)
    count = chunks.touched(piece)
    if count > MAX_TOUCHED:
        raise ValueError(f"a piece in {count} chunks of {node.chunks}; expected {MAX_TOUCHED}")
    if steps := filters(node):
        _check(node, piece, steps, dataset, size)
    if count <= SLAB:
        return node[index]
    first, rest = piece[0], max(1, count // len(piece[0].chunks()))
    step, values = max(1, SLAB // rest), np.empty([span.count for span in piece], node.dtype)
    numbers = first.chunks()
    for low in range(numbers.start, numbers.stop, step):
        parts = [first.part(n) for n in range(low, min(low + step, numbers.stop))]
        outside = slice(parts[0][1].start, parts[-1][1].stop)
        if outside.start >= outside.stop:
            continue
        start = first.start + outside.start * first.step
        stop = first.start + (outside.stop - 1) * first.step + 1
        others = tuple(
            slice(s.start, s.start + (s.count - 1) * s.step + 1, s.step) for s in piece[1:]
        )
        values[outside] = node[(slice(start, stop, first.step), *others)]
    return values.reshape([span.count for span in piece if not span.drop])


def _check(node: Any, piece: tuple, steps: list, dataset: tuple, size: int) -> None:
    """Every stored chunk that the piece touches unfolds to just what is declared."""
    count = chunks.touched(piece)
    # counting the stored ones reads the whole index
    if count <= SLAB or count <= node.id.get_num_chunks():
        numbers = itertools.product(*(span.chunks() for span in piece))
        offsets = (tuple(n * c for n, c in zip(chunk, node.chunks)) for chunk in numbers)
    else:
        offsets = []
        node.id.chunk_iter(lambda info: offsets.append(tuple(info.chunk_offset)))
    expected = math.prod(node.chunks) * node.dtype.itemsize
    for offset in offsets:
        if (dataset, offset) in _checked:
            continue
        info = node.id.get_chunk_info_by_coord(offset)
        if not info.size or info.byte_offset is None:
            continue
        if info.size > size:
            raise ValueError(f"the chunk at {offset} should take {info.size} bytes of {size}")
        mask, packed = node.id.read_direct_chunk(offset)
        check_chunk(packed, mask, steps, expected)
        if len(_checked) >= MAX_REMEMBERED:
            _checked.clear()
        _checked.add((dataset, offset))


def check_chunk(packed: bytes, mask: int, steps: list, expected: int) -> None:
    """ValueError unless the chunk's filters, undone one after the other, end at `expected` bytes;
    those whose bit in `mask` is set were left out.
    """
    used = [(n, values) for i, (n, values) in enumerate(steps) if not mask >> i & 1]
    # what lies before a filter: the chunk itself, or what another has made of it, a bit more
    sizes = [expected]
    for number, _ in used:
        exact = number in (SHUFFLE, FLETCHER32)
        sizes.append(sizes[-1] + (4 if exact else sizes[-1] // 8 + 4096))
    packed = memoryview(packed)
    for (number, values), limit in reversed(list(zip(used, sizes))):
        if number in UNPACKED:
            packed = memoryview(unpack(UNPACKED[number], packed, limit))
        elif number == FLETCHER32:
            packed = packed[:-4]
        elif number == SHUFFLE:
            packed = memoryview(unshuffle(packed, values[0] if values else 1))
        else:
            check_size(NAMES[number], SIZES[number](packed, limit), limit)
            return
    if len(packed) != expected:
        raise ValueError(f"a chunk unfolds to {len(packed)} bytes; {expected} are declared")


def unshuffle(packed: memoryview, itemsize: int) -> bytes:
    """Bytes back in the order of the elements: the filter puts all first bytes first, and leaves
    what is no whole element at the end.
    """
    count = len(packed) // itemsize if itemsize > 1 else 0
    body = np.frombuffer(packed, np.uint8, count * itemsize)
    values = body.reshape(itemsize, count).T.tobytes() if count else b""
    return values + bytes(packed[count * itemsize :])


def _lzf_size(packed: memoryview, limit: int) -> int:
    """Bytes that lzf makes of a chunk; counted only where it might be far too many."""
    if len(packed) * LZF_RATIO <= limit + LZF_SLACK:
        return 0
    place, size = 0, 0
    while place < len(packed) and size <= limit:
        control = packed[place]
        if control < 32:
            size, place = size + control + 1, place + control + 2
        elif control < 224:
            size, place = size + (control >> 5) + 2, place + 2
        else:
            size, place = size + packed[place + 1] + 9, place + 3
    return size


SIZES: dict[int, Callable[[memoryview, int], int]] = {
    LZF: _lzf_size,
    # szip states its size in the first four bytes
    SZIP: lambda packed, limit: int.from_bytes(packed[:4], "little"),
    # their parameters have been checked
    NBIT: lambda packed, limit: 0,
    SCALEOFFSET: lambda packed, limit: 0,
} | dict.fromkeys(STATED, lambda packed, limit: int.from_bytes(packed[:8], "big"))
