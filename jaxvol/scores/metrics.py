"""Metrics: one value per example, [B], from (pred, target, mask=None) in physical units.

pred and target are [B, D, H, W, C], mask is [B, D, H, W, 1], 1 = observed, or None; only observed
voxels count.  A value that is not defined (a constant target, no observed voxel) is NaN, never a
made-up number and never infinite.  Channels: rmse, mae, mape and relative_l2 pool them, the others
average over them.  Units may be any that float32 holds: what is squared is first divided by a
power of two of its own size (`masked.unit`).

A config names these functions in `config.task.metrics`.  Adding one here is all it takes: the
function, and below it `direction`, "higher" or "lower", for what is better.  The order of this file
is that of the columns of tables; sentences are about those that have a `headline`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.ops import masked
from jaxvol.types import Array

# SSIM window: Gaussian of 1.5 voxels cut at int(3.5 * 1.5 + 0.5) = 5, 11 voxels wide
SIGMA, RADIUS = 1.5, 5
FAR = 2.0**25  # predictions that are this much larger than the target are all equally unlike it
K1, K2 = 0.01, 0.03  # SSIM's stabilising constants, as fractions of the data range

# What summaries report beside these functions (jaxvol/tasks/scoring.py, physics.py).
SUMMARIES = {
    "r_eighth": "higher",  # r(k) at an eighth, a quarter and half of the Nyquist frequency
    "r_quarter": "higher",
    "r_half": "higher",
    "transfer_error": "lower",  # mean |T(k) - 1| above half of it
    "loss": "lower",  # and its terms, loss_<term>
}


def vrmse(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """sqrt(mean (p - t)^2 / var t), var that of this box: 1 = its own mean (Ohana et al. 2024)."""
    error = _root_mean_square(_difference(pred, target, mask), mask)
    spread = _root_mean_square(masked.deviation(target, mask), mask)
    return jnp.mean(error / _positive(spread), axis=-1)


vrmse.direction = "lower"
vrmse.headline = "VRMSE"


def relative_l2(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """||p - t|| / ||t||; NaN for a target that is 0 everywhere."""
    norm = _root_mean_square(masked.fill(target, mask), mask, masked.POOLED)[:, 0]
    return rmse(pred, target, mask) / _positive(norm)


relative_l2.direction = "lower"
relative_l2.headline = "relative L2"


def rmse(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """sqrt(mean (p - t)^2), in the target's unit."""
    return _root_mean_square(_difference(pred, target, mask), mask, masked.POOLED)[:, 0]


rmse.direction = "lower"


