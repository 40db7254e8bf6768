"""Examples out of a source: retries, what happens to those that cannot be read, checks, threads."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxvol.data.source import Source, label
from jaxvol.types import Field, Spec, UserError

BACKOFF_S = (0.1, 0.4)  # waits between the tries of one read: three tries in all
# What a truncated, locked or vanished file raises: numpy reports a short .npy as ValueError.
# SystemError: numpy parses headers with ast, which failed in a reader thread of Python 3.11 on a
# sound file ("recursion depth mismatch").
READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, SystemError)


MASK = Field(("observed",))  # a leaf that no spec lists: 1 = observed, 0 = missing


@dataclasses.dataclass(frozen=True)
class Reader:
    """A source, the policy for what cannot be read, and the log of it (the only thing here that
    changes).
    """

    source: Source
    on_error: str  # stop | skip
    max_skips: int
    failures: dict[tuple[str, int], str]  # (split, index) -> reason
    lock: Any  # guards `failures`


def reader(source: Source, on_error: str, max_skips: int) -> Reader:
    """A reader of `source` that has not failed yet; UserError for an unknown policy."""
    if on_error not in ("stop", "skip"):
        raise UserError(f"data.on_error is {on_error!r}: expected 'stop' or 'skip'")
    return Reader(source, on_error, max_skips, {}, threading.Lock())


def read(
    reader: Reader, split: str, index: int, make_rng: Callable
) -> tuple[dict[str, np.ndarray], int]:
    """(example, its index): the example `index`, checked, or the next of the split that can be
    read.

    make_rng: () -> the generator that `source.read` draws with; called once per try, so that a
              retried read draws the same crop.

    Raises UserError: an example that cannot be read under the policy "stop", more of them than
    `max_skips` under "skip", or an example that does not fit the spec.
    """
    size = reader.source.sizes[split]
    for candidate in ((index + i) % size for i in range(size)):
        if (split, candidate) in reader.failures:
            continue
        try:
            example = _read_with_retries(reader.source, split, candidate, make_rng)
            example = {name: np.asarray(values) for name, values in example.items()}
        except READ_ERRORS as error:
            _record_failure(reader, split, candidate, error)
            continue
        check(example, reader.source, split, candidate)
        return example, candidate
    raise UserError(
        f"no example of the split {split!r} could be read ({size} tried); the first: "
        f"{label(reader.source, split, 0)}: {reader.failures[split, 0]}"
    )


def skipped(reader: Reader) -> list[str]:
    """One line per example that could not be read: which one, and why."""
    with reader.lock:
        failures = sorted(reader.failures.items())
    return [
        f"{label(reader.source, split, index)}: {reason}" for (split, index), reason in failures
    ]


def read_ahead(function: Callable[[Any], Any], items: Iterable, workers: int) -> Iterator:
    """`map(function, items)` in order, computed by `workers` threads at most 2 * workers + 2 items
    ahead; 0 = no thread.

    An exception of a worker is raised where its item would have come.  The threads end with the
    iterator, also when it is closed early or garbage-collected.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="jaxvol-reader")
    pending: collections.deque = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers + 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # no wait: the garbage collector may run this inside a reader thread, which cannot join
        # itself
        pool.shutdown(wait=False, cancel_futures=True)


def check(example: dict[str, np.ndarray], source: Source, split: str, index: int) -> None:
    """UserError unless the example has the spec's leaves, shapes and channels and is finite where
    it is observed.
    """

    def fail(problem: str, expected: str) -> None:
        raise UserError(f"{label(source, split, index)}: {problem}; expected {expected}")

    spec = source.spec
    if not set(spec.fields) <= set(example) <= set(spec.fields) | {"mask"}:
        fail(f"leaves {sorted(example)}", f"{sorted(spec.fields)} and optionally 'mask'")
    for name, values in example.items():
        _check_leaf(name, values, spec, fail)
    if "mask" in example and not ((example["mask"] == 0) | (example["mask"] == 1)).all():
        fail("mask has values other than 0 and 1", "1 = observed, 0 = missing")
    for name, field in spec.fields.items():
        if field.kind == "table":  # what is unknown is NaN in the file
            continue
        finite = np.isfinite(example[name])
        if (
            not finite.all()
            and "mask" in example
            and example["mask"].shape[:-1] == finite.shape[:-1]
        ):
            finite |= example["mask"] == 0
        if not finite.all():
            place = tuple(int(i) for i in np.argwhere(~finite)[0])
            fail(
                f"{name} has {np.sum(~finite)} non-finite values, the first at [D, H, W, C] = "
                f"{place}",
                "finite values (mend the data, or mark the voxels as missing in a mask)",
            )


def _check_leaf(name: str, values: np.ndarray, spec: Spec, fail: Callable) -> None:
    field = spec.fields[name] if name in spec.fields else MASK
    expected = field.leaf(spec.shape)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        fail(f"{name} has the type {values.dtype}", "numbers")
    if field.whole_numbers:
        _check_classes(name, values, field, fail)
    if values.shape == expected:
        return
    if not field.on_grid:
        fail(f"{name} has shape {values.shape}", f"{list(expected)}, as a {field.kind} has")
    if values.ndim != 4:
        fail(f"{name} has shape {values.shape}", "four axes [D, H, W, C]")
    if values.shape[-1] != expected[-1]:
        fail(f"{name} has {values.shape[-1]} channels (shape {values.shape})", f"{expected[-1]}")
    fail(
        f"{name} has the volume {values.shape[:-1]}",
        f"{expected[:-1]}, as every example of this dataset",
    )


def _check_classes(name: str, values: np.ndarray, field: Field, fail: Callable) -> None:
    """Classes are whole numbers from 0, below the number of names where there are some."""
    if not np.issubdtype(values.dtype, np.integer):
        fail(f"{name} has the type {values.dtype}", f"whole numbers, as a {field.kind} has")
    low, high = int(np.min(values)), int(np.max(values))
    count = len(field.class_names) or high + 1
    if low < 0 or high >= count:
        fail(f"{name} has classes from {low} to {high}", f"0 to {count - 1}")


def _read_with_retries(
    source: Source, split: str, index: int, make_rng: Callable
) -> dict[str, np.ndarray]:
    for wait in BACKOFF_S:
        try:
            return source.read(split, index, make_rng())
        except READ_ERRORS:
            time.sleep(wait)
    return source.read(split, index, make_rng())


def _record_failure(reader: Reader, split: str, index: int, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}"
    message = (
        f"cannot read {label(reader.source, split, index)} after {len(BACKOFF_S) + 1} "
        f"tries: {reason}"
    )
    if reader.on_error == "stop":
        raise UserError(f"{message}. Mend or remove it, or set data.on_error='skip'") from error
    with reader.lock:
        reader.failures[split, index] = reason
        count = len(reader.failures)
    if count > reader.max_skips:
        raise UserError(
            f"{count} examples could not be read, data.max_skips allows {reader.max_skips}; the "
            f"last: {message}"
        ) from error
