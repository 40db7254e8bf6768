"""Means over the observed voxels of volumes [B, D, H, W, C], in at least float32.

A mask is [B, D, H, W, 1] with 1 = observed and 0 = missing, or None.  What lies under a 0 never
enters, not even a NaN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvol.types import Array

AXES = (1, 2, 3)
POOLED = (1, 2, 3, 4)  # channels as well


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


def unit(x: Array, axes: tuple[int, ...] = AXES) -> Array:
    """The power of two at or below max |x| over `axes`, which are kept; 1 where that is 0 or not
    finite.

    Squares of fields in physical units (1e-29 g/cm^3, 1e20 / cm^2) leave the range of float32.
    Those of x / unit(x) do not, and a division by a power of two changes no bit.
    """
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(promote(x)), axis=axes, keepdims=True))
    pattern = jnp.uint64 if size.dtype == jnp.float64 else jnp.uint32
    exponent = jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, size.dtype), pattern)
    bits = jax.lax.bitcast_convert_type(size, pattern) & exponent
    power = jax.lax.bitcast_convert_type(bits, size.dtype)
    return jnp.where(jnp.isfinite(size) & (power > 0), power, 1)


def deviation(x: Array, mask: Array | None = None) -> Array:
    """x - mean(x) per example and channel; exactly 0 where missing, and all over a field that is
    constant up to rounding.
    """
    x = fill(x, mask)
    size = unit(x)
    x = x / size
    first = x - mean(x, mask)[:, None, None, None]
    # the second pass removes the first one's rounding
    centred = fill(first - mean(first, mask)[:, None, None, None], mask)
    noise = (16 * jnp.finfo(x.dtype).eps) ** 2 * mean(jnp.square(x), mask)
    varies = mean(jnp.square(centred), mask) > noise
    return jnp.where(varies[:, None, None, None], centred * size, 0)
