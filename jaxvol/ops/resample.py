"""Volumes on other grids, [B, D, H, W, C] -> [B, D', H', W', C].

Trilinear interpolation and average pooling.  Voxel centres lie at (i + 1/2) / n of the box on every
grid (half-pixel centres): the box keeps its place, nothing is shifted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxvol.types import UserError

Array = jax.Array


def resize(x: Array, shape: tuple[int, int, int], periodic: bool = False) -> Array:
    """Trilinear interpolation to `shape` voxels, in x's dtype.

    Along an axis of n -> m voxels voxel j reads x at s = (j + 1/2) n / m - 1/2: (1 - f) x[floor s]
    + f x[floor s + 1], f the fraction of s.  Beyond the faces lies the outermost voxel, or the
    volume again where it is periodic.  The same as torch's interpolate(mode="trilinear",
    align_corners=False); going to fewer voxels does not smooth first.
    """
    for axis, m in enumerate(shape, 1):
        n = x.shape[axis]
        if m == 2 * n:
            x = doubled(x, axis, periodic)
        elif m != n:
            x = jnp.moveaxis(
                jnp.tensordot(x, jnp.asarray(weights(n, m, periodic), x.dtype), (axis, 1)), -1, axis
            )
    return x


def doubled(x: Array, axis: int, periodic: bool) -> Array:
    """Twice the voxels along one axis: 3/4 of the nearest voxel and 1/4 of the next."""
    first, last = (lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, x.shape[axis] - 1))
    inner = 0.75 * x
    before = jnp.concatenate(
        [last if periodic else first, lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)], axis
    )
    behind = jnp.concatenate(
        [lax.slice_in_dim(x, 1, x.shape[axis], axis=axis), first if periodic else last], axis
    )
    y = jnp.stack([inner + 0.25 * before, inner + 0.25 * behind], axis + 1)
    return y.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def weights(n: int, m: int, periodic: bool) -> np.ndarray:
    """[m, n]: how much of voxel i of n goes to voxel j of m, rows summing to 1."""
    s = (np.arange(m) + 0.5) * n / m - 0.5
    low, shares = np.floor(s).astype(int), np.zeros((m, n))
    for i, share in ((low, 1 - (s - low)), (low + 1, s - low)):
        np.add.at(shares, (np.arange(m), i % n if periodic else np.clip(i, 0, n - 1)), share)
    return shares


def avg_pool(
    x: Array, window: int, stride: int, width: int = 0, count_padding: bool = True
) -> Array:
    """Means over cubes of `window` voxels every `stride` voxels, in x's dtype.

    Around x there are zeros, `width` voxels deep. count_padding: these zeros count in the mean
    (torch's count_include_pad=True); otherwise it is over the voxels of x alone.  Raises UserError
    when a volume is smaller than the window.
    """
    if min(x.shape[1:4]) + 2 * width < window or 2 * width > window:
        raise UserError(
            f"avg_pool got a volume of {x.shape[1:4]} voxels, window {window} and padding {width}: "
            "expected the window to fit into the padded volume, and a padding of at most half of "
            "it; use larger volumes."
        )

    def total(v: Array) -> Array:
        return lax.reduce_window(
            v,
            np.zeros((), v.dtype),
            lax.add,
            (1, window, window, window, 1),
            (1, stride, stride, stride, 1),
            ((0, 0), *((width, width),) * 3, (0, 0)),
        )

    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = window**3 if count_padding else total(jnp.ones((1, *x.shape[1:4], 1), wide.dtype))
    return (total(wide) / count).astype(x.dtype)
