"""Convolutions of volumes as 2D convolutions of their planes, for one CPU, where XLA's 3D
convolution is slow.

The time goes to the copy of all windows that the matrix product reads: XLA's 2D convolution makes
it of everything it is given. Given a slab of planes whose copy stays in the cache, it runs near the
speed of the matrix product.  Along the depth axis

    direct:    the planes under the kernel's taps are laid side by side on the channel axis
    winograd:  F(4, 3) of Winograd (Lavin & Gray 2015, arXiv:1509.09308): 4 planes of the output
               from 6 of the input by 6 products instead of 12,  y = A m,  m_i = conv2(B_i x, (G
               w)_i);  the rounding error is about ten times that of `direct`
    late sum:  few channels of the output make `direct` a matrix times a few vectors, and every
               window is copied once per tap; here each plane is convolved with all taps at once, as
               channels, and shifted planes are added,  y(d) = sum_t m_t(d + t): 50 times faster for
               the 24 -> 1 channels of a 7^3 kernel, 10 times with its gradient

A convolution, its adjoint in x and the one in the kernel are bilinear, and the derivatives of each
are the other two: hence three functions, and derivatives of every order in reverse mode.  They are
written as NHWC convolutions because XLA finds fast code for no others within a loop.
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
NHWC = ("NHWC", "HWIO", "NHWC")
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
    """A convolution along the depth axis, as sum of 2D ones between linear maps, and the loop over
    its output.

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
    """The scheme for a padded x [B, D, H, W, C] and a kernel [kd, kh, kw, C, K]: the largest equal
    slabs of at most SLAB bytes.
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


def adjoint(function: Callable, *shape: int, dtype) -> Callable:
    """The transpose of a linear map of an array of this shape."""
    transposed = jax.linear_transpose(function, jax.ShapeDtypeStruct(shape, dtype))
    return lambda y: transposed(y)[0]


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """`correlate`, with the sum over the depth of the kernel left for the end where the output has
    few channels.
    """
    kd, kh, kw, c, k = kernel.shape
    if stride > 1 or kd == 1 or k >= NARROW or kd * k > 2 * c:
        return correlate(x, kernel, stride)
    taps = correlate(x, kernel.transpose(1, 2, 3, 0, 4).reshape(1, kh, kw, c, kd * k), 1)
    taps, planes = taps.reshape(*taps.shape[:4], kd, k), x.shape[1] - kd + 1
    return sum(lax.slice_in_dim(taps[..., t, :], t, t + planes, axis=1) for t in range(kd))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def correlate(x: Array, kernel: Array, stride: int) -> Array:
    """y(v) = sum_t w(t) x(stride v + t), [B, D, H, W, C] -> [B, D', H', W', K], without padding."""
    how = scheme(x.shape, kernel.shape, stride, x.dtype.itemsize)
    filters = how.filters(kernel)
    shape = tuple((n - m) // stride + 1 for n, m in zip(x.shape[1:4], kernel.shape))

    def body(i: Array, y: Array) -> Array:
        fields = [
            lax.conv_general_dilated(field, f, (stride, stride), "VALID", dimension_numbers=NHWC)
            for field, f in zip(how.read(slab(x, how, i)), filters)
        ]
        return lax.dynamic_update_slice(y, how.write(fields), corner(how, i, 1))

    # filled with a value that exists only now: XLA would make zeros once and copy them each time
    room = jnp.broadcast_to(x.ravel()[0], (x.shape[0], *shape, kernel.shape[-1]))
    return lax.fori_loop(0, how.turns, body, room)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def spread(y: Array, kernel: Array, stride: int, shape: tuple[int, int, int]) -> Array:
    """x(stride v + t) += w(t) y(v), [B, D', H', W', K] -> [B, *shape, C]: the adjoint of
    `correlate` in x.
    """
    how = scheme((y.shape[0], *shape, kernel.shape[3]), kernel.shape, stride, y.dtype.itemsize)
    filters = [f[::-1, ::-1].swapaxes(2, 3) for f in how.filters(kernel)]
    margin = tuple(
        (m - 1, n - 1 - (size - 1) * stride)
        for m, n, size in zip(kernel.shape[1:3], shape[1:], y.shape[2:4])
    )
    read = adjoint(how.read, *slab_shape(how, shape[1:], kernel.shape[3]), dtype=y.dtype)
    write = fields_of(how, kernel, y)

    def body(i: Array, x: Array) -> Array:
        fields = [
            lax.conv_general_dilated(
                field, f, (1, 1), margin, lhs_dilation=(stride, stride), dimension_numbers=NHWC
            )
            for field, f in zip(write(slab(y, how, i, output=True)), filters)
        ]
        return lax.dynamic_update_slice(
            x, slab(x, how, i) + read(fields), corner(how, i, how.stride)
        )

    return lax.fori_loop(
        0, how.turns, body, jnp.zeros((y.shape[0], *shape, kernel.shape[3]), y.dtype)
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def windows(x: Array, y: Array, stride: int, shape: tuple[int, int, int]) -> Array:
    """w(t) = sum_v x(stride v + t) y(v), [*shape, C, K] for a kernel of `shape`: the adjoint of
    `correlate` in the kernel.
    """
    size = (*shape, x.shape[-1], y.shape[-1])
    how = scheme(x.shape, size, stride, x.dtype.itemsize)
    write = fields_of(how, jnp.zeros(size, x.dtype), y)
    filters = jax.eval_shape(how.filters, jax.ShapeDtypeStruct(size, x.dtype))

    def body(i: Array, totals: list[Array]) -> list[Array]:
        found = []
        for total, a, b in zip(
            totals, how.read(slab(x, how, i)), write(slab(y, how, i, output=True))
        ):
            part = lax.conv_general_dilated(
                a.transpose(3, 1, 2, 0),
                b.transpose(1, 2, 0, 3),
                (1, 1),
                "VALID",
                rhs_dilation=(stride, stride),
                dimension_numbers=NHWC,
            )
            # a stride may leave rows behind the last window
            found.append(total + part[:, : shape[1], : shape[2]])
        return found

    totals = lax.fori_loop(
        0,
        how.turns,
        body,
        [jnp.zeros((f.shape[2], *f.shape[:2], f.shape[3]), x.dtype) for f in filters],
    )
    return adjoint(how.filters, *size, dtype=x.dtype)(
        [total.transpose(1, 2, 0, 3) for total in totals]
    )


correlate.defvjp(
    lambda x, kernel, stride: (correlate(x, kernel, stride), (x, kernel)),
    lambda stride, saved, dy: (
        spread(dy, saved[1], stride, saved[0].shape[1:4]),
        windows(saved[0], dy, stride, saved[1].shape[:3]),
    ),
)
spread.defvjp(
    lambda y, kernel, stride, shape: (spread(y, kernel, stride, shape), (y, kernel)),
    lambda stride, shape, saved, dx: (
        correlate(dx, saved[1], stride),
        windows(dx, saved[0], stride, saved[1].shape[:3]),
    ),
)
windows.defvjp(
    lambda x, y, stride, shape: (windows(x, y, stride, shape), (x, y)),
    lambda stride, shape, saved, dk: (
        spread(saved[1], dk, stride, saved[0].shape[1:4]),
        correlate(saved[0], dk, stride),
    ),
)


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
