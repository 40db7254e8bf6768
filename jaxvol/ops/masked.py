"""Means over the observed voxels of volumes [B, D, H, W, C], in at least float32.

A mask is [B, D, H, W, 1] with 1 = observed and 0 = missing, or None.  What lies under a 0 never
enters, not even a NaN.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxvol.types import Array

AXES = (1, 2, 3)


def promote(x: Array) -> Array:
    """x in its own precision, or float32 if that is less."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def fill(x: Array, mask: Array | None, value: Array | float = 0.0) -> Array:
    """x in at least float32, with `value` where it is missing."""
    x = promote(x)
    return x if mask is None else jnp.where(mask > 0, x, jnp.asarray(value, x.dtype))


def count(x: Array, mask: Array | None) -> Array:
    """Observed voxels per example, [B, 1]."""
    dtype = promote(x[:1, :1, :1, :1, :1]).dtype
    if mask is None:
        return jnp.full((x.shape[0], 1), float(x.shape[1] * x.shape[2] * x.shape[3]), dtype)
    return jnp.sum(mask > 0, axis=AXES, dtype=dtype)


def mean(x: Array, mask: Array | None = None, empty: float = 0.0) -> Array:
    """Mean over the observed voxels, [B, C]; `empty` for an example that has none."""
    if mask is None:
        return jnp.mean(promote(x), axis=AXES)
    n = count(x, mask)
    return jnp.where(n > 0, jnp.sum(fill(x, mask), axis=AXES) / jnp.maximum(n, 1), empty)


def deviation(x: Array, mask: Array | None = None) -> Array:
    """x - mean(x) per example and channel; exactly 0 where missing, and all over a field that is
    constant up to rounding.
    """
    x = fill(x, mask)
    first = x - mean(x, mask)[:, None, None, None]
    # the second pass removes the first one's rounding
    centred = fill(first - mean(first, mask)[:, None, None, None], mask)
    noise = (16 * jnp.finfo(x.dtype).eps) ** 2 * mean(jnp.square(x), mask)
    return jnp.where((mean(jnp.square(centred), mask) > noise)[:, None, None, None], centred, 0)
