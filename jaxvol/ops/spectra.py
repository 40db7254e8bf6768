"""Power spectra of batches of boxes: P(k), cross spectra, T(k) and r(k), on any number of devices.

Conventions: a box of D x H x W cells has the sides L = box_size; wavenumbers are in units of
kF = 2 pi / (its shortest side).  Shell b holds the modes with int(|k| / kF) = b; shell 0 is the
mean.  Spectra are given in the shells 1 ... N/2 - 1, in units of box_size^3,
P(k) = V / N_cells^2 <|F delta|^2>.  A box of depth 1 is a 2D field: its V is an area.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.ops import masked
from jaxvol.types import Array, UserError

HIGHEST = jax.lax.Precision.HIGHEST  # TF32 would cost three digits
# |k| / kF of an exact shell edge may come out a rounding error below it
ROUNDING = 1 + 1e-6


class Shells(NamedTuple):
    """Which shell each mode is in, and what a shell is; arrays per shell start with shell 0."""

    bins: np.ndarray  # [D, H, W // 2 + 1], int: shell of every mode of the half spectrum
    # mean |k| of the modes of a shell, in 1 / unit of box_size; NaN if it has none
    k: np.ndarray
    modes: np.ndarray  # independent modes of a shell: a conjugate pair counts once
    last: int  # the highest complete shell: N/2 - 1 for N cells along the shortest axis


@functools.lru_cache(maxsize=16)
def shells(shape: tuple[int, int, int], box_size: tuple[float, float, float]) -> Shells:
    """Shells of the half spectrum of a box, up to the corner of k space (Pylians' bins)."""
    d, h, w = (np.abs(i) for i in _wavenumbers(shape, box_size))
    radius = np.sqrt(d[:, None, None] ** 2 + h[:, None] ** 2 + w**2)
    bins = np.floor(radius * ROUNDING).astype(np.int32)
    # modes that are their own conjugates: 0 or the Nyquist frequency along every axis
    d, h, w = ((np.arange(n) == 0) | (2 * np.arange(n) == n) for n in shape)
    self_conjugate = d[:, None, None] & h[:, None] & w[: shape[2] // 2 + 1]
    weight = (np.broadcast_to(hermitian_weight(shape[2]), bins.shape) + self_conjugate) / 2
    modes = np.bincount(bins.ravel(), weight.ravel())
    with np.errstate(invalid="ignore"):
        k = np.bincount(bins.ravel(), (weight * radius).ravel()) / modes
    last = int(min(n // 2 * s for n, s in zip(shape, _scales(shape, box_size)) if n > 1)) - 1
    for array in (bins, k, modes):
        array.setflags(write=False)
    return Shells(bins, k * 2 * np.pi / _shortest(shape, box_size), modes, last)


def wavenumber(shape: tuple[int, int, int], box_size: tuple[float, float, float]) -> Array:
    """|k| of every mode of the half spectrum, [D, H, W // 2 + 1], in 1 / unit of box_size."""
    d, h, w = (jnp.asarray(i, jnp.float32) for i in _wavenumbers(shape, box_size))
    return (
        2
        * np.pi
        / _shortest(shape, box_size)
        * jnp.sqrt(d[:, None, None] ** 2 + h[:, None] ** 2 + w**2)
    )


def hermitian_weight(width: int) -> np.ndarray:
    """How many modes of the full spectrum each column of the half spectrum stands for.

    1 or 2, [width // 2 + 1].
    """
    return np.array([1.0 if i == 0 or 2 * i == width else 2.0 for i in range(width // 2 + 1)])


def rfftn(x: Array) -> Array:
    """Half spectrum over D, H, W of real x [B, D, H, W, C], not normalised, in at least complex64.

    Under a mesh of several devices it is a discrete Fourier transform by matrix products, which the
    compiler splits over devices like any other product; an FFT of a sharded array is gathered first
    (on jax 0.10 even of a split batch).
    """
    x = masked.promote(x)
    if jax.sharding.get_abstract_mesh().size <= 1:
        return jnp.fft.rfftn(x, axes=masked.AXES)
    cos, sin = _fourier_matrices(x.shape[3], x.shape[3] // 2 + 1, x.dtype)
    re = jnp.einsum("bdhwc,wk->bdhkc", x, cos, precision=HIGHEST)
    im = -jnp.einsum("bdhwc,wk->bdhkc", x, sin, precision=HIGHEST)
    for axis, rule in ((2, "bdhwc,hk->bdkwc"), (1, "bdhwc,dk->bkhwc")):
        cos, sin = _fourier_matrices(x.shape[axis], x.shape[axis], x.dtype)
        product = functools.partial(jnp.einsum, rule, precision=HIGHEST)
        re, im = product(re, cos) + product(im, sin), product(im, cos) - product(re, sin)
    return jax.lax.complex(re, im)


def shell_sums(
    power: Array, shape: tuple[int, int, int], box_size: tuple[float, float, float], number: int
) -> Array:
    """Sum over all modes of each shell: power [B, D, H, W // 2 + 1, P] -> [B, number, P].

    The shells are 0 ... number - 1.  A matrix product per row of H: accurate in float32, without
    scatter, and local to the devices that hold D.
    """
    d, h, w = (jnp.asarray(i, jnp.float32) for i in _wavenumbers(shape, box_size))
    weight = jnp.asarray(hermitian_weight(shape[2]), power.dtype)[:, None]

    def add(total: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        values, k_h = row
        bins = jnp.floor(jnp.sqrt(d[:, None] ** 2 + k_h**2 + w**2) * ROUNDING).astype(jnp.int32)
        one_hot = jax.nn.one_hot(bins, number, dtype=power.dtype) * weight
        return total + jnp.einsum("bdwp,dwk->bkp", values, one_hot, precision=HIGHEST), None

    start = jnp.zeros((power.shape[0], number, power.shape[-1]), power.dtype)
    return jax.lax.scan(add, start, (jnp.moveaxis(power, 2, 0), h))[0]


@functools.partial(jax.jit, static_argnames=("box_size", "window"))
def spectra(
    a: Array,
    b: Array,
    box_size: tuple[float, float, float],
    window: str | None = None,
    weights: Array | None = None,
) -> tuple[Array, Array, Array]:
    """P_aa, P_bb and P_ab of the fluctuations of two fields [B, D, H, W, C].

    Each is [B, K, C], shells 1 ... K = N/2 - 1.

    window:  "cic" divides out the cloud-in-cell window that painted BOTH fields: each mode times
             prod_i (x_i / sin x_i)^2, x_i = pi k_i / (N_i kF) (Jing 2005, without the aliasing
             sum); None leaves them
    weights: [B or 1, D, H, W, 1], a mask or a taper: spectra of weights * (field - its weighted
             mean), over mean(weights^2)
    Agrees with Pylians' Pk and XPk.  Raises UserError for another window.
    """
    shape, known = a.shape[1:4], shells(a.shape[1:4], box_size)
    if window not in (None, "cic"):
        raise UserError(f"found window={window!r} for the power spectrum: expected None or 'cic'")
    f, g = (rfftn(_fluctuation(x, weights)) for x in (a, b))
    power = jnp.concatenate([_square(f), _square(g), f.real * g.real + f.imag * g.imag], axis=-1)
    if window == "cic":
        power = power * functools.reduce(
            jnp.multiply, (_cic(power, axis, shape[axis]) for axis in range(3))
        )
    cells = float(np.prod(shape))
    volume = np.prod([side for side, n in zip(box_size, shape) if n > 1])
    inside = slice(1, known.last + 1)
    scale = jnp.asarray(volume / cells**2 / (2 * known.modes[inside]), power.dtype)[:, None]
    p = shell_sums(power, shape, box_size, known.last + 1)[:, 1:] * scale
    if weights is not None:
        p = p / jnp.mean(jnp.square(masked.promote(weights)), axis=masked.AXES)[:, None]
    return tuple(jnp.split(p, 3, axis=-1))


def taper(shape: tuple[int, int, int], periodic: tuple[bool, bool, bool]) -> np.ndarray:
    """Hann window [1, D, H, W, 1] along the axes that do not wrap.

    Their ends would otherwise leak power to high k.
    """
    sides = [
        np.ones(n) if wraps or n == 1 else np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2
        for n, wraps in zip(shape, periodic)
    ]
    return np.einsum("d,h,w->dhw", *sides)[None, ..., None]


def transfer(p_pred: np.ndarray, p_true: np.ndarray) -> np.ndarray:
    """T(k) = sqrt(P_pred / P_true); NaN where the truth has no power."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p_true > 0, np.sqrt(p_pred / p_true), np.nan)


def cross_correlation(p_pred: np.ndarray, p_true: np.ndarray, p_cross: np.ndarray) -> np.ndarray:
    """r(k) = P_x / sqrt(P_pred P_true).

    0 where the prediction has no power, NaN where the truth has none.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(p_pred == 0, 0, p_cross / np.sqrt(p_pred * p_true))
    return np.where(p_true > 0, r, np.nan)


def _shortest(shape: tuple, box_size: tuple) -> float:
    """The shortest side; an axis of one cell has no modes and does not count."""
    return min((side for side, n in zip(box_size, shape) if n > 1), default=box_size[0])


def _scales(shape: tuple, box_size: tuple) -> list[float]:
    """The fundamental wavenumber of each axis over that of the shortest side."""
    return [_shortest(shape, box_size) / side for side in box_size]


def _wavenumbers(shape: tuple, box_size: tuple) -> list[np.ndarray]:
    """k / kF along D, H and the half axis W."""
    whole = [np.fft.fftfreq(n, 1 / n) for n in shape[:2]] + [
        np.fft.rfftfreq(shape[2], 1 / shape[2])
    ]
    return [k * scale for k, scale in zip(whole, _scales(shape, box_size))]


def _fourier_matrices(size: int, modes: int, dtype) -> tuple[Array, Array]:
    """cos and sin of 2 pi x k / size, [size, modes].

    The product x k is reduced modulo size first, to keep its digits.
    """
    angle = 2 * np.pi / size * (np.outer(np.arange(size), np.arange(modes)) % size)
    return jnp.asarray(np.cos(angle), dtype), jnp.asarray(np.sin(angle), dtype)


def _fluctuation(x: Array, weights: Array | None) -> Array:
    if weights is None:
        return masked.deviation(x)
    x = masked.fill(x, weights)
    weights = masked.promote(weights)
    mean = jnp.sum(x * weights, axis=masked.AXES, keepdims=True) / jnp.sum(
        weights, axis=masked.AXES, keepdims=True
    )
    return weights * jnp.where(masked.deviation(x, weights) == 0, 0, x - mean)


def _square(f: Array) -> Array:
    return f.real**2 + f.imag**2


def _cic(power: Array, axis: int, size: int) -> Array:
    """(x / sin x)^4 along one axis of the half spectrum.

    The inverse cloud-in-cell window of one field, squared.
    """
    frequency = np.fft.rfftfreq(size) if axis == 2 else np.fft.fftfreq(size)
    sides = [1] * 5
    sides[axis + 1] = len(frequency)
    return jnp.asarray(np.sinc(frequency) ** -4.0, power.dtype).reshape(sides)
