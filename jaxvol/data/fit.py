"""Normalisers fitted on training examples: how the fields of a source become numbers of order one.

The mean, spread or range of a field is taken over the observed voxels of training examples alone,
so that nothing of validation and test enters what a model sees.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from jaxvol.data import reading
from jaxvol.data.randomness import FIT, generator
from jaxvol.data.reading import Reader
from jaxvol.data.source import examples_in
from jaxvol.ops import normalise
from jaxvol.types import Field, Spec, UserError

# a normaliser is fitted on at most this many voxels (64 volumes of 64^3)
FIT_VOXELS = 2**24


def normalisers(
    reader: Reader, steps: dict[str, Iterable], fit_examples: int, seed: int, workers: int
) -> Spec:
    """The source's spec with normalisers fitted on `fit_examples` training examples, evenly
    spread; masked voxels do not enter.

    steps: field -> chain of (name, arguments), see jaxvol/ops/normalise.py

    Raises UserError: a chain that makes no sense, or no training example to fit on.
    """
    spec = reader.source.spec
    if fit_examples < 1:
        raise UserError(
            f"data.fit_examples is {fit_examples}: expected at least 1 training example to fit "
            "normalisers on"
        )
    chains = {}
    for name, field in spec.fields.items():
        # classes are never normalised, and a table has its columns' own
        if name in steps and field.on_grid and not field.whole_numbers:
            with _naming(name, field):
                chains[name] = normalise.check(steps[name], len(field.channels))
    samples, masked = {name: [] for name in chains}, False
    if any(normalise.needs_data(chain) for chain in chains.values()):
        samples, masked = _sample(reader, list(chains), fit_examples, seed, workers)
    fields = dict(spec.fields)
    for name, chain in chains.items():
        field = fields[name]
        if normalise.needs_data(chain):
            # hidden voxels are gone already; a mask tells the fit that zeros were observed
            masks = (
                [np.ones((len(values), 1), bool) for values in samples[name]] if masked else None
            )
            with _naming(name, field):
                chain = normalise.fit(chain, samples[name], masks, vector=field.kind == "vector")
        fields[name] = dataclasses.replace(field, normaliser=chain)
    tables = [name for name, field in spec.fields.items() if field.kind == "table"]
    for name, chain in _of_columns(reader, tables, fit_examples, seed, workers).items():
        fields[name] = dataclasses.replace(fields[name], normaliser=chain)
    return dataclasses.replace(spec, fields=fields)


def _of_columns(
    reader: Reader, names: list[str], fit_examples: int, seed: int, workers: int
) -> dict[str, tuple[dict, ...]]:
    """Table -> the step that standardises each of its columns by its known values."""
    if not names:
        return {}
    values: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for _, example in _examples(reader, fit_examples, seed, workers):
        for name in names:
            values[name].append(np.asarray(example[name], np.float64))
    chains = {}
    for name, rows in values.items():
        table = np.stack(rows)
        known = np.isfinite(table)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, table, 0).sum(0) / count
        std = np.sqrt(np.where(known, (table - mean) ** 2, 0).sum(0) / count)
        std = np.where(std > 0, std, 1.0)  # a column that never changes, or is never known
        chains[name] = ({"name": "standardise", "mean": mean.tolist(), "std": std.tolist()},)
    return chains


def _examples(
    reader: Reader, fit_examples: int, seed: int, workers: int
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(index, example) of `fit_examples` training examples, evenly spread."""
    size = examples_in(reader.source, "train")
    indices = np.unique(
        np.linspace(0, size - 1, min(fit_examples, size)).round().astype(int)
    ).tolist()
    examples = reading.read_ahead(
        lambda i: reading.read(reader, "train", i, lambda: generator(seed, FIT, i))[0],
        indices,
        workers,
    )
    yield from zip(indices, examples)


def _sample(
    reader: Reader, names: list[str], fit_examples: int, seed: int, workers: int
) -> tuple[dict[str, list[np.ndarray]], bool]:
    """(field -> observed voxels [n, C] of each example read, whether the examples have a mask)."""
    samples, masked = {name: [] for name in names}, False
    count = min(fit_examples, examples_in(reader.source, "train"))
    for index, example in _examples(reader, fit_examples, seed, workers):
        masked = "mask" in example
        rng = generator(seed, FIT, index, 1)
        voxels = _observed_voxels(example, FIT_VOXELS // count, rng)
        for name, values in samples.items():
            values.append(example[name].reshape(-1, example[name].shape[-1])[voxels])
    return samples, masked


def _observed_voxels(
    example: dict[str, np.ndarray], budget: int, rng: np.random.Generator
) -> np.ndarray:
    """Flat indices of the observed voxels, at most `budget` of them, drawn at random."""
    mask = (
        example["mask"] if "mask" in example else np.ones((*example["input"].shape[:-1], 1), bool)
    )
    observed = np.flatnonzero(mask)
    if len(observed) <= budget:
        return observed
    return rng.choice(observed, budget, replace=False, shuffle=False)


@contextlib.contextmanager
def _naming(name: str, field: Field) -> Iterator[None]:
    """Errors inside say which normaliser of the config they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"data.{name}_normaliser (channels {', '.join(field.channels)}): {error}"
        ) from None
