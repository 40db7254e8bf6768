"""What a container's opener returns, and the sizes that all containers reckon with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxvol.data.io.unpack import DEFLATE_RATIO

Shape = tuple[int, ...]
MAX_AXES = 64  # NumPy has no array with more
SLACK = 1 << 20  # bytes beside the array that any file may spend on padding and text


class Chunks(NamedTuple):
    """The pieces in which an array is stored."""

    missing: int  # they read as the fill value
    total: int
    size: int  # bytes of one


class Opened(NamedTuple):
    """An open file: its arrays, and how to read a piece of one."""

    arrays: dict[str, tuple[Shape, np.dtype]]  # key -> shape, dtype
    fault: Callable[[str], str]  # key -> why its array must not be read, "" where it may
    chunks: Callable[[str], Chunks]
    # (key, index) -> the piece; index is () where not `partial`
    read: Callable[[str, Any], Any]
    # the entries of files.metadata that this container has
    metadata: Callable[[str], dict[str, Any]]
    close: Callable[[], None]
    partial: bool  # a piece costs less than the whole
    keyed: bool  # arrays have keys


def whole(key: str) -> Chunks:
    """`Opened.chunks` of an array that is stored in one piece, which may be read in part."""
    return Chunks(0, 1, 0)


def array_bytes(shape: Shape, dtype: np.dtype) -> int:
    """Bytes that an array of this shape takes, without overflow."""
    return math.prod(int(n) for n in shape) * dtype.itemsize


def size_fault(shape: Shape, dtype: np.dtype, stored: int) -> str:
    """Why an array with `stored` bytes is not what its header declares; "" where it is."""
    expected = array_bytes(shape, dtype)
    if dtype.hasobject:
        return "holds Python objects, which would have to be unpickled; expected numbers"
    if any(n < 0 for n in shape) or len(shape) > MAX_AXES:
        return f"declares {len(shape)} axes, or one below 0; expected at most {MAX_AXES} from 0 on"
    if stored != expected:
        return f"declares shape {shape} of {dtype} ({expected} bytes) but {stored} bytes are stored"
    return ""


def deflate_fault(expected: int, packed: int) -> str:
    """Why `packed` bytes of deflate cannot hold `expected`; "" where they can."""
    if expected <= packed * DEFLATE_RATIO + SLACK:
        return ""
    return (
        f"declares {expected} bytes in {packed} packed ones, which cannot hold it: "
        f"deflate makes at most {DEFLATE_RATIO} out of one"
    )
