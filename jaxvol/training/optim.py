"""One optimizer per parameter group: gradient norm, clipping, an optax rule, the learning rate, and
a record of all four.

    g' = g * min(1, clip_norm / |g|)        u = rule(g')        theta <- theta + lr(t) u

The rules of optax are linear in their learning rate, so each is built with rate 1 and scaled here:
the rate, the norms before and after clipping and the norm of the update that `readings` returns are
the values that moved the parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxvol.ops import quasi_newton
from jaxvol.training import rules, schedules
from jaxvol.types import Array, PyTree, UserError


class OptimizerState(NamedTuple):
    """What one group's optimizer carries: arrays only."""

    count: Array  # updates done in this phase, int32
    inner: PyTree  # state of the optax rule
    readings: dict[str, Array]  # of the last update
    plateau: schedules.PlateauState | tuple[()]


class EveryKState(NamedTuple):
    """What the optimizer of a group that is not moved at every step carries (`every_k_steps`)."""

    # steps of this phase, int32; inner.count of them moved the group
    calls: Array
    readings: dict[str, Array]  # of the last step
    inner: OptimizerState


def readings(state: OptimizerState | EveryKState) -> dict[str, Array]:
    """{"lr", "grad_norm", "clipped_norm", "clipped_fraction", "update_norm"} exactly as the last
    step used them.

    Zeros before the first.  The norms are L2 over the whole group: of the gradient before and after
    clipping, and of lr(t) u; the fraction is the share of the norm that clipping took away.  lr and
    update_norm are 0 at a step that moved nothing.
    """
    norm = state.readings["grad_norm"]
    lost = 1 - state.readings["clipped_norm"] / jnp.where(norm > 0, norm, 1)
    return {**state.readings, "clipped_fraction": jnp.where(norm > 0, lost, 0)}


def skipped(state: OptimizerState | EveryKState) -> Array | int:
    """The number of steps of this phase that did not move the group."""
    return state.calls - state.inner.count if isinstance(state, EveryKState) else 0


def make(config, group: str, steps: int) -> optax.GradientTransformationExtraArgs:
    """Optimizer of parameter group `group` for a phase of `steps` steps, from `config.optimizer`.

    update(grads, state, params, *, value=None, grad=None, value_fn=None, monitor=None) -> (updates,
    state).  L-BFGS and Broyden need value, grad and value_fn and choose their own step length (the
    lr reads 1; the rate and schedule of the config are not used); the plateau schedule needs
    monitor = {"value": last validation metric, smaller is better, "count": number of evaluations}.
    Moments, norms and clipping are at least float32.

    A group with `every` > 1 or `delay` > 0 waits (`every_k_steps`), and its schedule is as long as
    it has updates.  Raises UserError for an unknown rule, schedule or overridden field, and for
    clipping with a line search.
    """
    config = settings(config, group)
    check_rhythm(config, group)
    rule, searched = rules.make_rule(config), config.name in quasi_newton.SEARCHED
    moves = max(-(-(steps - config.delay) // config.every), 1)
    rate = (lambda count: 1.0) if searched else schedules.schedule(config, moves)
    on_plateau = config.schedule.name == "plateau" and not searched

    def init(params: PyTree) -> OptimizerState:
        return start(rule, params, config.schedule.plateau if on_plateau else None)

    def update(
        grads: PyTree,
        state: OptimizerState,
        params: PyTree,
        *,
        value=None,
        grad=None,
        value_fn=None,
        monitor=None,
    ):
        grads = at_least_float32(grads)
        norm, (clipped, clipped_norm) = global_norm(grads), clip(grads, config.clip_norm)
        # Only a line search reads these; to any other rule they would be unused inputs of the
        # compiled step.
        given = {"value": value, "grad": grads if grad is None else grad, "value_fn": value_fn}
        search = given if searched else {}
        unit, inner = rule.update(clipped, state.inner, params, **search)
        watched = (
            schedules.watch(config.schedule.plateau, state.plateau, monitor) if on_plateau else ()
        )
        lr = jnp.asarray(rate(state.count), float) * (watched.inner.scale if on_plateau else 1.0)
        updates = unit if searched else jax.tree.map(lambda u: u * lr.astype(u.real.dtype), unit)
        used = {
            "lr": lr,
            "grad_norm": norm,
            "clipped_norm": clipped_norm,
            "update_norm": global_norm(updates),
        }
        used = {name: jnp.asarray(number, float) for name, number in used.items()}
        return updates, OptimizerState(optax.safe_increment(state.count), inner, used, watched)

    mover = optax.GradientTransformationExtraArgs(init, update)
    always = config.every == 1 and config.delay == 0
    return mover if always else every_k_steps(mover, config.every, config.delay)


def check_rhythm(config, group: str) -> None:
    """UserError unless `every` and `delay` of a group make sense."""
    if config.every < 1 or config.delay < 0:
        raise UserError(
            f"config.optimizer has every={config.every} and delay={config.delay} for the group "
            f"{group!r}; expected every >= 1 (1 = move it at every step) and delay >= 0."
        )


def start(rule: optax.GradientTransformation, params: PyTree, plateau) -> OptimizerState:
    """The state before the first update; plateau: its settings, None where it is not used."""
    names = ("lr", "grad_norm", "clipped_norm", "update_norm")
    watched = ()
    if plateau is not None:
        inner = schedules.plateau_rule(plateau).init(jnp.float32(0))
        watched = schedules.PlateauState(jnp.zeros((), jnp.int32), inner)
    # Of one type from the start: a number that is weakly typed before the first step only has
    # the step compiled twice.
    inner = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), rule.init(params))
    readings = {name: jnp.zeros((), float) for name in names}
    return OptimizerState(jnp.zeros((), jnp.int32), inner, readings, watched)


