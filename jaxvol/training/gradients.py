"""Gradients: one evaluation of the loss, one pullback per objective, micro-batches in a scan.

    terms, pullback = vjp(loss, theta_t)                 once, however many players there are
    grad_g          = pullback(1 for the terms of o, 0 for the others)[g]     for every g of o

A group can therefore never receive the gradient of another objective, what objectives share (a
generator's forward pass) is evaluated once, and groups of one objective share one backward pass.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvol.types import Batch, Extra, Fixed, Key, Metrics, Params, PyTree, Task, unchanged

AUGMENT = 2**31 - 2  # folded into the key of a micro-batch for its augmentation


class Gradients(NamedTuple):
    """What one evaluation of a loss gives."""

    terms: dict  # objective -> term -> weighted scalar
    grads: Params  # of the groups that are moved
    metrics: Metrics
    extra: Extra  # the keys that changed


def objectives(task: Task, params: Params) -> dict[str, tuple[str, ...]]:
    """Objective -> the groups that descend it, without the frozen ones.

    Raises ValueError for a group that does not exist, and for one that two objectives name.
    """
    named = task.objectives or {group: (group,) for group in params}
    groups = [group for of_one in named.values() for group in of_one]
    unknown = sorted((set(groups) | set(task.freeze)) - set(params))
    if unknown:
        raise ValueError(f"the task names the groups {unknown}, but params has {sorted(params)}")
    twice = sorted({group for group in groups if groups.count(group) > 1})
    if twice:
        raise ValueError(f"the groups {twice} descend two objectives; a group descends one")
    return {
        objective: tuple(group for group in of_one if group not in task.freeze)
        for objective, of_one in named.items()
    }


def moved_groups(task: Task, params: Params) -> tuple[str, ...]:
    """The groups that an optimizer moves, in the order of `params`."""
    named = {group for groups in objectives(task, params).values() for group in groups}
    return tuple(group for group in params if group in named)


def pull_back(task: Task, params: Params, fixed: Fixed, batch: Batch, key: Key) -> Gradients:
    """Terms and, for every group of an objective, the gradient of the sum of its terms."""
    named = objectives(task, params)
    active = {group: params[group] for group in moved_groups(task, params)}

    def loss(active: Params):
        return task.loss({**params, **active}, fixed, batch, key)

    terms, pullback, (metrics, extra) = jax.vjp(loss, active, has_aux=True)
    unknown = set(terms) - set(named)
    if unknown:
        raise ValueError(
            f"the task's loss names the objectives {sorted(unknown)}, but it has {sorted(named)}"
        )
    grads = {}
    for objective in terms:
        one_hot = {
            name: jax.tree.map(lambda v, on=(name == objective): jnp.full_like(v, on), values)
            for name, values in terms.items()
        }
        pulled = pullback(one_hot)[0] if named[objective] else {}
        grads |= {group: pulled[group] for group in named[objective]}
    return Gradients(terms, grads, metrics, extra)


def split(batch: Batch, parts: int) -> Batch:
    """[B, ...] -> [parts, B / parts, ...], strided so that a batch-sharded array is split without
    communication.
    """
    return {
        name: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }


def accumulate(
    task: Task, params: Params, fixed: Fixed, batch: Batch, key: Key, parts: int
) -> Gradients:
    """`pull_back` on augmented micro-batches, one after another.

    All read theta_t, micro-batch i uses fold_in(key, i) and the extra that micro-batch i - 1 left:
    running statistics and queues follow one another.  Terms, gradients and metrics are averaged,
    which equals the full batch only for losses that are means over examples (`Task.example_mean`).
    """

    def one(extra: Extra, i, part: Batch) -> Gradients:
        key_of_part = jax.random.fold_in(key, i)
        if task.augment is not unchanged:
            part = task.augment(part, jax.random.fold_in(key_of_part, AUGMENT))
        return pull_back(task, params, fixed._replace(extra=extra), part, key_of_part)

    if parts == 1:
        return one(fixed.extra, 0, batch)
    if not task.example_mean:
        raise ValueError("the task's loss is no mean over examples: it needs micro_batches=1")

    def body(carry, inputs):
        extra, total = carry
        result = one(extra, *inputs)
        averaged = jax.tree.map(
            lambda a, b: a + b / parts if jnp.issubdtype(b.dtype, jnp.inexact) else b,
            total,
            result._replace(extra=None),
        )
        return (merge(extra, result.extra), averaged), None

    inputs = (jnp.arange(parts), split(batch, parts))
    first = jax.tree.map(lambda x: x[0], inputs)
    shapes = jax.eval_shape(lambda i: one(fixed.extra, *i), first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes._replace(extra=None))
    (extra, total), _ = jax.lax.scan(body, (fixed.extra, zeros), inputs)
    return total._replace(extra={name: extra[name] for name in shapes.extra})


def merge(extra: Extra, changed: Extra) -> Extra:
    """`extra` with the task's changes; a task may change its own keys only, and neither their
    shapes nor their types.
    """
    owned = set(extra) - {"monitor"}
    foreign = set(changed) - owned
    if foreign:
        raise ValueError(f"the task's loss writes extra{sorted(foreign)}; it owns {sorted(owned)}")
    for name, values in changed.items():
        before, after = describe(extra[name]), describe(values)
        if before != after:
            raise ValueError(
                f"the task's loss changes the shapes or types of extra[{name!r}]: {before} -> "
                f"{after}"
            )
    return {**extra, **changed}


def describe(tree: PyTree) -> str:
    """Shapes and types of a tree's leaves, with their paths."""
    return ", ".join(
        f"{jax.tree_util.keystr(path) or 'it'} {jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    )
