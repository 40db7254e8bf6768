"""Losses: one value per example, [B], from (pred, target, mask=None) in normalised units.

pred and target are [B, D, H, W, C], mask is [B, D, H, W, 1], 1 = observed, or None: means are over
the observed voxels, and an example without any has loss 0.  Everything is computed in at least
float32, and ratios are finite for targets of any size that it holds.  A config names these
functions (`config.task.losses`); adding one here is all it takes, and less of a loss is always
better.  A loss may declare parameters named like fields of the spec (`spacing`, `periodic`);
jaxvol/scores/entries.py fills them in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxvol.ops import masked, spectra
from jaxvol.types import Array

# added to variances, and least mean square that a relative loss divides by; normalised fields are
# of order 1
EPS = 1e-8


def mse(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """Mean square error: mean (p - t)^2."""
    return _average(jnp.square(_difference(pred, target, mask)), mask)


def l1(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """Mean absolute error: mean |p - t|."""
    return _average(jnp.abs(_difference(pred, target, mask)), mask)


def huber(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """Mean of d^2 / 2 for |d| <= 1 and |d| - 1/2 beyond, d = p - t (Huber 1964)."""
    return _average(optax.huber_loss(_difference(pred, target, mask)), mask)


def log_cosh(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """Mean of log cosh(p - t): d^2 / 2 near 0, |d| - log 2 far away."""
    return _average(optax.log_cosh(_difference(pred, target, mask)), mask)


def relative_l2(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """||p - t|| / ||t|| over voxels and channels (Li et al. 2021, arXiv:2010.08895)."""
    t = masked.fill(target, mask)
    size = _size(masked.POOLED, t)
    top = _average(jnp.square(_difference(pred, target, mask) / size), mask)
    return _ratio(top, _average(jnp.square(t / size), mask), size)


def h1(
    pred: Array,
    target: Array,
    mask: Array | None = None,
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    periodic: tuple[bool, bool, bool] = (False, False, False),
) -> Array:
    """Relative Sobolev norm: sqrt((||d||^2 + ||grad d||^2) / (||t||^2 + ||grad t||^2)), d = p - t.

    Derivatives are central differences with the voxel size `spacing`; they wrap along periodic axes
    and are one-sided at the ends of the others, as in neuraloperator's H1Loss.  Axes of depth 1
    have none.  With a mask, a derivative counts where every voxel that it reads is observed.
    """
    t = masked.fill(target, mask)
    size = _size(masked.POOLED, t)
    top = _sobolev(_difference(pred, target, mask) / size, mask, spacing, periodic)
    return _ratio(top, _sobolev(t / size, mask, spacing, periodic), size)


def spectral_amplitude(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """Mean over all modes of (|F p| - |F t|)^2, blind to phases.

    F is the orthonormal 3D Fourier transform.  Missing voxels are 0 in both fields.  Source:
    shared/losses.py of mmingyeong/dm2ics_model_benchmark, whose hybrid loss is mse + alpha * this,
    alpha = 0.05.
    """
    shape = pred.shape[1:4]
    fields = [masked.fill(x, mask) for x in (pred, target)]
    size = jnp.maximum(*(masked.unit(x, masked.POOLED) for x in fields))
    amplitudes = [jnp.abs(spectra.rfftn(x / size)) for x in fields]
    power = jnp.square(amplitudes[0] - amplitudes[1]) * spectra.hermitian_weight(shape[2])[:, None]
    cells = float(shape[0] * shape[1] * shape[2])  # its square overflows an int32
    mean = jnp.mean(jnp.sum(power, axis=(1, 2, 3)), axis=-1) / cells**2
    return jnp.square(size[:, 0, 0, 0, 0]) * mean


def correlation(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """1 - Pearson's correlation of the voxel values, mean over channels.

    It is 0 for any p = a t + b with a > 0.
    """
    fields = [masked.fill(x, mask) for x in (pred, target)]
    sizes = [_size(masked.AXES, x) for x in fields]
    p, t = (x / size for x, size in zip(fields, sizes))
    _, covariance, var_pred, var_target = _second_moments(p, t, mask)
    eps_pred, eps_target = (_eps(size) for size in sizes)
    return jnp.mean(
        1 - covariance / jnp.sqrt((var_pred + eps_pred) * (var_target + eps_target)), axis=-1
    )


def ccc(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """1 - concordance, mean over channels (Lin 1989).

    concordance = 2 cov / (var p + var t + (mean p - mean t)^2)
    """
    fields = [masked.fill(x, mask) for x in (pred, target)]
    size = _size(masked.AXES, *fields)
    p, t = (x / size for x in fields)
    shift, covariance, var_pred, var_target = _second_moments(p, t, mask)
    eps = _eps(size)
    return jnp.mean(
        1 - (2 * covariance + eps) / (var_pred + var_target + jnp.square(shift) + eps), axis=-1
    )


def _difference(pred: Array, target: Array, mask: Array | None) -> Array:
    return masked.fill(masked.promote(pred) - masked.promote(target), mask)


def _average(x: Array, mask: Array | None) -> Array:
    return jnp.mean(masked.mean(x, mask), axis=-1)


def _size(axes: tuple[int, ...], *fields: Array) -> Array:
    """A power of two that large fields are divided by before they are squared, at least 1: `EPS`
    counts against the squares of what is smaller.
    """
    return functools.reduce(jnp.maximum, (masked.unit(x, axes) for x in fields), 1.0)


def _eps(size: Array) -> Array:
    """EPS beside squares of fields that were divided by `size`, [B, C]."""
    return (EPS / size / size)[:, 0, 0, 0]


def _ratio(top: Array, bottom: Array, size: Array) -> Array:
    """sqrt(top / bottom) with gradient 0, not NaN, at top = 0; both in units of size^2."""
    positive = top > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, top, 1)), 0) / jnp.sqrt(
        jnp.maximum(bottom, _eps(size)[:, 0])
    )


def _second_moments(
    pred: Array, target: Array, mask: Array | None
) -> tuple[Array, Array, Array, Array]:
    """mean p - mean t, covariance, var p, var t, each [B, C], with population normalisation."""
    means = [masked.mean(x, mask) for x in (pred, target)]
    p, t = (
        masked.fill(masked.promote(x) - m[:, None, None, None], mask)
        for x, m in zip((pred, target), means)
    )
    return (
        means[0] - means[1],
        masked.mean(p * t, mask),
        masked.mean(p * p, mask),
        masked.mean(t * t, mask),
    )


def _sobolev(x: Array, mask: Array | None, spacing: tuple, periodic: tuple) -> Array:
    """||x||^2 + ||grad x||^2, [B], as means over the voxels where each term is defined."""
    total = _average(jnp.square(x), mask)
    for axis, step, wraps in zip(masked.AXES, spacing, periodic):
        if x.shape[axis] > 1:
            slope = _combine(
                x,
                axis,
                wraps,
                lambda ahead, behind, cells, step=step: (ahead - behind) / (cells * step),
            )
            seen = (
                None
                if mask is None
                else _combine(mask, axis, wraps, lambda ahead, behind, cells: ahead * behind)
            )
            total += _average(jnp.square(slope), seen)
    return total


def _combine(x: Array, axis: int, wraps: bool, rule: Callable[[Array, Array, int], Array]) -> Array:
    """rule(next, previous, cells between them) along an axis.

    At an end that does not wrap, the voxel itself stands in for the neighbour that is missing.
    """
    n = x.shape[axis]
    if wraps:
        return rule(jnp.roll(x, -1, axis), jnp.roll(x, 1, axis), 2)

    def at(a: int, b: int) -> Array:
        return jax.lax.slice_in_dim(x, a, b, axis=axis)

    parts = [
        rule(at(1, 2), at(0, 1), 1),
        rule(at(2, n), at(0, n - 2), 2),
        rule(at(n - 1, n), at(n - 2, n - 1), 1),
    ]
    return jnp.concatenate(parts, axis)
