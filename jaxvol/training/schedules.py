"""Learning rates over a phase: warm-up, shapes, and the factor that waits for a plateau."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxvol.config.base import SCHEDULES
from jaxvol.types import Array, UserError


class PlateauState(NamedTuple):
    """Reduce-on-plateau: `seen` evaluations so far; `inner.best_value` and `inner.scale` are the
    best metric and the factor.
    """

    seen: Array
    inner: contrib.ReduceLROnPlateauState


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
