"""Points where the residual of an equation is large: added to those of the batch, or drawn anew."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvol.ops import refine
from jaxvol.tasks import equations
from jaxvol.tasks.equations import Setup
from jaxvol.types import Array, Batch, Fixed, Key, Metrics, PyTree


def start(setup: Setup, dtype: jnp.dtype) -> PyTree:
    """extra["refined"] before the first refinement: a buffer of `cap` points, none of them used."""
    low = jnp.asarray(setup.problem.low, dtype)
    return {
        "points": jnp.broadcast_to(low, (setup.config.refine.cap, len(low))),
        "count": jnp.int32(0),
        "percentiles": jnp.zeros(len(refine.PERCENTILES), dtype),
    }


def refined(
    setup: Setup, net: PyTree, base: Array, fixed: Fixed, batch: Batch, rng: Key
) -> tuple[Array, PyTree, Metrics]:
    """(loss over the points of the batch and the added ones, the buffer of the next step,
    readings).

    base: residual of the equation at the points of the batch, [B, n, equations].
    """
    settings, state = setup.config.refine, fixed.extra["refined"]
    points = batch["points"].reshape(-1, batch["points"].shape[-1])
    added = jax.lax.stop_gradient(state["points"])
    square = jnp.concatenate(
        [one_per_point(base), one_per_point(equations.equation(setup, net, added))]
    )
    use_base = jnp.where((state["count"] > 0) & (settings.name == "rad"), 0.0, 1.0)
    is_used = jnp.arange(len(added)) < state["count"]
    used = jnp.concatenate(
        [jnp.full(len(points), use_base, square.dtype), is_used.astype(square.dtype)]
    )
    size = jnp.sqrt(jax.lax.stop_gradient(square))

    def search(now: PyTree) -> PyTree:
        known = jnp.where(used > 0, size, jnp.nan)
        levels = jnp.nanpercentile(known, jnp.asarray(refine.PERCENTILES, size.dtype))
        if settings.name == "rar":
            everywhere = jnp.concatenate([points, added])
            buffer, count = more(setup, everywhere, size, used, now, rng)
        else:
            buffer, count = anew(setup, jax.lax.stop_gradient(net), points.dtype, rng)
        levels = levels.astype(now["percentiles"].dtype)
        return {"points": buffer, "count": count, "percentiles": levels}

    due = (fixed.step + 1) % settings.every == 0
    new = jax.lax.cond(due, search, lambda now: now, state)
    readings = {
        "net/points": jnp.sum(used),
        **{f"net/residual_p{p}": state["percentiles"][i] for i, p in enumerate(refine.PERCENTILES)},
    }
    return jnp.sum(used * square) / jnp.sum(used), new, readings


def one_per_point(r: Array) -> Array:
    """[..., equations] -> [N]: squared, summed over equations."""
    return equations.squares(r).reshape(-1)


def more(
    setup: Setup, points: Array, size: Array, used: Array, now: PyTree, rng: Key
) -> tuple[Array, Array]:
    """(buffer, how many of it count) with points added where residuals are above a percentile."""
    settings = setup.config.refine
    low, high = (jnp.asarray(v, points.dtype) for v in (setup.problem.low, setup.problem.high))
    return refine.rar(
        rng,
        points,
        size,
        used,
        now["points"],
        now["count"],
        low,
        high,
        settings.percentile,
        settings.ratio,
    )


def anew(setup: Setup, net: PyTree, dtype: jnp.dtype, rng: Key) -> tuple[Array, Array]:
    """(buffer, how many of it count) drawn anew, with a density that follows the residual."""
    settings = setup.config.refine
    low, high = (jnp.asarray(v, dtype) for v in (setup.problem.low, setup.problem.high))
    where, choice = jax.random.split(rng)
    candidates = jax.random.uniform(where, (settings.candidates, len(low)), dtype, low, high)
    size = jnp.sqrt(equations.squares(equations.equation(setup, net, candidates)))
    buffer = refine.rad(choice, candidates, size, settings.cap, settings.power, settings.floor)
    return buffer, jnp.int32(settings.cap)
