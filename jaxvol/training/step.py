"""The train step: the only place where gradients are taken and applied, the same for every task.

    terms_g, pullback = vjp(loss, theta_t)          once, however many players there are
    grad_g            = pullback(1 for the terms of g, 0 for the others)[g]
    theta_{t+1}       = theta_t + update_g(grad_g)   all groups move together, then the EMA

A group can therefore never receive another group's gradient, and what groups share (a generator's
forward pass) is evaluated once.  A group that its optimizer lets wait (`optim.waiting`) keeps its
running statistics and its EMA as well.

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

from jaxvol.training import optim
from jaxvol.types import Array, Batch, Extra, Fixed, Key, Metrics, Params, PyTree, Task, TrainState

# terms, gradients of the named groups, metrics, changed extra
Gradients = tuple[dict, Params, Metrics, Extra]


def key_at(seed: int, step: Array | int) -> Key:
    """The random key of training step `step`."""
    return jax.random.fold_in(jax.random.key(seed), step)


def group_gradients(
    loss: Callable, params: Params, fixed: Fixed, batch: Batch, key: Key
) -> Gradients:
    """Terms and, for every group with terms, the gradient of the sum of ITS terms, from one vjp."""
    terms, pullback, (metrics, extra) = jax.vjp(
        lambda p: loss(p, fixed, batch, key), params, has_aux=True
    )
    unknown = set(terms) - set(params)
    if unknown:
        raise ValueError(
            f"the task's loss names the groups {sorted(unknown)}, but params has {sorted(params)}"
        )

    def gradient(group: str) -> PyTree:
        one_hot = {
            g: jax.tree.map(lambda v, on=(g == group): jnp.full_like(v, on), t)
            for g, t in terms.items()
        }
        return pullback(one_hot)[0][group]

    return terms, {group: gradient(group) for group in terms}, metrics, extra


def split(batch: Batch, parts: int) -> Batch:
    """[B, ...] -> [parts, B / parts, ...], strided so that a batch-sharded array is split without
    communication.
    """
    return {
        name: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }


def accumulate(
    loss: Callable, params: Params, fixed: Fixed, batch: Batch, key: Key, parts: int
) -> Gradients:
    """`group_gradients` averaged over `parts` micro-batches; all read theta_t, micro-batch i uses
    fold_in(key, i).

    Equal to the full batch only for losses that are means over examples.  Leaves of extra that are
    not floating point are taken from the last micro-batch.
    """
    if parts == 1:
        return group_gradients(loss, params, fixed, batch, jax.random.fold_in(key, 0))

    def one(inputs):
        i, part = inputs
        return group_gradients(loss, params, fixed, part, jax.random.fold_in(key, i))

    def body(total, inputs):
        return jax.tree.map(
            lambda a, b: a + b / parts if jnp.issubdtype(b.dtype, jnp.inexact) else b,
            total,
            one(inputs),
        ), None

    inputs = (jnp.arange(parts), split(batch, parts))
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, zeros, inputs)[0]


def ema_decay_at(decay: float, step: Array) -> Array:
    """min(decay, (1 + t) / (10 + t)): a short memory while the weights still move fast."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def average(
    pair: PyTree,
    ema: PyTree,
    decay: float,
    updates: dict[str, Array],
    moved: dict[str, Array | bool],
) -> PyTree:
    """The EMA of `averaged(...)` after one step: of a group that was moved, with the decay at ITS
    number of updates.
    """

    def tick(group: str, new: Array, old: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        step_size = (1 - ema_decay_at(decay, updates[group])).astype(new.dtype)
        return jnp.where(moved[group], optax.incremental_update(new, old, step_size), old)

    return {
        part: {
            group: jax.tree.map(functools.partial(tick, group), tree, ema[part][group])
            for group, tree in groups.items()
        }
        for part, groups in pair.items()
    }


def averaged(params: Params, extra: Extra) -> PyTree:
    """The pair that the EMA covers: parameters and the running statistics of
    normalisation layers.
    """
    return {"params": params, "stats": extra["stats"]}


def weights_of(state: TrainState, weights: str) -> tuple[Params, Extra]:
    """(params, extra) of a state that a prediction uses; weights: "ema" (the averages) | "raw"."""
    pair = state.ema if weights == "ema" else averaged(state.params, state.extra)
    return pair["params"], {**state.extra, "stats": pair["stats"]}


def init(
    task: Task, optimizers: dict[str, optax.GradientTransformation], seed: int, batch: Batch
) -> TrainState:
    """State before the first step; traceable, so that it can be made sharded (`jit` with
    out_shardings).
    """
    params, extra = task.init(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), batch)
    extra = {
        "stats": {},
        **extra,
        "monitor": {"value": jnp.float32(jnp.inf), "count": jnp.int32(0)},
    }
    opt = {group: optimizers[group].init(params[group]) for group in params}
    ema = jax.tree.map(jnp.copy, averaged(params, extra))
    return TrainState(step=jnp.int32(0), params=params, extra=extra, opt=opt, ema=ema)


