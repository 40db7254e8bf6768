"""Validation while training: the metrics of a state, and whether it is the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.config import components
from jaxvol.training import averages, sharding
from jaxvol.training.progress import Run
from jaxvol.types import Metrics, Parts, TrainState, UserError


def improves(config: ConfigDict, value: float, best: float | None) -> bool:
    """Whether `value` is better than `best` by more than min_delta; a NaN never is."""
    if not math.isfinite(value):
        return False
    gain = 0.0 if best is None else components.best_direction(config) * (value - best)
    return best is None or gain > config.early_stopping.min_delta


def warn_undefined(
    config: ConfigDict, step: int, scalars: dict[str, float], finite_before: bool
) -> None:
    """Say that the metric that decides "best" is not finite, what this means and what to do."""
    name = config.checkpoint.best_metric
    loss = scalars["loss"] if "loss" in scalars else 0.0
    if math.isfinite(loss):
        why = (
            f"{name} is undefined for every example of the split val: a target that is constant or "
            "0 everywhere, or no observed voxel"
        )
        remedy = "look at the targets of that split, or choose another checkpoint.best_metric"
    else:
        why = f"the loss is {loss:g} as well: predictions or targets are not finite"
        remedy = "look at the data of that split, or lower the learning rate"
    counts = (
        "Early stopping counts it as no improvement"
        if finite_before
        else "Until it is finite, no checkpoint is the best one and early stopping does not count"
    )
    logging.warning(
        "val %s IS NOT FINITE (%g) at step %d. %s. What it means: %s. What to do: %s.",
        name,
        scalars[name],
        step,
        counts,
        why,
        remedy,
    )


def placing(config: ConfigDict, mesh: Mesh) -> tuple[Callable, slice, int]:
    """(puts an evaluation batch on the mesh, this process's rows of it, its size)."""
    size = config.evaluate.batch_size
    return lambda batch: sharding.put(mesh, batch, size), sharding.rows(mesh, size), size


def validate(
    score: Callable,
    config: ConfigDict,
    mesh: Mesh,
    parts: Parts,
    state: TrainState,
    examples: int,
) -> Metrics:
    """Metrics of the weights `evaluate.weights` on the first `examples` (0 = all) of the split
    "val"; `score` is that of jaxvol/evaluation/evaluators/examples.py.
    """
    params, extra = averages.weights_of(state, config.evaluate.weights)
    put, rows, _ = placing(config, mesh)
    return score(
        parts.evaluate, parts.task, parts.dataset, config, params, extra, put, rows, "val", examples
    )[0]


def evaluate_now(run: Run, parts: Parts, step: int) -> bool:
    """Validate the averaged weights, log, remember the best.  True if this is the best so far."""
    config, state = run.config, run.state
    metrics = validate(run.score, config, run.mesh, parts, state, config.evaluate.max_examples)
    scalars = {
        name: float(value)
        for name, value in metrics.items()
        if np.ndim(value) == 0 and not isinstance(value, dict)
    }
    name = config.checkpoint.best_metric
    if name not in scalars:
        raise UserError(
            f"config.checkpoint.best_metric is {name!r}, but the task reports "
            f"{', '.join(sorted(scalars))}."
        )
    value, progress = scalars[name], run.progress
    better = improves(config, value, progress.best_value)
    progress.evaluations += 1
    finite = math.isfinite(value)
    if not finite and (progress.evaluations == 1 or progress.best_value is not None):
        warn_undefined(config, step, scalars, progress.best_value is not None)
    if better:
        progress.bad = 0
    elif finite or progress.best_value is not None:  # else there is nothing to improve on
        progress.bad += 1
    if better:
        progress.best_value, progress.best_step = value, step
    error = -components.best_direction(config) * value  # a plateau schedule minimises it
    monitor = {
        **state.extra["monitor"],
        "value": jnp.float32(error),
        "count": jnp.int32(progress.evaluations),
    }
    run.state = state.replace(
        extra={**state.extra, "monitor": jax.device_put(monitor, sharding.replicated(run.mesh))}
    )
    run.writer.scalars(step, {f"val/{k}": v for k, v in scalars.items()})
    if config.evaluate.figures and (progress.evaluations - 1) % config.wandb.images_every == 0:
        pair = averages.weights_of(state, config.evaluate.weights)
        run.writer.images(step, run.figures(parts, *pair, *placing(config, run.mesh)))
    logging.info("step %d: val %s = %.5g%s", step, name, value, " (best)" if better else "")
    if run.readings:  # not before the first update
        put, rows, size = placing(config, run.mesh)
        shown = put(next(parts.dataset.batches("val", size, rows, size)))
        pair = averages.weights_of(run.state, config.evaluate.weights)
        run.watch(parts, pair, shown, run.readings, step)
    return better
