"""From a source of examples in physical units to deterministic batches of normalised volumes.

A dataset file says where examples lie and how one is read (`Source`); everything else is here once:
order, retries, checks, augmentation, normalisation, padding and reader threads.  No iterator has a
state: batch number `step` is a function of (seed, step), so that a resumed run reads what an
       undisturbed one would have read.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxvol.data.augment import augment, check_augmentations
from jaxvol.ops import normalise
from jaxvol.types import Dataset, Field, Spec, UserError

BACKOFF_S = (0.1, 0.4)  # waits between the tries of one read: three tries in all
# what a truncated, locked or vanished file raises; numpy reports a short .npy as ValueError
# SystemError: numpy parses headers with ast, which failed in a reader thread of Python 3.11 on a
# sound file ("recursion depth mismatch")
READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, SystemError)
# a normaliser is fitted on at most this many voxels (64 volumes of 64^3)
FIT_VOXELS = 2**24
ORDER, READ, AUGMENT, FIT = range(4)  # what a random stream is for: the second word of its seed


def fields() -> ConfigDict:
    """Fields that every dataset of volumes has; a dataset's own function adds to them."""
    return ConfigDict(
        {
            "num_workers": 2,  # reader threads; the batches do not depend on it
            # stop | skip an example that cannot be read after three tries
            "on_error": "stop",
            "max_skips": 10,  # more skipped examples than this stop the run
            # cube: rotations and reflections the fields allow; transpose: exchanges of axes only;
            # shift: periodic boxes only
            "augment": ("cube", "shift"),
            "fit_examples": 64,  # training examples that normalisers are fitted on
            # chain of (name, arguments), see jaxvol/ops/normalise.py
            "input_normaliser": (("standardise", {}),),
            "target_normaliser": (("standardise", {}),),
        }
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to examples in physical units, by split and index.

    read:  (split, index, rng) -> {"input": [D, H, W, C], "target": [D, H, W, C], optionally "mask":
           [D, H, W, 1] with 1 = observed and 0 = missing}.  `rng` is given for training reads (a
           source that draws random crops uses it) and None for evaluation.  Called from several
           threads at once.
    names: (split) -> one name per example, for messages and tables
    """

    spec: Spec  # normalisers empty
    sizes: dict[str, int]  # examples per split: train, val, test
    read: Callable[[str, int, np.random.Generator | None], dict[str, np.ndarray]]
    names: Callable[[str], list[str]]
    hash: str  # changes when the data or how it is read changes


@dataclasses.dataclass(frozen=True)
class Reader:
    """A source with the policy for what cannot be read, and the log of it (the only thing here that
    changes).
    """

    source: Source
    on_error: str
    max_skips: int
    failures: dict[tuple[str, int], str]
    lock: Any


def dataset(source: Source, config) -> Dataset:
    """The dataset of `source` under the full config: normalisers fitted on training examples,
    batches by step.

    Batches: example number i = step * batch_size + row of the whole run lies in epoch i // n at
             place i % n of that
    epoch's permutation of the n training examples, so every epoch sees every example once and no
    batch is partial. Augmentation comes before normalisation (in physical units, where vectors are
    vectors).  Where `mask` is 0, the normalised target is 0; the input stays as context where it is
    finite.  Leaves are float32, or float64 when config.precision is "f64".

    Raises UserError: bad normaliser or augmentation, no training example to fit on, an example that
    cannot be read (data.on_error = "stop", or more than data.max_skips), that has the wrong leaves,
    shape or channels, or is not finite.
    """
    data, seed, batch_size = config.data, config.seed % 2**64, config.batch_size
    dtype = np.float64 if config.precision == "f64" else np.float32
    if data.on_error not in ("stop", "skip"):
        raise UserError(f"data.on_error is {data.on_error!r}: expected 'stop' or 'skip'")
    check_augmentations(source.spec, tuple(data.augment))
    reader = Reader(source, data.on_error, data.max_skips, {}, threading.Lock())
    spec = _fit(
        reader,
        {"input": data.input_normaliser, "target": data.target_normaliser},
        data.fit_examples,
        seed,
        data.num_workers,
    )
    permutation = functools.lru_cache(maxsize=8)(
        functools.partial(_permutation, seed, source.sizes["train"])
    )

    def training_example(step: int, row: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(step * batch_size + row, source.sizes["train"])
        example, _ = _read(
            reader, "train", int(permutation(epoch)[place]), lambda: _rng(seed, READ, step, row)
        )
        example = augment(example, spec, _rng(seed, AUGMENT, step, row), tuple(data.augment))
        return _normalise(example, spec, dtype)

    def batch(step: int, rows: slice) -> dict[str, np.ndarray]:
        _size(source, "train")
        return _stack([training_example(step, row) for row in range(batch_size)[rows]])

    def stream(start: int, stop: int, rows: slice) -> Iterator[dict[str, np.ndarray]]:
        _size(source, "train")
        return read_ahead(lambda step: batch(step, rows), range(start, stop), data.num_workers)

    def batches(split: str, size: int, rows: slice, limit: int) -> Iterator[dict[str, np.ndarray]]:
        count = _size(source, split)
        count = min(count, limit) if limit > 0 else count
        return read_ahead(
            lambda first: _evaluation_batch(
                reader, spec, dtype, split, range(first, first + size)[rows], count
            ),
            range(0, count, size),
            data.num_workers,
        )

    def skipped() -> list[str]:
        with reader.lock:
            failures = sorted(reader.failures.items())
        return [f"{_label(source, split, index)}: {reason}" for (split, index), reason in failures]

    return Dataset(
        spec=spec,
        sizes=dict(source.sizes),
        batch=batch,
        stream=stream,
        batches=batches,
        names=source.names,
        hash=source.hash,
        skipped=skipped,
    )


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


def _rng(*words: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def _permutation(seed: int, size: int, epoch: int) -> np.ndarray:
    return _rng(seed, ORDER, epoch).permutation(size)


def _size(source: Source, split: str) -> int:
    """Examples in `split`; UserError when there is no such split or it is empty."""
    if split not in source.sizes:
        raise UserError(f"there is no split {split!r}: this dataset has {', '.join(source.sizes)}")
    if source.sizes[split] < 1:
        sizes = ", ".join(f"{name}: {size}" for name, size in source.sizes.items())
        raise UserError(f"the split {split!r} is empty ({sizes}): give it at least one example")
    return source.sizes[split]


def _label(source: Source, split: str, index: int) -> str:
    return f"{split} example {index} ({source.names(split)[index]})"


def _read(
    reader: Reader, split: str, index: int, make_rng: Callable
) -> tuple[dict[str, np.ndarray], int]:
    """The example `index`, checked, or the next of the split that can be read; and the index it
    has.
    """
    size = reader.source.sizes[split]
    for candidate in ((index + i) % size for i in range(size)):
        if (split, candidate) in reader.failures:
            continue
        try:
            example = _read_with_retries(reader.source, split, candidate, make_rng)
        except READ_ERRORS as error:
            _record_failure(reader, split, candidate, error)
            continue
        _check(example, reader.source, split, candidate)
        return example, candidate
    raise UserError(
        f"no example of the split {split!r} could be read ({size} tried); the first: "
        f"{_label(reader.source, split, 0)}: {reader.failures[split, 0]}"
    )


def _read_with_retries(
    source: Source, split: str, index: int, make_rng: Callable
) -> dict[str, np.ndarray]:
    for wait in BACKOFF_S:
        try:
            # a fresh rng per try: a retried read draws the same crop
            return source.read(split, index, make_rng())
        except READ_ERRORS:
            time.sleep(wait)
    return source.read(split, index, make_rng())


def _record_failure(reader: Reader, split: str, index: int, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}"
    message = (
        f"cannot read {_label(reader.source, split, index)} after {len(BACKOFF_S) + 1} "
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


def _check(example: dict[str, np.ndarray], source: Source, split: str, index: int) -> None:
    """UserError unless the example has the spec's leaves, shapes and channels and is finite where
    it is observed.
    """

    def fail(found: str, expected: str) -> None:
        raise UserError(f"{_label(source, split, index)}: {found}; expected {expected}")

    spec = source.spec
    expected_keys = set(spec.fields) | {"mask"}
    if not set(spec.fields) <= set(example) <= expected_keys:
        fail(f"leaves {sorted(example)}", f"{sorted(spec.fields)} and optionally 'mask'")
    for name, values in example.items():
        channels = len(spec.fields[name].channels) if name in spec.fields else 1
        if values.ndim != 4:
            fail(f"{name} has shape {values.shape}", "four axes [D, H, W, C]")
        if values.shape[-1] != channels:
            fail(f"{name} has {values.shape[-1]} channels (shape {values.shape})", f"{channels}")
        if values.shape[:-1] != tuple(spec.shape):
            fail(
                f"{name} has the volume {values.shape[:-1]}",
                f"{tuple(spec.shape)}, as every example of this dataset",
            )
        if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
            fail(f"{name} has the type {values.dtype}", "numbers")
    if "mask" in example and not ((example["mask"] == 0) | (example["mask"] == 1)).all():
        fail("mask has values other than 0 and 1", "1 = observed, 0 = missing")
    for name in spec.fields:
        finite = np.isfinite(example[name])
        if not finite.all() and "mask" in example:
            finite |= example["mask"] == 0
        if not finite.all():
            place = tuple(int(i) for i in np.argwhere(~finite)[0])
            fail(
                f"{name} has {np.sum(~finite)} non-finite values, the first at [D, H, W, C] = "
                f"{place}",
                "finite values (mend the data, or mark the voxels as missing in a mask)",
            )


def _normalise(example: dict[str, np.ndarray], spec: Spec, dtype) -> dict[str, np.ndarray]:
    """Every field in normalised units, computed in the source's precision and cast at the end.

    The mask hides the target.  The input stays as context wherever it is a number; 0 takes the
    place of what is missing.
    """
    hidden = {}
    if "mask" in example:
        hidden = {
            "input": np.isfinite(example["input"]).all(-1, keepdims=True),
            "target": example["mask"],
        }
    return {
        name: (
            normalise.forward(
                spec.fields[name].normaliser, values, hidden[name] if name in hidden else None
            )
            if name in spec.fields
            else values
        ).astype(dtype)
        for name, values in example.items()
    }


def _stack(examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if len({frozenset(example) for example in examples}) > 1:
        raise UserError(
            "some examples of this dataset have a mask and others have none: give one to all of "
            "them"
        )
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _evaluation_batch(
    reader: Reader, spec: Spec, dtype, split: str, indices: range, count: int
) -> dict[str, np.ndarray]:
    """Examples `indices` of the split; those from `count` on repeat the first and, like replaced
    ones, have `_mask` 0.
    """
    wanted = [index if index < count else 0 for index in indices]
    read = {index: _read(reader, split, index, lambda: None) for index in sorted(set(wanted))}
    examples = {index: _normalise(example, spec, dtype) for index, (example, _) in read.items()}
    batch = _stack([examples[index] for index in wanted])
    batch["_mask"] = np.array(
        [i < count and read[index][1] == index for i, index in zip(indices, wanted)], np.float32
    )
    batch["_index"] = np.array(wanted, np.int32)
    return batch


def _fit(
    reader: Reader, steps: dict[str, Iterable], fit_examples: int, seed: int, workers: int
) -> Spec:
    """The spec with normalisers fitted on `fit_examples` training examples, evenly spread; masked
    voxels do not enter.
    """
    spec = reader.source.spec
    if fit_examples < 1:
        raise UserError(
            f"data.fit_examples is {fit_examples}: expected at least 1 training example to fit "
            "normalisers on"
        )
    chains = {}
    for name, field in spec.fields.items():
        if name in steps:
            with _naming(name, field):
                chains[name] = normalise.check(steps[name], len(field.channels))
    samples, masked = {name: [] for name in chains}, False
    if any(normalise.needs_data(chain) for chain in chains.values()):
        size = _size(reader.source, "train")
        indices = np.unique(
            np.linspace(0, size - 1, min(fit_examples, size)).round().astype(int)
        ).tolist()
        examples = read_ahead(
            lambda i: _read(reader, "train", i, lambda: _rng(seed, FIT, i))[0], indices, workers
        )
        for index, example in zip(indices, examples):
            masked = "mask" in example
            place = _fit_voxels(example, FIT_VOXELS // len(indices), _rng(seed, FIT, index, 1))
            for name, taken in samples.items():
                taken.append(example[name].reshape(-1, example[name].shape[-1])[place])
    fields = dict(spec.fields)
    for name, chain in chains.items():
        field = fields[name]
        if normalise.needs_data(chain):
            masks = (
                [np.ones((len(values), 1), bool) for values in samples[name]] if masked else None
            )
            with _naming(name, field):
                chain = normalise.fit(chain, samples[name], masks, vector=field.kind == "vector")
        fields[name] = dataclasses.replace(field, normaliser=chain)
    return dataclasses.replace(spec, fields=fields)


@contextlib.contextmanager
def _naming(name: str, field: Field) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(
            f"data.{name}_normaliser (channels {', '.join(field.channels)}): {error}"
        ) from None


def _fit_voxels(
    example: dict[str, np.ndarray], budget: int, rng: np.random.Generator
) -> np.ndarray:
    """Flat indices of the observed voxels, at most `budget` of them, drawn at random."""
    volume = (
        example["mask"] if "mask" in example else np.ones((*example["input"].shape[:-1], 1), bool)
    )
    observed = np.flatnonzero(volume)
    return (
        observed
        if len(observed) <= budget
        else rng.choice(observed, budget, replace=False, shuffle=False)
    )
