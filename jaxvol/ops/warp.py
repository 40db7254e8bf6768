"""Volumes at other points: trilinear interpolation, and rotations about the centre of the volume.

A rotation R moves the field, f'(p) = f(R^-1 p) with p measured in voxels from the centre, and turns
the components of a vector along with it, v'(p) = R v(R^-1 p).  It is meant for cubic voxels.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def sample(x: Array, points: Array) -> Array:
    """Trilinear interpolation of x [B, D, H, W, C] at points [..., 3] in voxels -> [B, ..., C].

    Outside, the edge is repeated.  Exact for fields that are linear in each coordinate.
    """
    shape = x.shape[1:4]
    points = jnp.stack([jnp.clip(points[..., a], 0, n - 1) for a, n in enumerate(shape)], -1)
    low = jnp.minimum(jnp.floor(points).astype(jnp.int32), jnp.maximum(jnp.array(shape) - 2, 0))
    fraction = (points - low).astype(x.dtype)
    total = jnp.zeros((), x.dtype)
    for corner in itertools.product((0, 1), repeat=3):
        index = tuple(
            jnp.minimum(low[..., a] + bit, n - 1) for a, (bit, n) in enumerate(zip(corner, shape))
        )
        weight = math.prod(
            fraction[..., a] if bit else 1 - fraction[..., a] for a, bit in enumerate(corner)
        )
        total = total + weight[..., None] * x[(slice(None), *index)]
    return total


def rotation(axis: int, degrees: float) -> np.ndarray:
    """[3, 3]: by an angle about axis 0 (d), 1 (h) or 2 (w), the next axis towards the one after."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def rotate(x: Array, matrix: Array | np.ndarray, vector: bool = False) -> Array:
    """x [B, D, H, W, C] turned by `matrix`.

    vector: channels in threes, the components along d, h, w, turn as well
    """
    y = sample(x, _origins(x.shape[1:4], matrix))
    if not vector:
        return y
    turned = jnp.einsum(
        "ij,...kj->...ki",
        jnp.asarray(matrix, y.dtype),
        y.reshape(*y.shape[:-1], -1, 3),
        precision=jax.lax.Precision.HIGHEST,
    )
    return turned.reshape(y.shape)


def inside(shape: tuple[int, int, int], matrix: Array | np.ndarray) -> Array:
    """[D, H, W]: whether what `rotate` brings to a voxel lies between voxels of the volume.

    Elsewhere it is a repeated edge.
    """
    points = _origins(shape, matrix)
    return jnp.all((points >= -1e-3) & (points <= jnp.array(shape) - 1 + 1e-3), -1)


def _origins(shape: tuple[int, int, int], matrix: Array | np.ndarray) -> Array:
    """[D, H, W, 3]: R^-1 p of every voxel p, counted from the first voxel.

    Sums, not products: TF32 would move them.
    """
    grids = jnp.meshgrid(*(jnp.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    back = jnp.asarray(matrix, grids[0].dtype).T
    return jnp.stack(
        [sum(back[a, b] * grids[b] for b in range(3)) + (n - 1) / 2 for a, n in enumerate(shape)],
        -1,
    )
