"""Averages of the weights over training: the one that is evaluated, and those a task declares.

    average_{t+1} = d average_t + (1 - d) theta_{t+1},     d = min(decay, (1 + t) / (10 + t)) of
    "ema"

They cover parameters and the running statistics of normalisation layers, and every one of them
moves by `optax.incremental_update`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxvol.types import Array, Extra, Params, PyTree, Task, TrainState


def ema_decay_at(decay: float, step: Array) -> Array:
    """min(decay, (1 + t) / (10 + t)): a short memory while the weights still move fast."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def decays(task: Task, ema_decay: float) -> dict[str, Callable[[Array], Array]]:
    """Name -> decay at a number of updates, of every average of a run."""
    if "ema" in task.averages:
        raise ValueError("the average 'ema' is that of config.ema_decay; call the task's another")
    return {"ema": functools.partial(ema_decay_at, ema_decay), **task.averages}


def averaged(params: Params, extra: Extra) -> PyTree:
    """What an average covers: parameters and running statistics."""
    return {"params": params, "stats": extra["stats"]}


def start(names, params: Params, extra: Extra) -> dict[str, PyTree]:
    """Averages that begin at these weights; each is a copy, since the step donates its state."""
    return {name: jax.tree.map(jnp.copy, averaged(params, extra)) for name in names}


def move(
    pair: PyTree,
    average: PyTree,
    decay: Callable[[Array], Array],
    updates: dict[str, Array],
    moved: dict[str, Array | bool],
) -> PyTree:
    """One average after one step: of a group that was moved, with the decay at ITS number of
    updates; a frozen group (not in `moved`) keeps what it has.
    """

    def tick(group: str, new: Array, old: Array) -> Array:
        if group not in moved:
            return old
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        step_size = (1 - decay(updates[group])).astype(new.dtype)
        return jnp.where(moved[group], optax.incremental_update(new, old, step_size), old)

    return {
        part: {
            group: jax.tree.map(functools.partial(tick, group), tree, average[part][group])
            for group, tree in groups.items()
        }
        for part, groups in pair.items()
    }


def weights_of(state: TrainState, name: str) -> tuple[Params, Extra]:
    """(params, extra) of a state that a prediction uses; name: "raw", "ema" or another average."""
    pair = averaged(state.params, state.extra) if name == "raw" else state.averages[name]
    return pair["params"], {**state.extra, "stats": pair["stats"]}
