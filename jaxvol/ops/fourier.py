"""Spectral convolution of real volumes, by FFT or by truncated DFT as matrix products.

For a real field x on a periodic grid of D x H x W voxels, complex weights W_k and a window of
frequencies k,

    y(r_j) = Re sum_k  c_k W_k X_k exp(2 pi i k.j / n)
    X_k    = 1/(D H W) sum_j x(r_j) exp(-2 pi i k.j / n)

(Li et al. 2021, arXiv:2010.08895, Eq. 4; transforms scaled as norm="forward", so weights do not
depend on the grid).  The last axis has 0 <= k only: c_k = 2 stands for its conjugate half, c_k = 1
at k = 0.  The other axes have all signs.  On an axis of even length n the frequencies +n/2 and -n/2
are the same samples: X there is halved and shared by both, which is what trigonometric
interpolation does, so that reflections and the plane k_last = n/2 come out right.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxvol.ops import pruned_transforms as transforms
from jaxvol.ops.pruned_transforms import HIGHEST, Window

Array = jax.Array
# real and imaginary part: optimizers and checkpoints then see reals only
Pair = tuple[Array, Array]
IMPLEMENTATIONS = ("auto", "fft", "dft")
# of the frequencies of one axis, see `choose`
DFT_FRACTION = {"cpu": 0.55, "gpu": 0.75, "tpu": 0.75}


def window(modes: tuple[int, int, int], one_sided: bool = False) -> Window:
    """Frequencies -m..m per axis and 0..m on the last.

    `one_sided` stops at m - 1 on the positive side of the first two: the layout of the
    `neuraloperator` package for even `n_modes = 2 m`.
    """
    full = tuple((-m, m - 1 if one_sided and m > 0 else m) for m in modes[:2])
    return (*full, (0, modes[2]))


def cropped(frequencies: Window, shape: tuple[int, ...]) -> Window:
    """The part of a window that a grid resolves.

    A one-sided axis keeps -n/2 and drops +n/2, as fftfreq counts.
    """

    def axis(low: int, high: int, n: int) -> tuple[int, int]:
        top = n // 2 if low in (0, -high) else (n - 1) // 2
        return max(low, -(n // 2)), min(high, top)

    return tuple(axis(low, high, n) for (low, high), n in zip(frequencies, shape))


def window_size(frequencies: Window) -> tuple[int, ...]:
    """Number of frequencies per axis."""
    return tuple(high - low + 1 for low, high in frequencies)


def spectral_conv(
    x: Array,
    core: Pair | None,
    factors: tuple[Pair, ...],
    frequencies: Window,
    *,
    implementation: str = "auto",
    output_shape: tuple[int, int, int] | None = None,
) -> Array:
    """Convolve real volumes with a kernel given by its Fourier coefficients.

    [B, D, H, W, C] -> [B, D', H', W', K] in at least float32, whatever x's dtype.

    x:            real, any float dtype; transforms and products are computed in at least float32
    core:         weights (real, imag), each [kd, kh, kw, C, K] with (kd, kh, kw) =
                  window_size(frequencies); with `factors`, see `contract`
    frequencies:  what the weights stand for; cropped on a grid that does not resolve them
    output_shape: evaluate the trigonometric polynomial y on another grid (default: that of x)
    Raises ValueError for an unknown implementation.
    """
    shape, out = x.shape[1:4], tuple(output_shape or x.shape[1:4])
    used = cropped(frequencies, tuple(map(min, shape, out)))
    core, factors = _crop_weights(core, factors, frequencies, used)
    how = choose(implementation, shape, used)
    if how == "dft":
        analyse, synthesise = transforms.analyse_dft, transforms.synthesise_dft
    else:
        analyse, synthesise = transforms.analyse_fft, transforms.synthesise_fft
    # products run along W
    dtype, x = x.dtype, jnp.moveaxis(x, -1, 2).astype(jnp.promote_types(x.dtype, jnp.float32))
    spectrum = transforms.halve_nyquist(analyse(x, used), used, shape)
    spectrum = contract_again(transforms.by_example(spectrum), core, factors, dtype)
    return jnp.moveaxis(synthesise(transforms.by_example(spectrum), used, out), 2, -1)


def choose(implementation: str, shape: tuple[int, ...], frequencies: Window) -> str:
    """Resolve "auto": DFT on more than one device or for few frequencies, FFT otherwise.

    A batch-sharded FFT is gathered by XLA in jax 0.10, a DFT never is.  DFT_FRACTION is the
    measured crossing on one CPU core (32, 48 and 64 cubed) and, on accelerators, an estimate of
    where truncated products move fewer bytes than full transforms.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"spectral convolution {implementation!r} is unknown; choose one of "
            f"{', '.join(IMPLEMENTATIONS)}."
        )
    if implementation != "auto":
        return implementation
    whole = (*shape[:2], shape[2] // 2 + 1)
    fraction = max(
        (size / n for size, n in zip(window_size(frequencies), whole) if n > 1), default=0.0
    )
    few = fraction <= DFT_FRACTION[jax.default_backend()]
    return "dft" if jax.device_count() > 1 or few else "fft"


def contract(spectrum: Array, core: Pair | None, factors: tuple[Pair, ...]) -> Array:
    """Multiply each mode by its channel matrix: [B, kd, kh, C, kw] -> [B, kd, kh, K, kw].

    no factors  core [kd, kh, kw, C, K] is the dense tensor
    Tucker      core [r1 .. r5], factors [kd, r1], [kh, r2], [kw, r3], [C, r4], [K, r5]
                (TFNO, arXiv:2310.00120)
    CP          core None, factors [kd, r], [kh, r], [kw, r], [C, r], [K, r]
    The order of a factorised product is chosen by operation count, so the dense tensor is built
    only where that is cheaper.
    """
    if not factors:
        return _contract_dense(spectrum, *core)
    small = tuple(jax.lax.complex(*f) for f in factors)
    if core is None:
        return jnp.einsum("bmlik,mr,lr,kr,ir,or->bmlok", spectrum, *small, precision=HIGHEST)
    return jnp.einsum(
        "bmlik,uvwpq,mu,lv,kw,ip,oq->bmlok",
        spectrum,
        jax.lax.complex(*core),
        *small,
        precision=HIGHEST,
    )


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def contract_again(
    spectrum: Array, core: Pair | None, factors: tuple[Pair, ...], dtype: jnp.dtype
) -> Array:
    """`contract`, whose backward pass keeps the spectrum alone and multiplies once more.

    The products of factorised weights are several times the spectrum.  It is kept rounded to
    `dtype`, which only touches the gradient of the weights.
    """
    return contract(spectrum, core, factors)


def _contract_again_forward(
    spectrum: Array, core: Pair | None, factors: tuple[Pair, ...], dtype: jnp.dtype
) -> tuple:
    bits = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[dtype.itemsize]
    parts = (
        jax.lax.bitcast_convert_type(part.astype(dtype), bits)
        for part in (spectrum.real, spectrum.imag)
    )
    return contract(spectrum, core, factors), (tuple(parts), core, factors)


def _contract_again_backward(dtype: jnp.dtype, saved: tuple, cotangent: Array) -> tuple:
    """Multiply once more, which XLA must not merge with the first time.

    What is multiplied depends on the cotangent: otherwise XLA would keep the first products.
    """
    parts, core, factors = saved
    first = cotangent.real.ravel()[0]
    # true for a NaN only, whose step is refused anyway
    never = first != first
    parts = (
        jax.lax.bitcast_convert_type(part ^ never.astype(part.dtype), dtype).astype(
            cotangent.real.dtype
        )
        for part in parts
    )
    core, factors = jax.tree.map(lambda w: w + never.astype(w.dtype), (core, factors))
    return jax.vjp(contract, jax.lax.complex(*parts), core, factors)[1](cotangent)


contract_again.defvjp(_contract_again_forward, _contract_again_backward)


def _contract_dense(spectrum: Array, real: Array, imag: Array) -> Array:
    """One small product per mode.

    Real and imaginary rows are stacked, so that no complex copy of the weights is made.  Rows run
    over (example, part), in this order: an axis that is split over devices may be merged with a
    whole one behind it.
    """
    # [kd, kh, kw, B, 2, C]
    parts = jnp.stack([spectrum.real, spectrum.imag], axis=1).transpose(2, 3, 5, 0, 1, 4)
    rows = parts.reshape(*parts.shape[:3], -1, parts.shape[-1])
    by_real, by_imag = (
        jnp.matmul(rows, w, precision=HIGHEST).reshape(*parts.shape[:5], -1) for w in (real, imag)
    )
    y = jax.lax.complex(
        by_real[..., 0, :] - by_imag[..., 1, :], by_imag[..., 0, :] + by_real[..., 1, :]
    )
    return y.transpose(3, 0, 1, 4, 2)


def _crop_weights(
    core: Pair | None, factors: tuple[Pair, ...], frequencies: Window, used: Window
) -> tuple[Pair | None, tuple]:
    """Weights of the frequencies in `used`, a part of the window `frequencies`."""
    rows = tuple(slice(u[0] - k[0], u[1] - k[0] + 1) for u, k in zip(used, frequencies))
    if factors:
        return core, (*((real[r], imag[r]) for (real, imag), r in zip(factors, rows)), *factors[3:])
    return (core[0][rows], core[1][rows]), ()
