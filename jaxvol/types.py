"""The records every room of jaxvol shares: what a batch, a spec, a dataset, a task and a state are.

Shapes: volumes `[B, D, H, W, C]` (a 2D field has D = 1), points `[N, d]`.  A leaf's first axis is
        its example axis.
Nothing here computes; nothing here imports another room.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

Array = jax.Array
PyTree = Any
Key = jax.Array  # a typed PRNG key
Batch = dict[str, Array]
# group -> parameters: {"net"}, or competing players {"gen", "disc"}
Params = dict[str, PyTree]
# carried, never differentiated: {"stats": {group: collections}, "monitor", ...}
Extra = dict[str, PyTree]
Metrics = dict[str, Any]
Rows = dict[str, Array]  # name -> one value (or vector) per example, [B, ...]


class UserError(Exception):
    """Something the user can mend: what was found, where, what was expected, what to do.  Exit
    status 1.
    """


class NonFiniteError(Exception):
    """A loss, gradient or update became NaN or infinite.  Exit status 3."""


class Alarm(Exception):
    """A check named in config.preflight.stop_on turned red while training."""


class WorkdirLocked(Exception):
    """Another process trains in this workdir.  Exit status 4."""


class Interrupted(Exception):
    """Something outside the run broke it off, such as another process that ended.  Exit status 75:
    what was saved is sound.
    """


class Fixed(NamedTuple):
    """What a loss may read and never differentiates."""

    step: Array  # number of updates done so far in the run, int32 scalar
    phase_step: Array  # the same in this phase: what ramps and noise schedules count
    extra: Extra
    averages: dict[str, PyTree]  # name -> {"params": Params, "stats": {group: collections}}


# What a task may say that its runs have, and a check that it needs: volumes to see, an input with
# its target, a P(k), competing players, an equation, classes, numbers per example, several views of
# an example, prompts.
PROVIDES = (
    "volumes",
    "paired",
    "spectral",
    "players",
    "physics",
    "labels",
    "tables",
    "views",
    "prompts",
)


def unchanged(batch: Batch, key: Key) -> Batch:
    """The augmentation of a task that has none."""
    return batch


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is learned and how it is scored, as pure functions (all of them traceable except
    `summarize`).

    init:       (Key, Batch) -> (Params, Extra)
    loss:       (Params, Fixed, Batch, Key) -> ({objective: {term: weighted scalar}},
                (Metrics, Extra)).  The returned Extra holds only the keys that changed.
    evaluate:   (Params, Extra, Batch, Key) -> Rows, one entry per example, padding included (the
                caller drops it)
    summarize:  (Rows as numpy, padding dropped) -> Metrics (floats, or arrays for spectra)
    predict:    (Params, Extra, Batch) -> Array, in the target's normalised units
    objectives: objective -> the parameter groups that descend the sum of its terms.  Empty: every
                group descends the objective of its own name.  A group that no objective names is
                frozen: no backward pass, optimizer state or average update.
    augment:    (Batch, Key) -> Batch, inside the step, once per micro-batch
    averages:   name -> (number of updates -> decay in [0, 1)): averages of the weights besides
                "ema", such as a teacher's, which the loss reads as `Fixed.averages[name]`
    freeze:     groups that are not moved although an objective names them
    provides:   what checks may need of a run, of PROVIDES
    example_mean: the loss is a mean over examples, so that micro-batches may be averaged
    """

    init: Callable[[Key, Batch], tuple[Params, Extra]]
    loss: Callable[
        [Params, Fixed, Batch, Key], tuple[dict[str, dict[str, Array]], tuple[Metrics, Extra]]
    ]
    evaluate: Callable[[Params, Extra, Batch, Key], Rows]
    summarize: Callable[[dict[str, np.ndarray]], Metrics]
    predict: Callable[[Params, Extra, Batch], Array]
    objectives: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    augment: Callable[[Batch, Key], Batch] = unchanged
    averages: dict[str, Callable[[Array], Array]] = dataclasses.field(default_factory=dict)
    freeze: tuple[str, ...] = ()
    example_mean: bool = True
    provides: frozenset[str] = frozenset()


@struct.dataclass
class TrainState:
    """Everything that training changes: arrays only, so that it can be sharded, donated and saved
    as it is.
    """

    step: Array  # int32 scalar: updates done
    params: Params
    extra: Extra
    opt: PyTree  # {group: optimizer state} of the groups that are moved
    averages: dict[str, PyTree]  # name -> {"params": Params, "stats": {group: collections}}


# What a field is: values on a grid (the first three), places, classes on a grid, a vector of
# numbers, one class, or prompts (three voxel coordinates and a label: 1, 0 inside and outside, 2, 3
# corners of a box, -1 an empty slot).
#
# What tasks, losses and augmentation may do with it; "" is that of its name (input, target, mask)
ROLES = ("", "input", "target", "mask", "weight", "truth", "prompt", "context")