def merge(extra: Extra, changed: Extra) -> Extra:
    """`extra` with the task's changes; a task may change its own keys only."""
    foreign = set(changed) - (set(extra) - {"monitor"})
    if foreign:
        raise ValueError(
            f"the task's loss writes extra{sorted(foreign)}; it owns "
            f"{sorted(set(extra) - {'monitor'})}"
        )
    return {**extra, **changed}


def make(
    task: Task,
    optimizers: dict[str, optax.GradientTransformationExtraArgs],
    seed: int,
    ema_decay: float,
    micro_batches: int,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """(state, batch, number of steps taken so far) -> (state, metrics).  Pure; the caller jits it
    and donates the state.
    """

    def step(state: TrainState, batch: Batch, taken: Array) -> tuple[TrainState, Metrics]:
        key = key_at(seed, state.step)
        fixed = Fixed(state.step, state.extra, state.ema)
        terms, grads, metrics, changed = accumulate(
            task.loss, state.params, fixed, batch, key, micro_batches
        )
        params, opt, readings = dict(state.params), dict(state.opt), {}
        moved, updates_done = dict.fromkeys(params, True), dict.fromkeys(params, state.step)
        for group, grad in grads.items():

            def value_fn(p, group=group):
                total, *_ = accumulate(
                    task.loss, {**state.params, group: p}, fixed, batch, key, micro_batches
                )
                return sum(total[group].values())

            updates, opt[group] = optimizers[group].update(
                grad,
                state.opt[group],
                state.params[group],
                value=sum(terms[group].values()),
                grad=grad,
                value_fn=value_fn,
                monitor=state.extra["monitor"],
            )
            params[group] = optax.apply_updates(state.params[group], updates)
            readings[group] = optim.readings(opt[group])
            waited = optim.skipped(state.opt[group])
            moved[group], updates_done[group] = (
                optim.skipped(opt[group]) == waited,
                state.step - waited,
            )
        extra = merge(state.extra, changed)
        extra["stats"] = {
            group: jax.tree.map(
                functools.partial(jnp.where, moved[group]), stats, state.extra["stats"][group]
            )
            for group, stats in extra["stats"].items()
        }
        ema = average(averaged(params, extra), state.ema, ema_decay, updates_done, moved)
        new = TrainState(step=state.step + 1, params=params, extra=extra, opt=opt, ema=ema)
        norms = {g: (r["grad_norm"], r["update_norm"]) for g, r in readings.items()}
        good = (state.step == taken) & all_finite((terms, norms))
        new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        return new, {**logged(terms, readings), **metrics}

    return step


def all_finite(tree: PyTree) -> Array:
    """Whether every number of the tree is finite."""
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))


def logged(terms: dict, readings: dict) -> Metrics:
    """What is written of one update: <group>/<term>, the sum of a group's terms, its readings."""
    return {
        f"{group}/{name}": value
        for group in terms
        for name, value in {
            **terms[group],
            "loss": sum(terms[group].values()),
            **readings[group],
        }.items()
    }


def name_nonfinite(
    task: Task, state: TrainState, batch: Batch, seed: int, micro_batches: int
) -> list[str]:
    """Which tensors of a refused step are not finite: batch leaves, parameters, terms, gradients,
    in that order.
    """
    fixed = Fixed(state.step, state.extra, state.ema)
    terms, grads, _, extra = accumulate(
        task.loss, state.params, fixed, batch, key_at(seed, state.step), micro_batches
    )
    tensors = []
    for label, tree in (
        ("batch", batch),
        ("params", state.params),
        ("loss", terms),
        ("gradient", grads),
        ("extra", extra),
    ):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
                count = int((~jnp.isfinite(leaf)).sum())
                tensors.append(
                    f"{label}{jax.tree_util.keystr(path)}: {count} of {leaf.size} values"
                )
    return tensors
