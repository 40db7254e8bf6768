"""What the checks of the pre-flight are handed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxvol.types import (
    Batch,
    Dataset,
    Extra,
    Key,
    Metrics,
    Params,
    PyTree,
    Rows,
    Spec,
    Task,
    TrainState,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What a check may look at: the parts of the real run, at step 0, before anything was trained.

    A check calls these fields and nothing behind them, so that it measures what the run would do.
    `step` donates its
    state: call it with `probe.copy(state)`.  Hashed by identity, so that what several checks need
           is computed once.
    """

    steps: int  # updates of the phase
    config: Any  # ConfigDict, locked
    workdir: Any  # Path
    mesh: Any
    dataset: Dataset
    task: Task
    optimizers: dict
    # the state of step 0 (with config.init_from: before the transfer)
    init: Callable[[], TrainState]
    # the state that training would start from
    state: TrainState
    step: Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]
    evaluate: Callable[[Params, Extra, Batch, Key], Rows]
    # optimizer state of a group -> lr, grad_norm, clipped_norm, ...
    readings: Callable[[PyTree], Metrics]
    batch: Callable[[int], Batch]  # training batch of a step, on the mesh
    # (split, examples) -> host batches, padding marked by _mask
    batches: Callable[[str, int], list[dict[str, np.ndarray]]]
    put: Callable[[dict[str, np.ndarray]], Batch]  # an evaluation batch onto the mesh
    # what validation reports: (params, extra, split, examples)
    score: Callable[[Params, Extra, str, int], tuple[Metrics, Rows]]
    # what the train loop's validation reports of a state
    validate: Callable[[TrainState, int], Metrics]
    # whether training would keep the first value as best, not the second
    better: Callable[[float, float], bool]
    # {"mean", "identity", "wiener": what they score in validation}
    baselines: Callable[[], dict[str, Metrics]]
    # batch size -> the traced train step: `.jaxpr`, `.lower()`
    trace: Callable[[int], Any]
    save_restore: Callable[[TrainState], TrainState]  # through a checkpoint on disk and back
    # the task of a config with overrides {"a.b": value}
    rebuild_task: Callable[[dict[str, Any]], Task]

    @property
    def spec(self) -> Spec:
        return self.dataset.spec
