"""Which chunks of an array a piece of it touches, and what of each lies where in the piece.

Arithmetic alone: nothing here grows with the number of chunks, so that an array that claims 2^60
of them costs nothing until they are read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]
MAX_CHUNKS = 1 << 62  # so that chunks can be numbered
# a chunk may hold more than its array, which grows: up to four times, or this many bytes
MAX_PADDING = 1 << 26


class Span(NamedTuple):
    """What is read along one axis: `count` places from `start` in steps of `step`, chunks of
    `chunk`.
    """

    start: int
    step: int
    count: int
    chunk: int
    drop: bool  # an integer index: the axis is no axis of the piece

    def chunks(self) -> range:
        """The chunks between the first and the last place."""
        if not self.count:
            return range(0)
        last = self.start + (self.count - 1) * self.step
        return range(self.start // self.chunk, last // self.chunk + 1)

    def part(self, number: int) -> tuple[slice, slice]:
        """(places inside chunk `number`, places in the piece) that are the same."""
        low = max(0, -((self.start - number * self.chunk) // self.step))
        high = min(self.count, -((self.start - (number + 1) * self.chunk) // self.step))
        first = self.start + low * self.step - number * self.chunk
        stop = first + (high - low - 1) * self.step + 1 if high > low else first
        return slice(first, stop, self.step), slice(low, max(low, high))


def spans(index: tuple, shape: Shape, chunk: Shape) -> tuple[Span, ...]:
    """One span per axis for an index of slices and integers; missing ones are whole axes.

    Raises IndexError, as NumPy does, for too many of them, a place outside or a step below 1.
    """
    if len(index) > len(shape):
        raise IndexError(f"{len(index)} indices for {len(shape)} axes")
    filled = (*index, *[slice(None)] * (len(shape) - len(index)))
    return tuple(_span(place, size, c) for place, size, c in zip(filled, shape, chunk, strict=True))


def _span(place: slice | int, size: int, chunk: int) -> Span:
    if isinstance(place, slice):
        start, stop, step = place.indices(size)
        if step < 1:
            raise IndexError(f"a step of {step}; expected at least 1")
        return Span(start, step, len(range(start, stop, step)), chunk, False)
    place = int(place)
    if not -size <= place < size:
        raise IndexError(f"index {place} is out of range for an axis of {size}")
    return Span(place % size, 1, 1, chunk, True)


def grid(shape: Shape, chunk: Shape) -> Shape:
    """Chunks along every axis."""
    return tuple(-(-size // c) for size, c in zip(shape, chunk, strict=True))


def touched(piece: tuple[Span, ...]) -> int:
    """How many chunks the piece lies in, at most."""
    return math.prod(len(span.chunks()) for span in piece)


def places(piece: tuple[Span, ...], stored: np.ndarray, shape: Shape) -> Iterator[Shape]:
    """The chunks that the piece touches; of those `stored` (flat numbers in the grid `shape`)
    where they are fewer.
    """
    if touched(piece) <= len(stored):
        return itertools.product(*(span.chunks() for span in piece))
    inside = np.ones(len(stored), bool)
    coordinates = np.unravel_index(stored, shape) if shape else ()
    for numbers, span in zip(coordinates, piece):
        first, last = span.chunks().start, span.chunks().stop
        inside &= (numbers >= first) & (numbers < last)
    return iter([tuple(int(n[i]) for n in coordinates) for i in np.flatnonzero(inside)])


def size_fault(shape: Shape, chunk: Shape, itemsize: int) -> str:
    """Why chunks of this size, or as many of them, must not be read; "" where they may."""
    array, one = math.prod(shape) * itemsize, math.prod(chunk) * itemsize
    if min(chunk, default=1) < 1 or one > max(4 * array, MAX_PADDING):
        return (
            f"declares chunks {chunk} ({one} bytes) for shape {shape}; expected chunks of its size"
        )
    if math.prod(grid(shape, chunk)) > MAX_CHUNKS:
        return f"declares shape {shape} in chunks {chunk}, which are too many to be numbered"
    return ""
