"""What a normaliser and its inverse leave of physical values x [..., C], computed in float32.

A normalised value y is known to a few units in its last place, and so is every number on the way
back: with x_0 = x and x_i = step_i(x_(i-1)), the error e_(i-1) of the way back to x_(i-1) is

    e_(i-1) = |d x_(i-1) / d x_i| (e_i + ULPS eps |x_i|) + ULPS eps |x_(i-1)|

A field of zeros comes back as 1e-6 when the normaliser's mean is 10, and as its floor from a
logarithm.  Whatever divides by a norm or a variance has to know that this is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.ops import masked, normalise
from jaxvol.types import Array

EPS = float(np.finfo(np.float32).eps)  # batches are stored in float32, whatever computes with them
ULPS = 4  # XLA's log, exp and pow are right to this many units; arithmetic to half of one


def unit(fitted: Iterable[Mapping], channels: int) -> np.ndarray:
    """The usual size of physical values, [C]: the power of two at or below the largest of
    |inverse(y)|, y = -1, 0, 1.
    """
    y = np.array([-1.0, 0.0, 1.0])[:, None] * np.ones(channels)
    size = np.abs(normalise.inverse(fitted, y)).max(0)
    return np.exp2(np.floor(np.log2(np.where(size > 0, size, 1))))


def rounding(fitted: Iterable[Mapping], x: Array) -> Array:
    """Bound of |inverse(forward(x)) - x| where nothing is clipped, of x [..., C]."""
    steps, images = _unclipped(fitted), []
    for step in steps:
        x = normalise.forward((step,), x)
        images.append(x)
    error = jnp.zeros_like(x)
    for step, y in zip(reversed(steps), reversed(images), strict=True):
        back = lambda y, step=step: normalise.inverse((step,), y)  # noqa: E731
        x, slope = jax.jvp(back, (y,), (jnp.ones_like(y),))
        error = jnp.abs(slope) * (error + ULPS * EPS * jnp.abs(y)) + ULPS * EPS * jnp.abs(x)
    return error


def settle(fitted: Sequence[Mapping], x: Array, mask: Array | None) -> Array:
    """x [B, D, H, W, C] = inverse(forward(...)), but exactly 0 in examples and channels that cannot
    be told from zeros, and exactly constant in those that cannot be told from a constant.

    mask: [B, D, H, W, 1], 1 = observed; other voxels do not count.  Where a logarithm raised all of
    a field to its floor, it cannot be told from zeros.
    """
    if not fitted:
        return x
    zero = jnp.zeros((1, x.shape[-1]), masked.promote(x[:1, :1, :1, :1]).dtype)
    steps = _unclipped(fitted)
    floor = jnp.abs(normalise.inverse(steps, normalise.forward(steps, zero)))  # of logarithms
    least = floor + rounding(fitted, zero)
    high = jnp.max(masked.fill(x, mask, -jnp.inf), axis=masked.AXES)
    low = jnp.min(masked.fill(x, mask, jnp.inf), axis=masked.AXES)
    middle = low + (high - low) / 2
    nothing = jnp.maximum(jnp.abs(high), jnp.abs(low)) <= least
    constant = high - low <= 2 * rounding(fitted, middle)
    value = jnp.where(nothing, 0, middle)[:, None, None, None]
    return jnp.where((nothing | constant)[:, None, None, None], value, masked.promote(x))


def _unclipped(fitted: Iterable[Mapping]) -> list[Mapping]:
    """The chain without the bounds of `linear` and `percentile`, which are values like others."""
    return [{**step, "clip": False} if "clip" in step else step for step in fitted]
