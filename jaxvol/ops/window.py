"""Sliding windows over volumes: tile positions, Gaussian weights and their weighted mean.

A volume too large for memory is predicted tile by tile; overlapping tiles are averaged with weights
that fall off towards the edges of a tile, where a network sees least context:

    y(x) = sum_i w(x - s_i) y_i(x - s_i) / sum_i w(x - s_i)

Positions and weights are those of MONAI's `sliding_window_inference` (Isensee et al. 2021, nnU-Net,
doi:10.1038/s41592-020-01008-z, for the weights); the periodic axes are ours.  Numpy on the host,
no learning.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np


def gaussian(tile: Sequence[int], sigma: float = 0.125) -> np.ndarray:
    """Weights exp(-sum_a x_a^2 / (2 (sigma n_a)^2)), [*tile] float64.

    x_a is measured from the middle of the tile.  They are bounded from below by max(smallest
    weight, 1e-3), so that a voxel which only corners cover is well defined.
    """
    axes = [np.exp(-0.5 * ((np.arange(n) - 0.5 * (n - 1)) / (sigma * n)) ** 2) for n in tile]
    weights = axes[0]
    for axis in axes[1:]:
        weights = weights[..., None] * axis
    return np.maximum(weights, max(weights.min(), 1e-3))


def starts(size: int, tile: int, overlap: float, wrap: bool = False) -> list[int]:
    """First voxel of every tile along one axis of `size` voxels.

    A step is int(tile (1 - overlap)), at least 1.  On an open axis the last tile is shifted back to
    end at `size`.  On a periodic axis (`wrap`) ceil(size / step) tiles are spread evenly round the
    ring and may run over its end. A tile that covers the axis is alone.
    """
    if tile < 1 or size < 1 or not 0 <= overlap < 1:
        raise ValueError(
            f"size {size} and tile {tile} must be positive, overlap {overlap} in [0, 1)"
        )
    if tile >= size:
        return [0]
    step = max(int(tile * (1 - overlap)), 1)
    if wrap:
        count = math.ceil(size / step)
        return [i * size // count for i in range(count)]
    count = math.ceil((size - tile) / step) + 1
    return [min(i * step, size - tile) for i in range(count)]


def positions(
    shape: Sequence[int], tile: Sequence[int], overlap: float, wrap: Sequence[bool]
) -> list[tuple[int, ...]]:
    """Corners of all tiles of a volume, the last axis fastest."""
    return list(
        itertools.product(*(starts(n, t, overlap, w) for n, t, w in zip(shape, tile, wrap)))
    )


def pad(
    x: np.ndarray, tile: Sequence[int], wrap: Sequence[bool]
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Extend axes that are shorter than the tile, equally on both sides.

    Also says where the volume lies in the result.  x: [D, H, W, C].  Periodic axes repeat, open
    axes get zeros (the mean, in normalised units).
    """
    missing = [max(t - n, 0) for n, t in zip(x.shape, tile)]
    before = [m // 2 for m in missing]
    inside = tuple(slice(b, b + n) for b, n in zip(before, x.shape))
    for axis, (m, b) in enumerate(zip(missing, before)):
        width = [(0, 0)] * x.ndim
        width[axis] = (b, m - b)
        x = np.pad(x, width, mode="wrap" if wrap[axis] else "constant") if m else x
    return x, inside


def sliding(
    function: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    tile: Sequence[int],
    overlap: float,
    wrap: Sequence[bool] = (False, False, False),
    weights: np.ndarray | None = None,
    track: Callable = iter,
) -> np.ndarray:
    """Weighted mean of `function` over the tiles of a volume.

    function: [*tile, C] -> [*tile, K], always called with this one shape x:        [D, H, W, C]
    weights:  [*tile], Gaussian when None track:    wraps the list of corners, for a progress bar
    Returns [D, H, W, K] in the type that `function` returns.  Sums are float64, so that a function
    of single voxels gives exactly what it gives on the whole volume.
    """
    tile = tuple(int(t) for t in tile)
    weights = gaussian(tile) if weights is None else np.asarray(weights, np.float64)
    corners = positions(x.shape[:3], tile, overlap, wrap)
    padded, inside = pad(x, tile, wrap)
    shape = padded.shape[:3]
    total, mass, kind = None, np.zeros(shape), None
    for corner in track(corners):
        at = np.ix_(*((s + np.arange(t)) % n for s, t, n in zip(corner, tile, shape)))
        y = np.asarray(function(padded[at]))
        if y.shape[:3] != tile:
            raise ValueError(
                f"a tile of shape {tile} was mapped to shape {y.shape[:3]}; tiling needs equal "
                "shapes"
            )
        if total is None:
            total, kind = np.zeros((*shape, y.shape[-1])), y.dtype
        total[at] += weights[..., None] * y
        mass[at] += weights
    return (total / mass[..., None])[inside].astype(kind)
