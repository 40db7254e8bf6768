"""What a dataset file states about its examples: where they lie, and how one of them is read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np

from jaxvol.types import Spec, UserError

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to examples in physical units, by split and index.

    read:  (split, index, rng) -> {"input": [D, H, W, C], "target": [D, H, W, C], and optionally
           "mask": [D, H, W, 1] with 1 = observed and 0 = missing}.  `rng` is given for training
           reads (a source that draws random crops uses it) and is None for evaluation.  Called
           from several threads at once.
    names: (split) -> one name per example, for messages and tables
    """

    spec: Spec  # normalisers empty
    sizes: dict[str, int]  # examples per split: train, val, test
    read: Callable[[str, int, np.random.Generator | None], dict[str, np.ndarray]]
    names: Callable[[str], list[str]]
    hash: str  # changes when the data or how it is read changes


def examples_in(source: Source, split: str) -> int:
    """Examples in `split`; UserError when there is no such split or it is empty."""
    if split not in source.sizes:
        raise UserError(f"there is no split {split!r}: this dataset has {', '.join(source.sizes)}")
    if source.sizes[split] < 1:
        sizes = ", ".join(f"{name}: {size}" for name, size in source.sizes.items())
        raise UserError(f"the split {split!r} is empty ({sizes}): give it at least one example")
    return source.sizes[split]


def label(source: Source, split: str, index: int) -> str:
    """An example as messages call it: split, number and name."""
    return f"{split} example {index} ({source.names(split)[index]})"


def digest(*items) -> str:
    """Hexadecimal digest of the items' texts, for `Source.hash`."""
    return hashlib.blake2b(repr(items).encode(), digest_size=16).hexdigest()
