"""Points where the residual is large, with array shapes that never change.

They lie in a buffer [cap, d] of which the first `count` are used.

rar  as published with Scaled-cPIKANs: `ratio` n new points, each a random point whose residual is
     above a percentile, plus Gaussian noise, clamped to the box; up to `cap` added, none removed
rad  all points drawn anew from candidates with probability ~ |r|^power / mean |r|^power + floor
     (Wu et al. 2023, arXiv:2207.10289)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvol.types import Array, Key

NOISE = 0.1  # standard deviation of the displacement, as a fraction of the box
PERCENTILES = (75, 95, 99)


def rar(
    key: Key,
    points: Array,
    residual: Array,
    used: Array,
    buffer: Array,
    count: Array,
    low: Array,
    high: Array,
    percentile: float,
    ratio: float,
) -> tuple[Array, Array]:
    """(buffer [cap, d], count) with int(ratio n) more points, n = sum of `used`.

    points [N, d], residual [N] >= 0 and used [N] (1 = is a point, 0 = an empty place) are those
    that were trained on.
    """
    where, noise = jax.random.split(key)
    level = jnp.nanpercentile(jnp.where(used > 0, residual, jnp.nan), percentile)
    high_ones = jnp.where((used > 0) & (residual >= level), 0.0, -jnp.inf)
    centres = points[jax.random.categorical(where, high_ones, shape=(len(buffer),))]
    fresh = centres + NOISE * (high - low) * jax.random.normal(noise, buffer.shape, buffer.dtype)
    grown = jnp.minimum(count + jnp.floor(ratio * jnp.sum(used)).astype(jnp.int32), len(buffer))
    place = jnp.arange(len(buffer))
    new = ((place >= count) & (place < grown))[:, None]
    return jnp.where(new, jnp.clip(fresh, low, high), buffer), grown


def rad(key: Key, candidates: Array, residual: Array, n: int, power: float, floor: float) -> Array:
    """n of the candidates [M, d], without replacement, by the density above; residual [M] >= 0."""
    raised = residual**power
    density = raised / jnp.maximum(jnp.mean(raised), jnp.finfo(raised.dtype).tiny) + floor
    gumbel = jax.random.gumbel(key, density.shape, density.dtype)
    return candidates[jax.lax.top_k(jnp.log(density) + gumbel, n)[1]]
