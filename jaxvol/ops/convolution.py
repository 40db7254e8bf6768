"""Convolutions of volumes, with four kinds of padding.

    y_k(v) = sum_t sum_c w_ck(t) x_c(s v + t - p)

Shapes: x [B, D, H, W, C], kernel [kd, kh, kw, C, K], y [B, D', H', W', K].  As in every
deep-learning package the kernel is not mirrored (a cross-correlation).  Two implementations share
one signature: `lax` is XLA's 3D convolution, `planes` that of jaxvol/ops/conv2d_planes.py, made of
2D ones.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxvol.ops import conv2d_planes
from jaxvol.types import UserError

Array = jax.Array
# voxels added (before, behind) along D, H, W
Widths = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
PADDINGS = ("zero", "replicate", "periodic", "reflect")
IMPLEMENTATIONS = ("auto", "lax", "planes")
NUMPY_MODES = {"zero": "constant", "replicate": "edge", "periodic": "wrap", "reflect": "reflect"}
NHWC = ("NHWC", "HWIO", "NHWC")
NDHWC = ("NDHWC", "DHWIO", "NDHWC")


def pad(x: Array, widths: Widths, mode: str) -> Array:
    """[B, D, H, W, C] with `widths` voxels more along D, H, W.

    zero:      0
    replicate: the outermost voxel
    periodic:  the volume again
    reflect:   its mirror image, without the outermost voxel (an axis of length 1 is repeated)
    Raises UserError for another mode.
    """
    if mode not in NUMPY_MODES:
        raise UserError(f"padding is {mode!r}; choose one of {', '.join(PADDINGS)}.")
    if not any(map(any, widths)):
        return x
    return jnp.pad(x, ((0, 0), *widths, (0, 0)), mode=NUMPY_MODES[mode])


def conv(
    x: Array, kernel: Array, stride: int, widths: Widths, padding: str, implementation: str = "auto"
) -> Array:
    """y(v) = sum_t w(t) x(stride v + t - low), in x's dtype.

    x continues beyond its faces by `widths` voxels as `padding` says.

    auto: planes on a machine with one CPU device, where XLA's 3D convolution is two to three times
          slower; lax everywhere else: cuDNN is fast, and volumes spread over devices exchange their
          halos
    Raises UserError for an unknown choice.
    """
    if chosen(implementation) == "planes":
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return conv2d_planes.convolve(
            pad(x, widths, padding).astype(wide), kernel.astype(wide), stride
        ).astype(x.dtype)
    low_high = tuple(widths) if padding == "zero" else ((0, 0),) * 3
    x = x if padding == "zero" else pad(x, widths, padding)
    return lax.conv_general_dilated(x, kernel, (stride,) * 3, low_high, dimension_numbers=NDHWC)


def conv_transpose(x: Array, kernel: Array, implementation: str = "auto") -> Array:
    """Transposed convolution that doubles each axis: [B, 2D, 2H, 2W, K].

    y(2 v + t - 1) += w(t) x(v) for t in {0, 1, 2}^3, kernel [3, 3, 3, C, K].  The same as torch's
    ConvTranspose3d(C, K, 3, stride=2, padding=1, output_padding=1).
    """
    if kernel.shape[:3] != (3, 3, 3):
        raise UserError(
            f"conv_transpose got a kernel of {kernel.shape[:3]} voxels; expected (3, 3, 3)."
        )
    if chosen(implementation) == "lax":
        return lax.conv_general_dilated(
            x,
            kernel[::-1, ::-1, ::-1],
            (1,) * 3,
            ((1, 2),) * 3,
            lhs_dilation=(2,) * 3,
            dimension_numbers=NDHWC,
        )
    b, d, h, w, c = x.shape

    def plane(x: Array, kernel: Array) -> Array:
        y = lax.conv_general_dilated(
            x.reshape(b * d, h, w, -1),
            kernel[::-1, ::-1],
            (1, 1),
            ((1, 2),) * 2,
            lhs_dilation=(2, 2),
            dimension_numbers=NHWC,
        )
        return y.reshape(b, d, 2 * h, 2 * w, -1)

    behind = jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], 1)
    even, odd = (
        plane(x, kernel[1]),
        plane(jnp.concatenate([x, behind], -1), jnp.concatenate([kernel[2], kernel[0]], 2)),
    )
    return jnp.stack([even, odd], 2).reshape(b, 2 * d, 2 * h, 2 * w, -1)


def chosen(implementation: str) -> str:
    """lax or planes; UserError for an unknown name."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(
            f"the implementation of a convolution is {implementation!r}; choose one of "
            f"{', '.join(IMPLEMENTATIONS)}."
        )
    one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    return implementation if implementation != "auto" else "planes" if one_cpu else "lax"
