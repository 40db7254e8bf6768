"""Encoder and decoder meet where they parted: features of the coarse grids come back to their
place; and running statistics move.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.training import averages
from jaxvol.types import Result

RANK = 42
NEEDS = ("volumes",)
POINTS = 4
MEANING = {
    "displacement": (
        "voxels between a change of the input and the middle of the response through the coarse "
        "grids, mean over places",
        "up-sampled features and skips do not meet: one-sided crop or padding",
    ),
    "strided_displacement": (
        "voxels between a change of the input and the middle of the response through the coarse "
        "grids, where convolutions of stride 2 move each grid by half a voxel of the finer one",
        "up-sampled features and skips are further apart than the published layout explains; "
        "layout='residual' has no such shift",
    ),
    "stats_moved": (
        "smallest change of a running mean or variance over the first updates",
        "running mean and variance stay at their initial values: evaluation normalises with the "
        "wrong numbers",
    ),
}
LIMITS = {
    "displacement": ("<", 0.05, 0.25),  # voxels
    "strided_displacement": ("<", 1.5, 3.0),  # voxels
    "stats_moved": (">", 1e-4, 1e-7),  # absolute
}


def applies(config) -> bool:
    return config.model.name in ("vnet", "pix2pixcc")


def diagnose(ctx: Context) -> Result:
    """Responses to single voxels that come through the coarse grids, with the weights of the start;
    running statistics after the short run.
    """
    state, _ = probe.short_run(ctx)
    metrics, table = {}, []
    coarse = first_coarse(ctx)
    if min(ctx.spec.shape) >= 8 and coarse:
        forward = probe.gated(ctx, [coarse], often=True)
        mean = np.mean([offset(ctx, forward, seed) for seed in range(POINTS)], 0)
        centred = ctx.config.model.name == "vnet" and ctx.config.model.layout == "residual"
        metrics["displacement" if centred else "strided_displacement"] = float(np.abs(mean).max())
        table = [
            {"axis": axis, "mean displacement (voxels)": value} for axis, value in zip("DHW", mean)
        ]
    before, after = (running(s) for s in (ctx.state, state))
    if before:
        metrics["stats_moved"] = min(
            float(jnp.abs(after[path] - before[path]).max()) for path in before
        )
    if not metrics:
        return Result(skip="the network has no coarser grid to look at and no running statistics")
    return Result(metrics, {"response to single voxels": table})


def first_coarse(ctx: Context) -> tuple[str, ...] | None:
    """Path of the first submodule whose output has fewer voxels along an axis than its input, or
    None; whatever is coarser comes through it.
    """
    return next(
        (
            path
            for path, (given, gives) in probe.shapes(ctx).items()
            if len(given) == len(gives) == 5 and any(m < n for m, n in zip(gives[1:4], given[1:4]))
        ),
        None,
    )


def running(state) -> dict:
    """Running means and variances by path."""
    return {
        path: leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.extra["stats"])
        if path[-1].key in ("mean", "var")
    }


def offset(ctx: Context, forward, seed: int) -> np.ndarray:
    """Displacement of the response around a random inner voxel, in voxels along D, H, W.

    Measured twice: with the weights, and in a mirror, with mirrored kernels, input and voxel.  What
    single kernels prefer is opposite in the two and drops out of their mean; a network that
    displaces features does so in both.
    """
    batch, (params, extra) = ctx.batch(seed), averages.weights_of(ctx.state, "raw")
    shape = np.array(batch["input"].shape[1:4])
    at = np.random.default_rng(seed).integers(shape // 4, shape - shape // 4)
    mirrored = jax.tree.map(lambda p: jnp.flip(p, (0, 1, 2)) if p.ndim == 5 else p, params)
    turned = {**batch, "input": jnp.flip(batch["input"], (1, 2, 3))}
    return (
        centroid(ctx, forward, params, extra, batch, at)
        + centroid(ctx, forward, mirrored, extra, turned, shape - 1 - at)
    ) / 2


def centroid(ctx: Context, forward, params, extra, batch, at: np.ndarray) -> np.ndarray:
    """Centroid of the squared response to a change of the voxel `at`, relative to it; of the
    response only what the coarse grids add.
    """
    x, shape = batch["input"], batch["input"].shape[1:4]

    def response(gate: float) -> np.ndarray:
        more, less = (
            np.asarray(
                forward(
                    params,
                    extra,
                    {**batch, "input": x.at[(slice(None), *at)].add(s)},
                    jnp.full(1, gate),
                ),
                np.float64,
            )
            for s in (1.0, -1.0)
        )
        return more - less

    change = response(1.0) - response(0.0)
    power = (change**2).sum((0, -1))
    grids = np.meshgrid(
        *[
            (np.arange(n) - c + n // 2) % n - n // 2 if wraps else np.arange(n) - c
            for n, c, wraps in zip(shape, at, ctx.spec.periodic)
        ],
        indexing="ij",
    )
    near = np.all([np.abs(g) <= 6 for g in grids], 0)
    total = max(float(power[near].sum()), 1e-300)
    return np.array([float((power[near] * g[near]).sum()) / total for g in grids])