def mae(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """mean |p - t|, in the target's unit."""
    error = jnp.abs(_difference(pred, target, mask))
    size = masked.unit(error, masked.POOLED)  # a sum of large numbers would be infinite
    return size[:, 0, 0, 0, 0] * jnp.mean(masked.mean(error / size, mask, jnp.nan), axis=-1)


mae.direction = "lower"


def mape(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """100 mean |p - t| / max(|t|, s) in per cent, s = a hundredth of max |t|.

    Near t = 0 the error counts relative to s, or one voxel would decide.  NaN for a target that is
    0 everywhere.
    """
    size = jnp.abs(masked.fill(target, mask))
    floor = _positive(jnp.max(size, axis=(1, 2, 3, 4), keepdims=True)) / 100
    return 100 * jnp.mean(
        masked.mean(
            jnp.abs(_difference(pred, target, mask)) / jnp.maximum(size, floor), mask, jnp.nan
        ),
        axis=-1,
    )


mape.direction = "lower"


def pearson(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """Correlation of the voxel values; 0 for a constant prediction, NaN for a constant target."""
    deviations = (masked.deviation(x, mask) for x in (pred, target))
    p, t = (x / masked.unit(x) for x in deviations)
    covariance = masked.mean(p * t, mask, jnp.nan)
    var_pred, var_target = (masked.mean(jnp.square(x), mask, jnp.nan) for x in (p, t))
    var_pred = jnp.where(var_pred == 0, 1, var_pred)
    return jnp.mean(covariance / jnp.sqrt(var_pred) / jnp.sqrt(_positive(var_target)), axis=-1)


pearson.direction = "higher"


def ssim(
    pred: Array, target: Array, mask: Array | None = None, data_range: float | None = None
) -> Array:
    """Mean structural similarity, Gaussian window, in 3D, or in 2D when D = 1 (Wang et al. 2004).

        SSIM = (2 m_p m_t + c1) (2 cov + c2) / ((m_p^2 + m_t^2 + c1) (var_p + var_t + c2))
        c_i = (K_i range)^2

    The moments are local means under a Gaussian of 1.5 voxels, 11 wide, averaged over the voxels at
    least 5 from every face: the same as skimage.metrics.structural_similarity with
    gaussian_weights=True, sigma=1.5 and use_sample_covariance=False.  range = max - min of the
    target's observed voxels unless given.  When an axis is shorter than 11 voxels, the largest odd
    window that fits the shortest axis is used for all (D = 1 apart).  With a mask, the local
    moments are those of the observed voxels, and the average is over windows centred on one.
    """
    size = masked.unit(jnp.maximum(jnp.abs(masked.fill(target, mask)), data_range or 0))
    span = jnp.square(_data_range(target, mask, data_range)[:, None, None, None] / size)
    p, t = (masked.fill(x, mask) / size for x in (pred, target))
    p = jnp.where(jnp.isfinite(p), jnp.clip(p, -FAR, FAR), p)
    # variances of large numbers would cancel
    centre = masked.mean(t, mask)[:, None, None, None]
    p, t = (masked.fill(x - centre, mask) for x in (p, t))
    axes = [axis for axis in masked.AXES if target.shape[axis] > 1]
    radius = min([RADIUS, *((target.shape[axis] - 1) // 2 for axis in axes)])

    def local(x: Array) -> Array:
        return functools.reduce(lambda y, axis: _smooth(y, axis, radius), axes, x)

    share, inside = 1, None
    if mask is not None:
        share = local(masked.promote(mask > 0))
        crop = tuple(
            slice(radius, n - radius) if axis in axes else slice(None)
            for axis, n in enumerate(mask.shape)
        )
        inside = mask[crop]
        share = jnp.where(share > 0, share, 1)
    m_p, m_t, pp, tt, pt = (local(x) / share for x in (p, t, p * p, t * t, p * t))
    var_p, var_t, covariance = pp - m_p * m_p, tt - m_t * m_t, pt - m_p * m_t
    m_p, m_t = m_p + centre, m_t + centre
    c1, c2 = K1**2 * span, K2**2 * span
    similarity = ((2 * m_p * m_t + c1) * (2 * covariance + c2)) / (
        (m_p * m_p + m_t * m_t + c1) * (var_p + var_t + c2)
    )
    return jnp.mean(masked.mean(similarity, inside, jnp.nan), axis=-1)


ssim.direction = "higher"


def psnr(
    pred: Array, target: Array, mask: Array | None = None, data_range: float | None = None
) -> Array:
    """20 log10(range / sqrt(mean (p - t)^2)) in dB; NaN where p = t everywhere.

    range = max - min of the target's observed voxels unless given as `data_range`.
    """
    span = _data_range(target, mask, data_range)
    error = _root_mean_square(_difference(pred, target, mask), mask)
    return jnp.mean(20 * jnp.log10(span / _positive(error)), axis=-1)


psnr.direction = "higher"


def pdf_distance(pred: Array, target: Array, mask: Array | None = None) -> Array:
    """Wasserstein-1 distance of the distributions of voxel values, in the target's unit.

    mean |sort(p) - sort(t)|
    """
    # Both fields miss the same voxels, which +inf sorts to the end.
    p, t = (
        jnp.sort(masked.fill(x, mask, jnp.inf).reshape(x.shape[0], -1, x.shape[-1]), axis=1)
        for x in (pred, target)
    )
    n = masked.count(target, mask)
    seen = (jnp.arange(p.shape[1]) < n)[..., None]
    gaps = jnp.where(seen, jnp.abs(jnp.where(seen, p, 0) - jnp.where(seen, t, 0)), 0)
    size = masked.unit(gaps, (1,))
    return jnp.mean(size[:, 0] * (jnp.sum(gaps / size, axis=1) / _positive(n)), axis=-1)


pdf_distance.direction = "lower"


def _smooth(x: Array, axis: int, radius: int) -> Array:
    """Gaussian mean along one axis of [B, D, H, W, C], only where the window fits.

    It is computed as a product with a banded matrix.
    """
    n = x.shape[axis]
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SIGMA) ** 2)
    weights /= weights.sum()
    matrix = sum(weight * np.eye(n - 2 * radius, n, shift) for shift, weight in enumerate(weights))
    rule = {1: "bdhwc,kd->bkhwc", 2: "bdhwc,kh->bdkwc", 3: "bdhwc,kw->bdhkc"}[axis]
    return jnp.einsum(rule, x, jnp.asarray(matrix, x.dtype), precision=jax.lax.Precision.HIGHEST)


def _difference(pred: Array, target: Array, mask: Array | None) -> Array:
    return masked.fill(masked.promote(pred) - masked.promote(target), mask)


def _root_mean_square(x: Array, mask: Array | None, axes: tuple[int, ...] = masked.AXES) -> Array:
    """sqrt(mean x^2) over `axes`, [B, C], or [B, 1] over channels as well; x is 0 where missing."""
    size = masked.unit(x, axes)
    mean = masked.mean(jnp.square(x / size), mask, jnp.nan)
    mean = jnp.mean(mean, axis=-1, keepdims=True) if axes == masked.POOLED else mean
    return size[:, 0, 0, 0] * jnp.sqrt(mean)


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, jnp.nan)


def _data_range(target: Array, mask: Array | None, data_range: float | None) -> Array:
    """[B, C]; NaN for a target that is constant up to rounding."""
    if data_range is not None:
        return jnp.full(
            (target.shape[0], target.shape[-1]), data_range, masked.promote(target[:1]).dtype
        )
    high = jnp.max(masked.fill(target, mask, -jnp.inf), axis=masked.AXES)
    span = high - jnp.min(masked.fill(target, mask, jnp.inf), axis=masked.AXES)
    varies = jnp.any(masked.deviation(target, mask) != 0, axis=masked.AXES)
    return jnp.where(varies, span, jnp.nan)
