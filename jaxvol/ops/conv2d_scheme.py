"""How a convolution of volumes is cut into 2D ones: slabs of planes, and the maps around them.

See `jaxvol.ops.conv2d_planes` for the two ways, `direct` and `winograd`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
SLAB = 2**21  # bytes of the windows of a slab
# Winograd's maps: of the input (B), of the kernel (G), back to the output (A)
B = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
TILE = 4  # planes of the output per Winograd transform
NARROW = 8  # fewer channels are not worth the transforms


class Scheme(NamedTuple):
    """A convolution as sum of 2D ones between linear maps, and the loop over its output.

    read:    [examples, planes + halo, H, W, C] -> 2D fields [n, H, W, c] each
    filters: kernel [kd, kh, kw, C, K] -> one 2D kernel [kh, kw, c, K] per field
    write:   their convolutions [n, H', W', K] -> [examples, planes, H', W', K]
    In each turn the loop takes some neighbouring planes of the output of one example, or some whole
    examples.
    """

    read: Callable
    filters: Callable
    write: Callable
    examples: int  # per turn
    planes: int  # per turn
    turns_per_example: int
    turns: int
    stride: int
    halo: int


def scheme(
    x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], stride: int, itemsize: int
) -> Scheme:
    """The scheme for a padded x [B, D, H, W, C] and a kernel [kd, kh, kw, C, K].

    Its slabs are equal, and the largest whose windows take at most SLAB bytes.
    """
    batch, depth, rows, columns, c = x_shape
    kd, kh, kw, _, k = kernel_shape
    planes = (depth - kd) // stride + 1
    tiled = kd == 3 and stride == 1 and planes % TILE == 0 and min(c, k) >= NARROW
    per_plane = (
        (rows * columns // stride**2)
        * kh
        * kw
        * max(c, k)
        * itemsize
        * (len(B) / TILE if tiled else kd)
    )
    unit = TILE if tiled else 1
    n = max(
        n
        for n in range(unit, planes + 1, unit)
        if planes % n == 0 and (n * per_plane <= SLAB or n == unit)
    )
    m = max(
        m
        for m in range(1, batch + 1)
        if batch % m == 0 and (n == planes and m * n * per_plane <= SLAB or m == 1)
    )
    maps = (
        (read_tiles, filter_tiles, partial(write_tiles, m))
        if tiled
        else (
            partial(read_taps, kd, stride),
            filter_taps,
            lambda fields: fields[0].reshape(m, n, *fields[0].shape[1:]),
        )
    )
    return Scheme(*maps, m, n, planes // n, batch // m * (planes // n), stride, kd - stride)


def read_taps(depth: int, stride: int, x: Array) -> list[Array]:
    """One field of depth * C channels."""
    reach = x.shape[1] - depth + 1
    parts = [lax.slice_in_dim(x, t, t + reach, stride, axis=1) for t in range(depth)]
    return [jnp.concatenate(parts, -1).reshape(-1, *x.shape[2:4], depth * x.shape[-1])]


def filter_taps(kernel: Array) -> list[Array]:
    """One kernel of depth * C channels."""
    kd, kh, kw, c, k = kernel.shape
    return [kernel.transpose(1, 2, 0, 3, 4).reshape(kh, kw, kd * c, k)]


def read_tiles(x: Array) -> list[Array]:
    """B x, tile by tile."""
    reach = x.shape[1] - len(B) + 1
    parts = [
        lax.slice_in_dim(x, t, t + reach, TILE, axis=1).reshape(-1, *x.shape[2:])
        for t in range(len(B))
    ]
    return [combined(row, parts) for row in B]


def filter_tiles(kernel: Array) -> list[Array]:
    """G w."""
    return [combined(row, list(kernel)) for row in G]


def write_tiles(examples: int, fields: list[Array]) -> Array:
    """A m, tile by tile."""
    planes = jnp.stack([combined(row, fields) for row in A], 1)
    return planes.reshape(examples, -1, *planes.shape[2:])


def combined(row: tuple[float, ...], parts: list[Array]) -> Array:
    """sum_i row_i parts_i."""
    terms = [part if a == 1 else a * part for a, part in zip(row, parts) if a]
    return sum(terms[1:], terms[0])


def corner(how: Scheme, i: Array, stride: int) -> tuple:
    """Where turn i begins in an array whose planes lie `stride` times as dense as the output's."""
    return (
        i // how.turns_per_example * how.examples,
        i % how.turns_per_example * how.planes * stride,
        0,
        0,
        0,
    )


def slab_shape(
    how: Scheme, grid: tuple[int, ...], channels: int, output: bool = False
) -> tuple[int, ...]:
    """[examples, planes, H, W, C] of a turn: of the input, or of the output."""
    return (
        how.examples,
        how.planes if output else how.planes * how.stride + how.halo,
        *grid,
        channels,
    )


def slab(v: Array, how: Scheme, i: Array, output: bool = False) -> Array:
    """The planes of the input, or of the output, that belong to turn i."""
    shape = slab_shape(how, v.shape[2:4], v.shape[4], output)
    return lax.dynamic_slice(v, corner(how, i, 1 if output else how.stride), shape)


def fields_of(how: Scheme, kernel: Array, y: Array) -> Callable[[Array], list[Array]]:
    """The transpose of `how.write`: planes of the output -> one field per 2D convolution."""
    count = len(jax.eval_shape(how.filters, jax.ShapeDtypeStruct(kernel.shape, y.dtype)))
    tiles = how.examples * how.planes // (TILE if count > 1 else 1)
    fields = [jax.ShapeDtypeStruct((tiles, *y.shape[2:]), y.dtype)] * count
    return lambda planes: jax.linear_transpose(how.write, fields)(planes)[0]


def adjoint(function: Callable, *shape: int, dtype) -> Callable:
    """The transpose of a linear map of an array of this shape."""
    transposed = jax.linear_transpose(function, jax.ShapeDtypeStruct(shape, dtype))
    return lambda y: transposed(y)[0]
