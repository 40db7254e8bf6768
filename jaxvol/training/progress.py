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

    # of checkpoint.best_metric in this phase, as it was measured
    best_value: float | None = None
    best_step: int | None = None
    bad: int = 0  # evaluations since the last improvement
    evaluations: int = 0  # in this phase
    stopped: bool = False  # early stopping has ended the phase
    wandb_id: str | None = None
    restarts: int = 0
    starts: list[int] = dataclasses.field(default_factory=list)  # first step of each phase so far
    # phase -> the step of its best checkpoint, of the phases before this one
    best_steps: dict[str, int] = dataclasses.field(default_factory=dict)

    def enter(self, phase: str, before: str | None, step: int) -> None:
        """Begin a phase: what was best before it stays known under the name of its phase."""
        if before is not None and self.best_step is not None:
            self.best_steps[before] = self.best_step
        self.best_value, self.best_step, self.bad, self.evaluations = None, None, 0, 0
        self.stopped = False
        self.starts.append(step)

    def preserved(self) -> set[int]:
        """Steps whose checkpoints are kept: the best one of every phase."""
        own = set() if self.best_step is None else {self.best_step}
        return own | set(self.best_steps.values())


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
    taken: int = 0  # updates that are part of the state, whether they were saved or not
    # step of the newest checkpoint, which may still be on its way to the disk
    saved: int = -1
    total: int = 0  # updates of all phases
    # see faults.explain: what batch would fit, once the train step is known
    fits: Callable | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)
    signal: int = 0
