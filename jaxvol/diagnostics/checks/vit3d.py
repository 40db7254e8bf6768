"""Patches and positions: a labelled volume comes back unpermuted, tokens know their place,
attention is neither flat nor stuck.
"""

from __future__ import annotations

import math

import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.ops import patches
from jaxvol.types import Context, Result

RANK = 44
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
        "attention costs the square of it: larger patches, or model.window",
    ),
    "local": (
        "share of the output's response to a changed patch that lies in that patch and its "
        "neighbours, over that of equal volumes",
        "the output does not follow the input's place: positions or skips are missing",
    ),
}
# metric -> (side, warn, fail), see jaxvol/config/limits.py
LIMITS = {
    "round_trip": ("<", 0.0, 0.0),  # voxels
    "displacement": ("<", 1.5, 3.0),  # voxels
    "local": (">", 0.9, 0.5),  # ratio of mean powers
    "tokens": ("<", 8192.0, 65536.0),  # tokens
}


def applies(config) -> bool:
    return config.model.name == "vit3d"


def diagnose(ctx: Context) -> Result:
    """The round trip of a numbered volume; the response to patches with the weights after the short
    run.
    """
    patch, shape = tuple(ctx.config.model.patch), ctx.spec.shape
    numbered = np.arange(math.prod(shape), dtype=np.float32).reshape(1, *shape, 1)
    back = np.asarray(patches.unpatchify(patches.patchify(numbered, patch), patch))
    order = np.asarray(patches.patchify(numbered, patch))[0, 0, 0, 0].reshape(patch)
    wrong = (back != numbered).sum() + (
        order != numbered[0, : patch[0], : patch[1], : patch[2], 0]
    ).sum()
    state, _ = probe.short_run(ctx)
    found = [response(ctx, state, seed, patch) for seed in range(4)]
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
        "displacement": float(np.abs(np.mean([o for o, _ in found], 0)).max()),
        "local": float(np.mean([s for _, s in found])),
        "tokens": float(tokens),
    }
    return Result(metrics, {"sequence": rows})


def response(
    ctx: Context, state, seed: int, patch: tuple[int, int, int]
) -> tuple[np.ndarray, float]:
    """(centroid of the squared response about the changed patch in voxels, its concentration on the
    patch and its neighbours).
    """
    rng = np.random.default_rng(seed)
    batch = ctx.batch(seed)
    shape = np.array(batch["input"].shape[1:4])
    corner = rng.integers(0, shape // np.array(patch)) * np.array(patch)
    inside = tuple(slice(c, c + p) for c, p in zip(corner, patch))
    params, extra = probe.pair(state, "raw")
    forward = probe.predict(ctx)
    change = [
        np.asarray(
            forward(params, extra, {**batch, "input": batch["input"].at[(0, *inside)].add(s)}),
            np.float64,
        )[0]
        for s in (1.0, -1.0)
    ]
    power = ((change[0] - change[1]) ** 2).sum(-1)
    middle = corner + (np.array(patch) - 1) / 2
    grids = np.meshgrid(
        *[(np.arange(n) - c + n / 2) % n - n / 2 for n, c in zip(shape, middle)], indexing="ij"
    )
    near = np.all([np.abs(g) <= 1.5 * p for g, p in zip(grids, patch)], 0)
    total = max(float(power[near].sum()), 1e-300)
    offset = np.array([float((power[near] * g[near]).sum()) / total for g in grids])
    return offset, float(power[near].mean() / max(power.mean(), 1e-300))
