"""Convolutions of volumes, y_k(v) = sum_t sum_c w_ck(t) x_c(s v + t - p), with four kinds of padding.

Shapes: x [B, D, H, W, C], kernel [kd, kh, kw, C, K], y [B, D', H', W', K].  As in every deep-learning package the kernel is not
mirrored (a cross-correlation).  Two implementations share one signature: `lax` is XLA's 3D convolution, `planes` a sum of 2D
ones over the kernel's depth.
"""
from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxvol.types import UserError

Array = jax.Array
Widths = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]     # voxels added (before, behind) along D, H, W
PADDINGS = ("zero", "replicate", "periodic", "reflect")
IMPLEMENTATIONS = ("auto", "lax", "planes")
NUMPY_MODES = {"zero": "constant", "replicate": "edge", "periodic": "wrap", "reflect": "reflect"}
NHWC = ("NHWC", "HWIO", "NHWC")
NDHWC = ("NDHWC", "DHWIO", "NDHWC")


def pad(x: Array, widths: Widths, mode: str) -> Array:
    """[B, D, H, W, C] with `widths` voxels more along D, H, W.

    zero: 0 | replicate: the outermost voxel | periodic: the volume again | reflect: its mirror image, without the outermost voxel
    (an axis of length 1 is repeated).  Raises UserError for another mode.
    """
    if mode not in NUMPY_MODES:
        raise UserError(f"padding is {mode!r}; choose one of {', '.join(PADDINGS)}.")
    if not any(map(any, widths)):
        return x
    return jnp.pad(x, ((0, 0), *widths, (0, 0)), mode=NUMPY_MODES[mode])


def conv(x: Array, kernel: Array, stride: int, widths: Widths, padding: str, implementation: str = "auto") -> Array:
    """y(v) = sum_t w(t) x(stride v + t - low), x continued beyond its faces by `widths` voxels as `padding` says; in x's dtype.

    auto: planes on a machine with one CPU device, where XLA's 3D convolution is two to three times slower; lax everywhere else:
    cuDNN is fast, and volumes spread over devices exchange their halos.  Raises UserError for an unknown choice.
    """
    if chosen(implementation) == "planes":
        return conv_planes(pad(x, widths, padding), kernel, stride)
    low_high = tuple(widths) if padding == "zero" else ((0, 0),) * 3
    x = x if padding == "zero" else pad(x, widths, padding)
    return lax.conv_general_dilated(x, kernel, (stride,) * 3, low_high, dimension_numbers=NDHWC)


def conv_transpose(x: Array, kernel: Array, implementation: str = "auto") -> Array:
    """Transposed convolution that doubles each axis: y(2 v + t - 1) += w(t) x(v) for t in {0, 1, 2}^3; [B, 2D, 2H, 2W, K].

    kernel [3, 3, 3, C, K].  The same as torch's ConvTranspose3d(C, K, 3, stride=2, padding=1, output_padding=1).
    """
    if kernel.shape[:3] != (3, 3, 3):
        raise UserError(f"conv_transpose got a kernel of {kernel.shape[:3]} voxels; expected (3, 3, 3).")
    if chosen(implementation) == "lax":
        return lax.conv_general_dilated(x, kernel[::-1, ::-1, ::-1], (1,) * 3, ((1, 2),) * 3, lhs_dilation=(2,) * 3,
                                        dimension_numbers=NDHWC)
    b, d, h, w, c = x.shape

    def plane(x: Array, kernel: Array) -> Array:
        y = lax.conv_general_dilated(x.reshape(b * d, h, w, -1), kernel[::-1, ::-1], (1, 1), ((1, 2),) * 2, lhs_dilation=(2, 2),
                                     dimension_numbers=NHWC)
        return y.reshape(b, d, 2 * h, 2 * w, -1)
    behind = jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], 1)
    even, odd = plane(x, kernel[1]), plane(jnp.concatenate([x, behind], -1), jnp.concatenate([kernel[2], kernel[0]], 2))
    return jnp.stack([even, odd], 2).reshape(b, 2 * d, 2 * h, 2 * w, -1)


