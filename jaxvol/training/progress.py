"""What a running training has around it, and what it has to remember."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.runtime.writer import Writer
from jaxvol.training import checkpoint
from jaxvol.types import TrainState


@dataclasses.dataclass
class Progress:
    """What the host has to remember between steps; saved with every checkpoint."""

    best_value: float | None = None  # of checkpoint.best_metric, as it was measured
    best_step: int | None = None
    bad: int = 0  # evaluations since the last improvement
    evaluations: int = 0
    stopped: bool = False  # early stopping has ended the run
    wandb_id: str | None = None
    restarts: int = 0


@dataclasses.dataclass
class Run:
    """The running loop: its surroundings, and the two things that change (state, progress)."""

    config: ConfigDict
    mesh: Mesh
    store: checkpoint.Store
    writer: Writer
    meta: dict  # constant part of every checkpoint's JSON
    score: Callable  # of a split, see jaxvol/evaluation/evaluators/examples.py
    figures: Callable  # (parts, params, extra, put, rows, size) -> {tag: figure}
    # (parts, (params, extra), batch, readings, step): warns of what is out of its limits
    watch: Callable
    state: TrainState | None = None
    readings: dict = dataclasses.field(default_factory=dict)  # of the newest logged update
    progress: Progress = dataclasses.field(default_factory=Progress)
    # step of the newest checkpoint, which may still be on its way to the disk
    saved: int = -1
    total: int = 0  # updates of all phases
    # see faults.explain: what batch would fit, once the train step is known
    fits: Callable | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)
    signal: int = 0
