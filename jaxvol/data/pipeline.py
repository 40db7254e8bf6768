"""From a source of examples in physical units to deterministic batches of normalised volumes.

A dataset file says where examples lie and how one is read (jaxvol/data/source.py); everything else
is done once for all of them: order, augmentation, normalisation and padding here, retries, checks
and reader threads in reading.py, fitted normalisers in fit.py.  No iterator has a state: batch
number `step` is a function of (seed, step), so that a resumed run reads what an undisturbed one
would have read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
from ml_collections import ConfigDict

from jaxvol.data import fit, reading
from jaxvol.data.augment import augment, check_augmentations
from jaxvol.data.randomness import AUGMENT, ORDER, READ, generator
from jaxvol.data.reading import Reader, read_ahead
from jaxvol.data.source import Source, examples_in
from jaxvol.ops import normalise
from jaxvol.types import Dataset, Spec, UserError


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


def dataset(source: Source, config) -> Dataset:
    """The dataset of `source` under the full config: fitted normalisers, and batches by step.

    Order: example number i = step * batch_size + row of the whole run lies in epoch i // n, at
    place i % n of that epoch's permutation of the n training examples, so that every epoch sees
    every example once and no batch is partial.

    Augmentation comes before normalisation (in physical units, where vectors are vectors).  Where
    `mask` is 0, the normalised target is 0; the input stays as context where it is finite.  Leaves
    are float32, or float64 when config.precision is "f64".

    Raises UserError: a bad normaliser or augmentation, no training example to fit on, an example
    that cannot be read (data.on_error = "stop", or more than data.max_skips), that has the wrong
    leaves, shape or channels, or that is not finite.
    """
    data, batch_size, workers = config.data, config.batch_size, config.data.num_workers
    dtype = np.float64 if config.precision == "f64" else np.float32
    reader = reading.reader(source, data.on_error, data.max_skips)
    check_augmentations(source.spec, tuple(data.augment))
    steps = {"input": data.input_normaliser, "target": data.target_normaliser}
    spec = fit.normalisers(reader, steps, data.fit_examples, config.seed % 2**64, workers)
    training_example = _training_examples(reader, spec, config, dtype)

    def batch(step: int, rows: slice) -> dict[str, np.ndarray]:
        examples_in(source, "train")
        return _stack([training_example(step, row) for row in range(batch_size)[rows]])

    def stream(start: int, stop: int, rows: slice) -> Iterator[dict[str, np.ndarray]]:
        examples_in(source, "train")
        return read_ahead(lambda step: batch(step, rows), range(start, stop), workers)

    def batches(split: str, size: int, rows: slice, limit: int) -> Iterator[dict[str, np.ndarray]]:
        count = examples_in(source, split)
        count = min(count, limit) if limit > 0 else count

        def starting_at(first: int) -> dict[str, np.ndarray]:
            indices = range(first, first + size)[rows]
            return _evaluation_batch(reader, spec, dtype, split, indices, count)

        return read_ahead(starting_at, range(0, count, size), workers)

    return Dataset(
        spec=spec,
        sizes=dict(source.sizes),
        batch=batch,
        stream=stream,
        batches=batches,
        names=source.names,
        hash=source.hash,
        skipped=lambda: reading.skipped(reader),
    )


def _training_examples(
    reader: Reader, spec: Spec, config, dtype
) -> Callable[[int, int], dict[str, np.ndarray]]:
    """(step, row) -> that example of the run: read, augmented and normalised."""
    seed, names = config.seed % 2**64, tuple(config.data.augment)
    size, batch_size = reader.source.sizes["train"], config.batch_size

    @functools.lru_cache(maxsize=8)
    def permutation(epoch: int) -> np.ndarray:
        return generator(seed, ORDER, epoch).permutation(size)

    def training_example(step: int, row: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(step * batch_size + row, size)
        index = int(permutation(epoch)[place])
        example, _ = reading.read(reader, "train", index, lambda: generator(seed, READ, step, row))
        example = augment(example, spec, generator(seed, AUGMENT, step, row), names)
        return _normalise(example, spec, dtype)

    return training_example


def _evaluation_batch(
    reader: Reader, spec: Spec, dtype, split: str, indices: range, count: int
) -> dict[str, np.ndarray]:
    """Examples `indices` of the split.

    Those from `count` on repeat the first; they and those that stand in for an example that cannot
    be read have `_mask` 0.
    """
    padded = [index if index < count else 0 for index in indices]
    # index -> (example, the index that it really has)
    read = {i: reading.read(reader, split, i, lambda: None) for i in sorted(set(padded))}
    examples = {index: _normalise(example, spec, dtype) for index, (example, _) in read.items()}
    batch = _stack([examples[index] for index in padded])
    batch["_mask"] = np.array(
        [i < count and read[index][1] == index for i, index in zip(indices, padded)], np.float32
    )
    batch["_index"] = np.array(padded, np.int32)
    return batch


def _normalise(example: dict[str, np.ndarray], spec: Spec, dtype) -> dict[str, np.ndarray]:
    """Every field in normalised units, computed in the source's precision and cast at the end.

    The mask hides the target.  The input stays as context wherever it is a number; 0 takes the
    place of what is missing.
    """
    visible = {}
    if "mask" in example and {"input", "target"} <= set(example):
        visible = {
            "input": np.isfinite(example["input"]).all(-1, keepdims=True),
            "target": example["mask"],
        }

    leaves = {}
    for name, values in example.items():
        field = spec.fields[name] if name in spec.fields else None
        if field is None:
            leaves[name] = values.astype(dtype)
        elif field.whole_numbers:
            leaves[name] = values.astype(np.int32)
        elif field.kind == "table":
            # 0, the mean, stands for what is unknown: a NaN would poison every gradient
            known = np.isfinite(values)
            filled = normalise.forward(field.normaliser, np.where(known, values, 0.0))
            leaves[name] = np.where(known, filled, 0.0).astype(dtype)
            leaves[f"{name}_known"] = known.astype(dtype)
        else:
            mask = visible[name] if name in visible else None
            leaves[name] = normalise.forward(field.normaliser, values, mask).astype(dtype)
    return leaves


def _stack(examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if len({frozenset(example) for example in examples}) > 1:
        raise UserError(
            "some examples of this dataset have a mask and others have none: give one to all of "
            "them"
        )
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
