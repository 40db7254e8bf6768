"""One optimizer per parameter group: gradient norm, clipping, an optax rule, the learning rate, and
a record of all four.

    g' = g * min(1, clip_norm / |g|)        u = rule(g')        theta <- theta + lr(t) u

The rules of optax are linear in their learning rate, so each is built with rate 1 and scaled here:
the rate, the norms before and after clipping and the norm of the update that `readings` returns are
the values that moved the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from optax import contrib

from jaxvol.config.base import RULES, SCHEDULES
from jaxvol.ops import quasi_newton
from jaxvol.types import Array, PyTree, UserError

# parameters of a group that Broyden moves; its float64 matrix has 3.2 GB then
LARGEST = 20_000


class PlateauState(NamedTuple):
    """Reduce-on-plateau: `seen` evaluations so far; `inner.best_value` and `inner.scale` are the
    best metric and the factor.
    """

    seen: Array
    inner: contrib.ReduceLROnPlateauState


class OptimizerState(NamedTuple):
    """What one group's optimizer carries: arrays only."""

    count: Array  # updates done in this phase, int32
    inner: PyTree  # state of the optax rule
    readings: dict[str, Array]  # of the last update
    plateau: PlateauState | tuple[()]


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

    A group with `every` > 1 or `delay` > 0 waits (`every_k_steps`), and its schedule is as long as it has
    updates. Raises UserError for an unknown rule, schedule or overridden field, and for clipping
    with a line search.
    """
    config = settings(config, group)
    if config.every < 1 or config.delay < 0:
        raise UserError(
            f"config.optimizer has every={config.every} and delay={config.delay} for the group "
            f"{group!r}; expected "
            "every >= 1 (1 = move it at every step) and delay >= 0."
        )
    rule, searched = make_rule(config), config.name in quasi_newton.SEARCHED
    moves = max(-(-(steps - config.delay) // config.every), 1)
    rate = (lambda count: 1.0) if searched else schedule(config, moves)
    on_plateau = config.schedule.name == "plateau" and not searched

    def init(params: PyTree) -> OptimizerState:
        zeros = {
            name: jnp.zeros((), float)
            for name in ("lr", "grad_norm", "clipped_norm", "update_norm")
        }
        watched = ()
        if on_plateau:
            watched = PlateauState(
                jnp.zeros((), jnp.int32), plateau_rule(config.schedule.plateau).init(jnp.float32(0))
            )
        # Of one type from the start: a number that is weakly typed before the first step only has
        # the step compiled twice.
        inner = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), rule.init(params))
        return OptimizerState(jnp.zeros((), jnp.int32), inner, zeros, watched)

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
        norm = global_norm(grads)
        clipped, clipped_norm = grads, norm
        if config.clip_norm > 0:
            shrink = jnp.minimum(
                1.0, config.clip_norm / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
            )
            clipped = jax.tree.map(lambda g: g * shrink.astype(g.real.dtype), grads)
            clipped_norm = global_norm(clipped)
        # Only a line search reads these; to any other rule they would be unused inputs of the
        # compiled step.
        search = (
            {"value": value, "grad": grads if grad is None else grad, "value_fn": value_fn}
            if searched
            else {}
        )
        unit, inner = rule.update(clipped, state.inner, params, **search)
        watched = watch(config.schedule.plateau, state.plateau, monitor) if on_plateau else ()
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
    return (
        mover
        if config.every == 1 and config.delay == 0
        else every_k_steps(mover, config.every, config.delay)
    )


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


def make_rule(config) -> optax.GradientTransformationExtraArgs:
    """The optax rule `config.name` with learning rate 1; weight decay reaches arrays with two or
    more axes only.

    AdamW: Loshchilov & Hutter, arXiv:1711.05101; Adam: Kingma & Ba, arXiv:1412.6980; Lion: Chen et
           al., arXiv:2302.06675;
    L-BFGS with a zoom line search: Nocedal & Wright, Numerical Optimization, algorithms 7.4 and
    3.5-3.6; Broyden: the whole inverse Hessian, self-scaled, for some thousand parameters
    (ops/quasi_newton.py).
    """

    def matrices(params: PyTree) -> PyTree:
        return jax.tree.map(lambda p: p.ndim >= 2, params)

    match config.name:
        case "adamw":
            own = config.adamw
            rule = optax.adamw(
                1.0, b1=own.b1, b2=own.b2, eps=own.eps, weight_decay=own.weight_decay, mask=matrices
            )
        case "adam":
            rule = optax.adam(1.0, b1=config.adam.b1, b2=config.adam.b2, eps=config.adam.eps)
        case "sgd":
            rule = optax.sgd(
                1.0, momentum=config.sgd.momentum or None, nesterov=config.sgd.nesterov
            )
        case "lion":
            own = config.lion
            rule = optax.lion(
                1.0, b1=own.b1, b2=own.b2, weight_decay=own.weight_decay, mask=matrices
            )
        case "lbfgs" | "broyden":
            if config.clip_norm > 0:
                raise UserError(
                    f"config.optimizer.clip_norm is {config.clip_norm} with name={config.name!r}; "
                    "a clipped gradient is not "
                    "that of the loss its line search evaluates. Set config.optimizer.clip_norm=0."
                )
            # A quasi-Newton step has length 1 near the minimum, so every search starts there.
            own = config[config.name]
            search = optax.scale_by_zoom_linesearch(
                own.max_linesearch_steps, initial_guess_strategy="one"
            )
            if config.name == "lbfgs":
                rule = optax.lbfgs(memory_size=own.memory_size, linesearch=search)
            else:
                rule = broyden(search)
        case _:
            raise UserError(
                f"config.optimizer.name is {config.name!r}. Use one of {', '.join(RULES)}."
            )
    return optax.with_extra_args_support(rule)


def broyden(search: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """The direction of ops/quasi_newton.py and a line search along it; UserError for a group that
    is too large for its matrix.
    """

    def init(params: PyTree) -> tuple[quasi_newton.State, PyTree]:
        flat = ravel_pytree(params)[0]
        if flat.size > LARGEST:
            raise UserError(
                f"config.optimizer.name='broyden' keeps a matrix of {flat.size:,} x {flat.size:,} "
                "numbers for this group; "
                f"it is meant for at most {LARGEST:,} parameters. Use 'lbfgs'."
            )
        return quasi_newton.start(flat), search.init(params)

    def update(grads: PyTree, state: tuple, params: PyTree, **arguments) -> tuple[PyTree, tuple]:
        grad, restore = ravel_pytree(grads)
        direction, model = quasi_newton.descend(
            state[0], ravel_pytree(params)[0], grad, ravel_pytree(state[1].grad)[0]
        )
        updates, searched = search.update(restore(direction), state[1], params, **arguments)
        return updates, (model, searched)

    return optax.GradientTransformationExtraArgs(init, update)


def schedule(config, steps: int) -> Callable[[Array], Array]:
    """count -> learning rate for the updates 0 ... steps - 1 of a phase, from `config.optimizer`.

    With w = warmup_steps: lr(t) = lr(w) (t + 1) / w for t < w, so that update 0 already moves and w
    = 0 means no warm-up. The shape starts at t = w and ends at t = steps; it starts at the peak
    `learning_rate` for all but onecycle and cyclic, which start at their own start_factor.  step's
    boundaries are counted from the start of the phase.  plateau is constant here; its factor
    follows the validation metric, see `watch`.  Raises UserError for an unknown name.
    """
    shape, warmup, peak = (
        make_shape(config.schedule, steps),
        config.schedule.warmup_steps,
        config.learning_rate,
    )
    if warmup == 0:
        return lambda count: peak * shape(count)
    joined = optax.join_schedules([lambda count: shape(0) * (count + 1) / warmup, shape], [warmup])
    return lambda count: peak * joined(count)


def make_shape(config, steps: int) -> Callable[[Array], Array]:
    """Multiplier of the peak rate as a function of the updates since the end of the warm-up, from
    `optimizer.schedule`.

    cosine: SGDR without restarts, arXiv:1608.03983; onecycle: arXiv:1708.07120, with cosine flanks;
            cyclic: triangular, from
    start_factor to 1 and back in `period` updates, arXiv:1506.01186.
    """
    length = max(steps - config.warmup_steps, 1)
    match config.name:
        case "constant" | "plateau":
            return optax.constant_schedule(1.0)
        case "cosine":
            return optax.cosine_decay_schedule(1.0, length, config.cosine.end_factor)
        case "exponential":
            return optax.exponential_decay(
                1.0, config.exponential.every, config.exponential.decay_rate
            )
        case "step":
            start = config.warmup_steps
            return optax.piecewise_constant_schedule(
                1.0, {b - start: config.step.factor for b in config.step.boundaries}
            )
        case "onecycle":
            own = config.onecycle
            length = max(length, 2)
            top = min(max(round(own.peak_fraction * length), 1), length - 1)
            return optax.piecewise_interpolate_schedule(
                "cosine", own.start_factor, {top: 1.0 / own.start_factor, length: own.end_factor}
            )
        case "cyclic":
            return lambda count: triangle(count, config.cyclic.period, config.cyclic.start_factor)
        case _:
            raise UserError(
                f"config.optimizer.schedule.name is {config.name!r}. Use one of "
                f"{', '.join(SCHEDULES)}."
            )


def triangle(count: Array, period: int, low: float) -> Array:
    """low -> 1 -> low every `period` >= 2 updates; an update falls on the top exactly, for odd
    periods too.
    """
    top, phase = period // 2, count % period
    return low + (1.0 - low) * jnp.minimum(phase / top, (period - phase) / (period - top))


def plateau_rule(config) -> optax.GradientTransformationExtraArgs:
    """optax's counter of bad evaluations; `watch` tells it 0 (improved) or 2 (not) against a best
    value of 1.
    """
    return contrib.reduce_on_plateau(
        factor=config.factor,
        patience=config.patience,
        cooldown=config.cooldown,
        min_scale=config.min_factor,
        rtol=0.5,
    )


def watch(config, state: PlateauState, monitor: dict[str, Array]) -> PlateauState:
    """`state` after one tick if `monitor["count"]` changed since the last update, else `state`.

    Improved means value < best - rtol |best|; optax's own test, value < (1 - rtol) best, is met by
    every equal value when the metric is negative (one that is maximised comes with its sign
    turned).  A value that is not finite is no improvement.
    """
    best, value = state.inner.best_value, monitor["value"].astype(state.inner.best_value.dtype)
    margin = config.rtol * jnp.abs(jnp.where(jnp.isfinite(best), best, 0.0))
    improved = jnp.isfinite(value) & (value < best - margin)
    told = state.inner._replace(best_value=jnp.ones_like(best))
    _, inner = plateau_rule(config).update(
        jnp.zeros_like(best), told, value=jnp.where(improved, 0.0, 2.0).astype(best.dtype)
    )
    ticked = PlateauState(
        monitor["count"], inner._replace(best_value=jnp.where(improved, value, best))
    )
    return jax.tree.map(
        lambda new, old: jnp.where(monitor["count"] != state.seen, new, old), ticked, state
    )
