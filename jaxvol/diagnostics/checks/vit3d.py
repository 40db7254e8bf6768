"""Patches and positions: a numbered volume comes back unpermuted, the output follows the place of
the input, and the sequence is not too long.
"""

from __future__ import annotations

import math

import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.ops import patches
from jaxvol.training import averages
from jaxvol.types import Result

RANK = 44
NEEDS = ("volumes",)
MEANING = {
    "round_trip": (
        "voxels that come back from patches at another place",
        "the reassembly permutes patches or the voxels within them",
    ),
    "displacement": (
        "voxels between a change of the input in one patch and the middle of the output's response",
        "patches come back at other places, or mirrored",
    ),
    "tokens": (
        "tokens of a volume",
        "attention costs the square of their number: larger patches, or model.window",
    ),
    "local": (
        "mean power of the output's response to a changed patch, in that patch and its neighbours "
        "over that in the whole volume",
        "the output does not follow the place of the input: positions or skips are missing",
    ),
}
LIMITS = {
    "round_trip": ("<", 0.0, 0.0),  # voxels
    "displacement": ("<", 1.5, 3.0),  # voxels
    "tokens": ("<", 8192.0, 65536.0),  # tokens
    "local": (">", 0.9, 0.5),  # ratio of mean powers
}


def applies(config) -> bool:
    return config.model.name == "vit3d"


def diagnose(ctx: Context) -> Result:
    """The round trip of a numbered volume, and the response to patches with the weights after the
    short run.
    """
    patch, shape = tuple(ctx.config.model.patch), ctx.spec.shape
    numbered = np.arange(math.prod(shape), dtype=np.float32).reshape(1, *shape, 1)
    back = np.asarray(patches.unpatchify(patches.patchify(numbered, patch), patch))
    order = np.asarray(patches.patchify(numbered, patch))[0, 0, 0, 0].reshape(patch)
    wrong = (back != numbered).sum() + (
        order != numbered[0, : patch[0], : patch[1], : patch[2], 0]
    ).sum()
    state, _ = probe.short_run(ctx)
    offsets, shares = zip(*(response(ctx, state, seed, patch) for seed in range(4)))
    tokens = math.prod(n // p for n, p in zip(shape, patch))
    heads = ctx.config.model.heads
    rows = [
        {
            "tokens": tokens,
            "attention of one example and block (MB, float32)": 4e-6 * heads * tokens**2,
            "window": ctx.config.model.window or "all tokens",
        }
    ]
    metrics = {
        "round_trip": float(wrong),
        "displacement": float(np.abs(np.mean(offsets, 0)).max()),
        "local": float(np.mean(shares)),
        "tokens": float(tokens),
    }
    return Result(metrics, {"sequence": rows})


def response(
    ctx: Context, state, seed: int, patch: tuple[int, int, int]
) -> tuple[np.ndarray, float]:
    """(centroid of the squared response about the changed patch in voxels, mean power in the patch
    and its neighbours over that in the whole volume).
    """
    rng = np.random.default_rng(seed)
    batch = ctx.batch(seed)
    shape = np.array(batch["input"].shape[1:4])
    corner = rng.integers(0, shape // np.array(patch)) * np.array(patch)
    inside = tuple(slice(c, c + p) for c, p in zip(corner, patch))
    weights, x = averages.weights_of(state, "raw"), batch["input"]
    more, less = (
        probe.prediction(ctx, weights, {**batch, "input": x.at[(0, *inside)].add(s)})[0]
        for s in (1.0, -1.0)
    )
    power = ((more - less) ** 2).sum(-1)
    middle = corner + (np.array(patch) - 1) / 2
    grids = np.meshgrid(
        *[(np.arange(n) - c + n / 2) % n - n / 2 for n, c in zip(shape, middle)], indexing="ij"
    )
    near = np.all([np.abs(g) <= 1.5 * p for g, p in zip(grids, patch)], 0)
    total = max(float(power[near].sum()), 1e-300)
    offset = np.array([float((power[near] * g[near]).sum()) / total for g in grids])
    return offset, float(power[near].mean() / max(power.mean(), 1e-300))