def clip(grads: PyTree, limit: float) -> tuple[PyTree, Array]:
    """Gradients of norm `limit` at most (0 = no limit), and the norm that they have then."""
    norm = global_norm(grads)
    if limit == 0:
        return grads, norm
    shrink = jnp.minimum(1.0, limit / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
    clipped = jax.tree.map(lambda g: g * shrink.astype(g.real.dtype), grads)
    return clipped, global_norm(clipped)


def every_k_steps(
    mover: optax.GradientTransformationExtraArgs, every: int, delay: int
) -> optax.GradientTransformationExtraArgs:
    """`mover` at the steps delay, delay + every, delay + 2 every, ... of a phase; at the others
    nothing moves, its state neither.

    The update is computed and thrown away at the other steps: they cost what every step costs.
    """

    def init(params: PyTree) -> EveryKState:
        inner = mover.init(params)
        return EveryKState(jnp.zeros((), jnp.int32), inner.readings, inner)

    def update(
        grads: PyTree, state: EveryKState, params: PyTree, **arguments
    ) -> tuple[PyTree, EveryKState]:
        since = state.calls - delay
        now = (since >= 0) & (since % every == 0)
        updates, moved = mover.update(grads, state.inner, params, **arguments)
        inner = jax.tree.map(lambda new, old: jnp.where(now, new, old), moved, state.inner)
        updates = jax.tree.map(lambda u: jnp.where(now, u, 0), updates)
        used = {
            name: jnp.where(now, value, 0) if name in ("lr", "update_norm") else value
            for name, value in moved.readings.items()
        }
        return updates, EveryKState(optax.safe_increment(state.calls), used, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def at_least_float32(tree: PyTree) -> PyTree:
    """Half-precision leaves as float32: optax squares gradients in the precision they come in."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def global_norm(tree: PyTree) -> Array:
    """sqrt(sum |x|^2) over all leaves, in at least float32 and never less than the leaves have."""
    return optax.tree.norm(at_least_float32(tree))


def settings(config, group: str):
    """The fields of `config.optimizer` that hold for one parameter group: `config` with those of
    `config.groups[group]` in place of its own.

    Raises UserError for a field that does not exist and for a value of another type.
    """
    if group not in config.groups:
        return config

    def apply(fields, changes, where: str) -> None:
        for name in changes.keys():
            value = changes[name]
            if name not in fields or name == "groups":
                known = ", ".join(sorted(set(fields.keys()) - {"groups"}))
                raise UserError(
                    f"{where} sets {name!r}, which is no field there. Use one of {known}."
                )
            if hasattr(value, "items"):
                apply(fields[name], value, f"{where}.{name}")
                continue
            try:
                fields[name] = value
            except TypeError:
                raise UserError(
                    f"{where}.{name} is {value!r}; expected a {type(fields[name]).__name__} such "
                    "as "
                    f"{fields[name]!r}."
                ) from None

    merged = config.copy_and_resolve_references()
    apply(merged, config.groups[group], f"config.optimizer.groups.{group}")
    return merged