def chosen(implementation: str) -> str:
    """lax or planes; UserError for an unknown name."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"the implementation of a convolution is {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}.")
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    return implementation if implementation != "auto" else "planes" if one_cpu else "lax"


def conv_planes(x: Array, kernel: Array, stride: int) -> Array:
    """The convolution of an x that is padded already, as 2D convolutions of its planes; at least in float32, in x's dtype."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return correlate(x.astype(wide), kernel.astype(wide), stride).astype(x.dtype)


# On one CPU the time of a convolution goes to the copy of its windows that the matrix product reads.  XLA's 2D convolution makes
# that copy of everything it is given; given a slab of planes whose copy stays in the cache (SLAB bytes), the kernel's depth laid
# on the channel axis, it runs at the speed of the matrix product.  A convolution, its gradient with respect to x and the one with
# respect to the kernel are bilinear, and the derivatives of each are the other two, whence three functions and every derivative
# in reverse mode.  They are written as 2D convolutions in NHWC layout because within a loop XLA finds no fast code for others.
SLAB = 2 ** 21


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def correlate(x: Array, kernel: Array, stride: int) -> Array:
    """y(v) = sum_t w(t) x(stride v + t), [B, D, H, W, C] -> [B, D', H', W', K], without padding."""
    kd, kh, kw, c, k = kernel.shape
    planes, rows, columns = ((n - m) // stride + 1 for n, m in zip(x.shape[1:4], (kd, kh, kw)))
    loop = slabs(x.shape[0], planes, rows * columns * kernel.size // k * x.dtype.itemsize, stride, kd)
    flat = kernel.transpose(1, 2, 0, 3, 4).reshape(kh, kw, kd * c, k)

    def body(i: Array, y: Array) -> Array:
        part = lax.conv_general_dilated(taps(x, loop, i), flat, (stride, stride), "VALID", dimension_numbers=NHWC)
        return put(y, part, loop, i)
    return lax.fori_loop(0, loop.turns, body, room((x.shape[0], planes, rows, columns, k), x))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def spread(y: Array, kernel: Array, stride: int, shape: tuple[int, int, int]) -> Array:
    """x(stride v + t) += w(t) y(v), [B, D', H', W', K] -> [B, *shape, C]: the adjoint of `correlate` in x."""
    kd, kh, kw, c, k = kernel.shape
    h, w = shape[1:]
    loop = slabs(*y.shape[:2], h * w * kh * kw * k * y.dtype.itemsize, stride, kd)
    flat = kernel[:, ::-1, ::-1].transpose(1, 2, 4, 0, 3).reshape(kh, kw, k, kd * c)
    margin = tuple((m - 1, n - 1 - (size - 1) * stride) for m, n, size in zip((kh, kw), (h, w), y.shape[2:4]))

    def body(i: Array, x: Array) -> Array:
        part = lax.conv_general_dilated(planes_of(y, loop, i), flat, (1, 1), margin, lhs_dilation=(stride, stride), dimension_numbers=NHWC)
        return add_taps(x, part, loop, i)
    return lax.fori_loop(0, loop.turns, body, jnp.zeros((y.shape[0], *shape, c), y.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def windows(x: Array, y: Array, stride: int, shape: tuple[int, int, int]) -> Array:
    """w(t) = sum_v x(stride v + t) y(v), [*shape, C, K] for a kernel of `shape`: the adjoint of `correlate` in the kernel."""
    (kd, kh, kw), c, k = shape, x.shape[-1], y.shape[-1]
    loop = slabs(*y.shape[:2], y.shape[2] * y.shape[3] * kd * kh * kw * c * x.dtype.itemsize, stride, kd)

    def body(i: Array, total: Array) -> Array:
        images, filters = taps(x, loop, i).transpose(3, 1, 2, 0), planes_of(y, loop, i).transpose(1, 2, 0, 3)
        part = lax.conv_general_dilated(images, filters, (1, 1), "VALID", rhs_dilation=(stride, stride), dimension_numbers=NHWC)
        return total + part[:, :kh, :kw]                  # a stride may leave rows behind the last window
    total = lax.fori_loop(0, loop.turns, body, jnp.zeros((kd * c, kh, kw, k), x.dtype))
    return total.reshape(kd, c, kh, kw, k).transpose(0, 2, 3, 1, 4)


def room(shape: tuple[int, ...], x: Array) -> Array:
    """An array to be filled; not of zeros, as XLA would make them once and copy them each time."""
    return jnp.broadcast_to(x.ravel()[0], shape)


correlate.defvjp(lambda x, kernel, stride: (correlate(x, kernel, stride), (x, kernel)),
                 lambda stride, saved, dy: (spread(dy, saved[1], stride, saved[0].shape[1:4]),
                                            windows(saved[0], dy, stride, saved[1].shape[:3])))
spread.defvjp(lambda y, kernel, stride, shape: (spread(y, kernel, stride, shape), (y, kernel)),
              lambda stride, shape, saved, dx: (correlate(dx, saved[1], stride), windows(dx, saved[0], stride, saved[1].shape[:3])))
windows.defvjp(lambda x, y, stride, shape: (windows(x, y, stride, shape), (x, y)),
               lambda stride, shape, saved, dk: (spread(saved[1], dk, stride, saved[0].shape[1:4]), correlate(saved[0], dk, stride)))


class Slabs(NamedTuple):
    """A loop over the output of a convolution: in each turn some neighbouring planes of one example, or some whole examples."""
    examples: int                # per turn
    planes: int                  # per turn
    turns_per_example: int
    turns: int
    stride: int
    depth: int                   # of the kernel


def slabs(batch: int, planes: int, plane_bytes: int, stride: int, depth: int) -> Slabs:
    """The largest equal parts of batch x planes whose windows, `plane_bytes` per plane, fill at most SLAB bytes."""
    n = max(n for n in range(1, planes + 1) if planes % n == 0 and (n * plane_bytes <= SLAB or n == 1))
    m = max(m for m in range(1, batch + 1) if batch % m == 0 and (n == planes and m * n * plane_bytes <= SLAB or m == 1))
    return Slabs(m, n, planes // n, batch // m * (planes // n), stride, depth)


def corner(loop: Slabs, i: Array, stride: int) -> tuple:
    """Where turn i begins in an array whose planes lie `stride` times as dense as the output's."""
    return i // loop.turns_per_example * loop.examples, i % loop.turns_per_example * loop.planes * stride, 0, 0, 0


def planes_of(y: Array, loop: Slabs, i: Array) -> Array:
    """The output planes of turn i, [planes, H', W', K]."""
    part = lax.dynamic_slice(y, corner(loop, i, 1), (loop.examples, loop.planes, *y.shape[2:]))
    return part.reshape(-1, *y.shape[2:])


def put(y: Array, part: Array, loop: Slabs, i: Array) -> Array:
    """The inverse of `planes_of`."""
    part = part.reshape(loop.examples, loop.planes, *part.shape[1:])
    return lax.dynamic_update_slice(y, part, corner(loop, i, 1))


def taps(x: Array, loop: Slabs, i: Array) -> Array:
    """What turn i reads, [planes, H, W, depth * C]: the planes under each tap of the kernel's depth side by side."""
    reach = loop.stride * (loop.planes - 1) + 1
    part = lax.dynamic_slice(x, corner(loop, i, loop.stride), (loop.examples, reach + loop.depth - 1, *x.shape[2:]))
    parts = [lax.slice_in_dim(part, t, t + reach, loop.stride, axis=1) for t in range(loop.depth)]
    return jnp.concatenate(parts, -1).reshape(-1, *x.shape[2:4], loop.depth * x.shape[-1])


def add_taps(x: Array, part: Array, loop: Slabs, i: Array) -> Array:
    """The adjoint of `taps`: x plus each tap of `part` at its planes."""
    reach, size = loop.stride * (loop.planes - 1) + 1, x.shape[-1]
    part = part.reshape(loop.examples, loop.planes, *part.shape[1:])
    spread_out = jnp.zeros((), x.dtype)
    total = sum(lax.pad(part[..., t * size:(t + 1) * size], spread_out,
                        ((0, 0, 0), (t, loop.depth - 1 - t, loop.stride - 1), *((0, 0, 0),) * 3)) for t in range(loop.depth))
    start = corner(loop, i, loop.stride)
    old = lax.dynamic_slice(x, start, (loop.examples, reach + loop.depth - 1, *x.shape[2:]))
    return lax.dynamic_update_slice(x, old + total, start)
