"""Tiled prediction of large volumes: a tiled identity gives the volume back, every voxel is
covered, tiles agree with the whole.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.ops import window
from jaxvol.training import averages
from jaxvol.types import Result

RANK = 56
NEEDS = ("volumes",)
OVERLAP = 0.5
MEANING = {
    "identity": (
        "error of a tiled identity, relative",
        "tiles are cut, placed or weighted wrongly: predictions of large volumes are wrong",
    ),
    "uncovered": ("voxels that no tile covers", "raise predict.overlap, or change predict.tile"),
    "smallest_weight": (
        "smallest weight of a tile's voxels",
        "a weight is zero or negative: corners would be divided by zero",
    ),
    "moved": (
        "error of tiling a function that only sees its own voxel, relative to its variation",
        "tiles come back at another place than they were cut from",
    ),
}
LIMITS = {
    "identity": ("<", 1e-6, 1e-5),  # relative
    "uncovered": ("<", 0.0, 0.0),  # voxels
    "smallest_weight": (">", 1e-4, 1e-12),  # weight; the largest is 1
    "moved": ("<", 1e-6, 1e-3),  # relative
}


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """A training input in tiles of `config.predict`, or of half its size where it names none."""
    x = np.asarray(ctx.batch(0)["input"])[0].astype(np.float64)
    tile, overlap = tuple(ctx.config.predict.tile), ctx.config.predict.overlap
    if not tile:
        tile, overlap = tuple(max(n // 2, 1) for n in x.shape[:3]), OVERLAP
    wrap = ctx.spec.wrap
    same = window.sliding(lambda v: v, x, tile, overlap, wrap)
    bent = window.sliding(np.tanh, x, tile, overlap, wrap)
    covered = np.zeros(x.shape[:3], bool)
    for corner in window.positions(x.shape[:3], tile, overlap, wrap):
        at = np.ix_(
            *[
                np.arange(c, c + t) % n if w else np.arange(c, min(c + t, n))
                for c, t, n, w in zip(corner, tile, x.shape, wrap)
            ]
        )
        covered[at] = True
    size = max(float(np.abs(x).max()), 1e-30)
    metrics = {
        "identity": float(np.abs(same - x).max()) / size,
        "uncovered": float((~covered).sum()),
        "smallest_weight": float(window.gaussian(tile).min()),
        "moved": float(np.abs(bent - np.tanh(x)).max() / max(np.tanh(x).std(), 1e-30)),
    }
    tables = {}
    if agreement := compare(ctx, x, tile, overlap):
        tables["tiles against the whole volume"] = agreement
    return Result(metrics, tables)


def compare(ctx: Context, x: np.ndarray, tile: tuple[int, ...], overlap: float) -> list[dict]:
    """Tiled and whole prediction, for the table alone: they differ by the context that tiles lack,
    which has no limit.
    """
    weights = averages.weights_of(ctx.state, "raw")

    def predict(v: np.ndarray) -> np.ndarray:
        return probe.prediction(ctx, weights, {"input": jnp.asarray(v[None], jnp.float32)})[0]

    try:
        whole = predict(x)
        tiled = window.sliding(predict, x.astype(np.float32), tile, overlap, ctx.spec.wrap)
    # a model may not take a volume of the tile's size: that is worth a line, not an alarm
    except Exception as error:
        why = str(error).splitlines()[0][:200]
        return [{"tile": str(tile), "difference": "not predicted", "why": why}]
    difference = float(np.sqrt(((tiled - whole) ** 2).mean()) / max(whole.std(), 1e-12))
    why = "relative to the variation of the whole prediction"
    return [{"tile": str(tile), "difference": difference, "why": why}]
