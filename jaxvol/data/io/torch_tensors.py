"""Storages and tensors of torch: the numbers in an archive, and views of them.

A storage declares its count of numbers, which its entry in the archive has to hold.  A tensor is a
view, so a thousand tensors of one storage take its memory once; so do half-precision numbers, which
become float32 once for each storage.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxvol.types import UserError

MAX_AXES = 64  # NumPy and torch have no tensor with more
STORAGES = {
    f"torch {name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Float": "f4",
        "Double": "f8",
        "Half": "f2",
        "BFloat16": ml_dtypes.bfloat16,
        "Long": "i8",
        "Int": "i4",
        "Short": "i2",
        "Char": "i1",
        "Byte": "u1",
        "Bool": "?",
        "ComplexFloat": "c8",
        "ComplexDouble": "c16",
    }.items()
}
_short = reprlib.Repr()
_short.maxlevel, _short.maxtuple, _short.maxstring = 2, 8, 80


class Storage(NamedTuple):
    """The numbers behind one or more tensors, [n]."""

    values: np.ndarray
    itemsize: int  # as they are in the file


def short(value: Any) -> str:
    """A value as messages show it, however large or nested it is."""
    return _short.repr(value)[:300]


def single(x: np.ndarray) -> np.ndarray:
    """Half precision as float32, which holds it exactly; everything else as it is, in the machine's
    byte order.
    """
    if x.dtype in (np.dtype("f2"), np.dtype(">f2"), np.dtype(ml_dtypes.bfloat16)):
        return x.astype(np.float32)
    return x.astype(x.dtype.newbyteorder("="), copy=False)


def storage(data: bytes, dtype: np.dtype, count: Any, big: bool, key: str) -> Storage:
    """The storage of an archive's entry `key`; UserError unless it holds `count` numbers."""
    if type(count) is not int or not 0 <= count * dtype.itemsize <= len(data):
        raise UserError(
            f"storage {key} should hold {short(count)} numbers of {dtype}, but has {len(data)} "
            "bytes"
        )
    values = np.frombuffer(data, dtype.newbyteorder(">") if big else dtype, count)
    return Storage(single(values), dtype.itemsize)


def tensor(storage: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
    """A view of the storage, refused unless every element lies inside and it has no more elements
    than the storage.
    """
    what = f"a tensor of size {short(size)}, strides {short(stride)}, offset {short(offset)}"
    if (
        not isinstance(storage, Storage)
        or not isinstance(size, (tuple, list))
        or not isinstance(stride, (tuple, list))
        or len(size) != len(stride)
        or len(size) > MAX_AXES
        or any(type(n) is not int or n < 0 for n in (offset, *size, *stride))
    ):
        raise UserError(f"found {what} on a {type(storage).__name__}, which is not valid")
    count, values = math.prod(size), storage.values
    last = offset + sum((n - 1) * s for n, s in zip(size, stride))
    if count > values.size or (count and last >= values.size):
        raise UserError(f"found {what}, which does not fit its storage of {values.size} numbers")
    if not count:
        return np.zeros(size, values.dtype)
    steps = [s * values.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)
