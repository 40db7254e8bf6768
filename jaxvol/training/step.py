"""The train step: the only place where gradients are applied, the same for every task.

    terms, grads     = gradients.accumulate(...)        one evaluation of the loss at theta_t
    theta_{t+1}      = theta_t + update_g(grad_g)       all groups move together, then the averages

A group that its optimizer lets wait (`optim.every_k_steps`) keeps its running statistics and its
averages as well.

A step whose terms, gradients or updates are not finite leaves the state as it is; as `state.step`
then stays behind the number of steps taken, every later step is refused too, and the loop sees
which step it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxvol.training import averages, gradients, optim
from jaxvol.types import Array, Batch, Fixed, Key, Metrics, PyTree, Task, TrainState

Optimizers = dict[str, optax.GradientTransformationExtraArgs]


def key_at(seed: int, step: Array | int) -> Key:
    """The random key of training step `step`."""
    return jax.random.fold_in(jax.random.key(seed), step)


def fixed_of(state: TrainState) -> Fixed:
    """What the loss reads of a state; the phase's clock starts where the loop says."""
    start = state.extra["monitor"]["start"]
    return Fixed(state.step, state.step - start, state.extra, state.averages)


def init(task: Task, optimizers: Optimizers, seed: int, batch: Batch) -> TrainState:
    """State before the first step; traceable, so that it can be made sharded (`jit` with
    out_shardings).
    """
    params, extra = task.init(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), batch)
    extra = {"stats": {}, **extra, "monitor": monitor(jnp.int32(0))}
    opt = {g: optimizers[g].init(params[g]) for g in gradients.moved_groups(task, params)}
    names = averages.decays(task, 0.0)
    return TrainState(jnp.int32(0), params, extra, opt, averages.start(names, params, extra))


def monitor(start: Array) -> dict[str, Array]:
    """The loop's own part of `extra`: the last validation (smaller is better), how many there were
    in this phase, and the step at which the phase began.
    """
    return {"value": jnp.float32(jnp.inf), "count": jnp.int32(0), "start": start}


def make(
    task: Task, optimizers: Optimizers, seed: int, ema_decay: float, micro_batches: int
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """(state, batch, number of steps taken so far) -> (state, metrics).  Pure; the caller jits it
    and donates the state.
    """

    def step(state: TrainState, batch: Batch, taken: Array) -> tuple[TrainState, Metrics]:
        key, fixed = key_at(seed, state.step), fixed_of(state)
        result = gradients.accumulate(task, state.params, fixed, batch, key, micro_batches)
        objective_of = {
            group: objective
            for objective, groups in gradients.objectives(task, state.params).items()
            for group in groups
        }
        params, opt, readings = dict(state.params), dict(state.opt), {}
        moved, updates_done = {}, {}
        for group, grad in result.grads.items():
            objective = objective_of[group]

            def value_fn(p, group=group, objective=objective):
                changed = {**state.params, group: p}
                terms = gradients.accumulate(task, changed, fixed, batch, key, micro_batches).terms
                return sum(terms[objective].values())

            updates, opt[group] = optimizers[group].update(
                grad,
                state.opt[group],
                state.params[group],
                value=sum(result.terms[objective].values()),
                grad=grad,
                value_fn=value_fn,
                monitor=state.extra["monitor"],
            )
            params[group] = optax.apply_updates(state.params[group], updates)
            readings[group] = optim.readings(opt[group])
            skipped = optim.skipped(state.opt[group])
            moved[group] = optim.skipped(opt[group]) == skipped
            updates_done[group] = state.step - skipped
        extra = gradients.merge(state.extra, result.extra)
        extra["stats"] = settle(extra["stats"], state.extra["stats"], moved)
        pair = averages.averaged(params, extra)
        average = {
            name: averages.move(pair, state.averages[name], decay, updates_done, moved)
            for name, decay in averages.decays(task, ema_decay).items()
        }
        new = TrainState(state.step + 1, params, extra, opt, average)
        norms = {g: (r["grad_norm"], r["update_norm"]) for g, r in readings.items()}
        good = (state.step == taken) & all_finite((result.terms, norms))
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        return new, {**logged(result.terms, readings), **result.metrics}

    return step


def settle(new: PyTree, old: PyTree, moved: dict[str, Array | bool]) -> PyTree:
    """Running statistics after a step: those of a group that waited or is frozen stay."""
    return {
        group: jax.tree.map(functools.partial(jnp.where, moved[group]), stats, old[group])
        if group in moved
        else old[group]
        for group, stats in new.items()
    }


def all_finite(tree: PyTree) -> Array:
    """Whether every number of the tree is finite."""
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))


def logged(terms: dict, readings: dict) -> Metrics:
    """What is written of one update: <objective>/<term> and the sum of an objective's terms, and
    <group>/<reading> of its optimizer.
    """
    losses = {
        f"{objective}/{name}": value
        for objective, values in terms.items()
        for name, value in {**values, "loss": sum(values.values())}.items()
    }
    return losses | {
        f"{group}/{name}": value for group, r in readings.items() for name, value in r.items()
    }


def name_nonfinite(
    task: Task, state: TrainState, batch: Batch, seed: int, micro_batches: int
) -> list[str]:
    """Which tensors of a refused step are not finite: batch leaves, parameters, terms, gradients,
    in that order.
    """
    key = key_at(seed, state.step)
    result = gradients.accumulate(task, state.params, fixed_of(state), batch, key, micro_batches)
    tensors = []
    for label, tree in (
        ("batch", batch),
        ("params", state.params),
        ("loss", result.terms),
        ("gradient", result.grads),
        ("extra", result.extra),
    ):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
                count = int((~jnp.isfinite(leaf)).sum())
                tensors.append(
                    f"{label}{jax.tree_util.keystr(path)}: {count} of {leaf.size} values"
                )
    return tensors
