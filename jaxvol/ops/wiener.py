"""The best linear isotropic filter from one field to another: what a network has to beat.

    prediction = mean(t) + F^-1[ T(|k|) F(x - mean(x)) ]
    T(k) = <F x F x^*>^-1 <F x^* F t>   per shell of |k|

Means and <> are over training boxes.  With several channels T(k) is the matrix [C, K] that solves
the least squares problem.  Shell 0, the mean of a box, is a shell like the others, so that it also
predicts from one box to the next.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.ops import masked, spectra
from jaxvol.types import Array, UserError


class Moments(NamedTuple):
    """What a fit needs to know of n boxes with Z channels (inputs, then targets), in float64."""

    means: np.ndarray  # [n, Z] mean of each box over its observed voxels
    # [n, S, Z, Z] Re F z_i^* F z_j summed over the modes of a shell / cells^2; shell 0 unset
    power: np.ndarray
    k: np.ndarray  # [S] mean |k| of each shell; NaN if it has no modes


def measure(
    boxes: Iterable[tuple[Array, Array | None, np.ndarray]], spacing: tuple[float, float, float]
) -> Moments:
    """The moments of batches (z [B, D, H, W, Z], mask, which examples are real [B]).

    Missing voxels count as their box's mean.
    spacing: size of a voxel along D, H, W.  Raises UserError when there is no box.
    """
    means, power, k = [], [], None
    for z, mask, real in boxes:
        mean, cross = _measure(jnp.asarray(z), mask, spacing)
        means.append(np.asarray(mean, np.float64)[real])
        power.append(np.asarray(cross, np.float64)[real])
        k = spectra.shells(z.shape[1:4], _box_size(z, spacing)).k
    if not sum(map(len, means)):
        raise UserError(
            "found no training example to fit the baselines on: expected at least one in the split "
            "'train'"
        )
    return Moments(np.concatenate(means), np.concatenate(power), k)


def fit(moments: Moments, inputs: slice, targets: slice) -> tuple[dict[str, np.ndarray], float]:
    """(filter, its VRMSE on the boxes it was fitted on) from some channels to others.

    The filter is {"k": [S], "transfer": [S, C, K], "input_mean": [C], "target_mean": [K]}, float32.
    The VRMSE takes T as constant within a shell and skips boxes whose target is constant.
    """
    mean = moments.means.mean(0)
    power = moments.power.copy()
    power[:, 0] = np.einsum("ni,nj->nij", moments.means - mean, moments.means - mean)
    xx, xt, tt = (
        power[:, :, inputs, inputs],
        power[:, :, inputs, targets],
        power[:, :, targets, targets],
    )
    transfer = _solve(xx.sum(0), xt.sum(0))
    error = np.einsum("nsjj->nj", tt) - 2 * np.einsum("nsij,sij->nj", xt, transfer)
    error += np.einsum("nsil,sij,slj->nj", xx, transfer, transfer)
    variance = np.einsum("nsjj->nj", tt[:, 1:])
    with np.errstate(divide="ignore", invalid="ignore"):
        vrmse = np.sqrt(np.where(variance > 0, np.maximum(error, 0) / variance, np.nan))
    has_modes = np.isfinite(moments.k)
    fitted = {
        "k": moments.k[has_modes],
        "transfer": transfer[has_modes],
        "input_mean": mean[inputs],
        "target_mean": mean[targets],
    }
    return {name: value.astype(np.float32) for name, value in fitted.items()}, float(
        np.nanmean(vrmse)
    )


def apply(
    fitted: dict[str, Array], x: Array, mask: Array | None, spacing: tuple[float, float, float]
) -> Array:
    """The prediction [B, D, H, W, K] from x [B, D, H, W, C].

    T(k) is interpolated linearly in |k| between shells.
    """
    shape = x.shape[1:4]
    x = masked.fill(x, mask, masked.mean(x, mask)[:, None, None, None])
    k = spectra.wavenumber(shape, _box_size(x, spacing))
    table = fitted["transfer"].reshape(len(fitted["k"]), -1)
    smooth = jax.vmap(lambda column: jnp.interp(k, fitted["k"][1:], column[1:]), 1, -1)(table)
    filter_ = jnp.where(k[..., None] == 0, table[0], smooth).reshape(
        *k.shape, *fitted["transfer"].shape[1:]
    )
    modes = jnp.einsum(
        "bdhwc,dhwck->bdhwk", spectra.rfftn(x - fitted["input_mean"]), filter_.astype(x.dtype)
    )
    return jnp.fft.irfftn(modes, shape, axes=masked.AXES) + fitted["target_mean"]


@functools.partial(jax.jit, static_argnames="spacing")
def _measure(
    z: Array, mask: Array | None, spacing: tuple[float, float, float]
) -> tuple[Array, Array]:
    shape, channels, box_size = z.shape[1:4], z.shape[-1], _box_size(z, spacing)
    modes = spectra.rfftn(masked.deviation(z, mask))
    pairs = modes[..., :, None] * jnp.conj(modes[..., None, :])
    sums = spectra.shell_sums(
        pairs.real.reshape(*modes.shape[:-1], -1),
        shape,
        box_size,
        len(spectra.shells(shape, box_size).k),
    )
    return masked.mean(z, mask), sums.reshape(*sums.shape[:2], channels, channels) / float(
        np.prod(shape)
    ) ** 2


def _box_size(x: Array, spacing: tuple[float, float, float]) -> tuple[float, float, float]:
    return tuple(n * s for n, s in zip(x.shape[1:4], spacing))


def _solve(xx: np.ndarray, xt: np.ndarray) -> np.ndarray:
    """xx^-1 xt per shell, after scaling channels to unit power; 0 for a channel without any."""
    scale = np.sqrt(np.einsum("sii->si", xx))
    scale = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    inverse = np.linalg.pinv(xx * scale[:, :, None] * scale[:, None, :], rcond=1e-6, hermitian=True)
    return scale[:, :, None] * (inverse @ (scale[:, :, None] * xt))
