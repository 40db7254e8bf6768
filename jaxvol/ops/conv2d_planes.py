"""Convolutions of volumes as 2D ones of their planes, for one CPU, where XLA's 3D ones are slow.

The time goes to the copy of all windows that the matrix product reads: XLA's 2D convolution makes
it of everything it is given.  Given a slab of planes whose copy stays in the cache, it runs near
the speed of the matrix product.  Along the depth axis

    direct:    the planes under the kernel's taps are laid side by side on the channel axis
    winograd:  F(4, 3) of Winograd (Lavin & Gray 2015, arXiv:1509.09308): 4 planes of the output
               from 6 of the input by 6 products instead of 12,  y = A m,
               m_i = conv2(B_i x, (G w)_i);  the rounding error is about ten times that of `direct`
    late sum:  few channels of the output make `direct` a matrix times a few vectors, and every
               window is copied once per tap; here each plane is convolved with all taps at once, as
               channels, and shifted planes are added,  y(d) = sum_t m_t(d + t): 50 times faster for
               the 24 -> 1 channels of a 7^3 kernel, 10 times with its gradient

A convolution, its adjoint in x and the one in the kernel are bilinear, and the derivatives of each
are the other two: hence three functions, and derivatives of every order in reverse mode.  They are
written as NHWC convolutions because XLA finds fast code for no others within a loop.  How a
convolution is cut into slabs is told by `jaxvol.ops.conv2d_scheme`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxvol.ops.conv2d_scheme import (
    NARROW,
    adjoint,
    corner,
    fields_of,
    scheme,
    slab,
    slab_shape,
)

Array = jax.Array
NHWC = ("NHWC", "HWIO", "NHWC")


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """`correlate`, or the late sum where the output has few channels."""
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
    """x(stride v + t) += w(t) y(v), [B, D', H', W', K] -> [B, *shape, C].

    The adjoint of `correlate` in x.
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
    """w(t) = sum_v x(stride v + t) y(v), [*shape, C, K] for a kernel of `shape`.

    The adjoint of `correlate` in the kernel.
    """
    size = (*shape, x.shape[-1], y.shape[-1])
    how = scheme(x.shape, size, stride, x.dtype.itemsize)
    write = fields_of(how, jnp.zeros(size, x.dtype), y)
    filters = jax.eval_shape(how.filters, jax.ShapeDtypeStruct(size, x.dtype))

    def body(i: Array, totals: list[Array]) -> list[Array]:
        sums = []
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
            sums.append(total + part[:, : shape[1], : shape[2]])
        return sums

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