@dataclasses.dataclass(frozen=True, repr=False)
class Field:
    """One leaf of a batch: what it is, how it transforms under the cube group, and its fitted
    normaliser.
    """

    channels: tuple[str, ...]  # names, one per channel (or column of a table)
    # scalar | vector (channels in threes: d, h, w) | line_of_sight=<axis 0..2> | coordinates |
    # label | table | category | points
    kind: str = "scalar"
    unit: str = ""  # physical unit of the values, for labels
    # fitted steps, see ops/normalise.py; applied left to right
    normaliser: tuple[dict, ...] = ()
    role: str = ""  # of ROLES
    shape: tuple[int, ...] | None = None  # own grid, or (P,) points; None = the spec's grid
    class_names: tuple[str, ...] = ()  # of a label or category, by its integer

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(
                f"a field has the role {self.role!r}; known are {', '.join(filter(None, ROLES))}."
            )

    def __repr__(self) -> str:
        """What a dataset's hash is made of: fields that are as they always were read the same."""
        known = (self.channels, self.kind, self.unit, self.normaliser)
        names = ("channels", "kind", "unit", "normaliser")
        given = [f"{name}={value!r}" for name, value in zip(names, known, strict=True)]
        for name in ("role", "shape", "class_names"):
            if getattr(self, name):
                given.append(f"{name}={getattr(self, name)!r}")
        return f"Field({', '.join(given)})"

    @property
    def on_grid(self) -> bool:
        """Whether a leaf is [D, H, W, C], which moves with the cube group and is cut into tiles."""
        return self.kind not in ("table", "category", "points")

    @property
    def whole_numbers(self) -> bool:
        """Whether the values are classes: never normalised, never interpolated as numbers."""
        return self.kind in ("label", "category")

    def leaf(self, grid: tuple[int, int, int]) -> tuple[int, ...]:
        """Shape of one example's leaf on a grid: [D, H, W, C], [C] of a table, () of a category,
        [P, 4] of points.
        """
        if self.kind == "category":
            return ()
        if self.kind == "table":
            return (len(self.channels),)
        if self.kind == "points":
            return (*(self.shape or (1,)), 4)
        return (*(self.shape or grid), len(self.channels))


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a dataset knows and a task needs.  Saved in every checkpoint as JSON."""

    fields: dict[str, Field]  # "input" and "target" for volume tasks
    shape: tuple[int, int, int]  # D, H, W of a training volume
    spacing: tuple[float, float, float]  # size of a voxel along D, H, W in `unit`
    unit: str = ""  # unit of lengths: "Mpc/h", "mm", ""
    # a training volume wraps along this axis
    periodic: tuple[bool, bool, bool] = (False, False, False)
    # the box it was cut from wraps (tiled prediction)
    wrap: tuple[bool, bool, bool] = (False, False, False)
    class_names: tuple[str, ...] = ()

    @property
    def box_size(self) -> tuple[float, float, float]:
        """Physical size of a training volume, in `unit`."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Spec:
        raw = json.loads(text)
        fields = {
            name: Field(**{k: tuple(v) if isinstance(v, list) else v for k, v in f.items()})
            for name, f in raw.pop("fields").items()
        }
        return Spec(
            fields=fields, **{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Deterministic random access to normalised float32 batches; every random choice is a function
    of (seed, step).

    batch:   (step, rows) -> the rows `rows` (a slice) of global training batch number `step`;
             always full
    stream:  (start, stop, rows) -> iterator over batch(start), ..., batch(stop - 1), read ahead by
             worker threads
    batches: (split, batch_size, rows, limit) -> one pass in order, last batch padded; adds `_mask`
             [B] (1 = real) and `_index` [B]; `limit` > 0 reads only the first `limit` examples
    names:   (split) -> one name per example, for tables
    """

    spec: Spec
    sizes: dict[str, int]  # examples per split: train, val, test
    batch: Callable[[int, slice], dict[str, np.ndarray]]
    stream: Callable[[int, int, slice], Iterator[dict[str, np.ndarray]]]
    batches: Callable[[str, int, slice, int], Iterator[dict[str, np.ndarray]]]
    names: Callable[[str], list[str]]
    # changes when the data or how it is read changes
    hash: str
    # examples skipped after read errors, with the reason
    skipped: Callable[[], list[str]]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What one phase trains with; the compiled functions are shared by the pre-flight and the train
    loop.
    """

    task: Task
    dataset: Dataset
    optimizers: dict
    init: Callable[[], TrainState]
    struct: TrainState  # ShapeDtypeStructs with shardings
    # (state, batch, updates taken) -> (state, metrics), jitted; donates its state
    step: Callable
    # (params, extra, batch, key) -> Rows with _mask and _index, jitted
    evaluate: Callable


@dataclasses.dataclass(frozen=True)
class Result:
    """What a check measured.

    skip:   why there was nothing to measure
    absent: metrics that this run cannot have; None = those of the check's MEANING that it did not
            measure
    """

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    # title -> rows of named cells
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    # title -> matplotlib Figure
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    absent: tuple[str, ...] | None = None
    skip: str = ""
