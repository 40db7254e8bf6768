"""One batch, over and over: whatever cannot learn two examples by heart cannot learn anything."""

from __future__ import annotations

import jax
import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.plots import figures
from jaxvol.types import Context, Result

RANK = 70
MEANING = {
    "explained": (
        "share of the target's variance that the model explains after training on one batch alone",
        "it cannot learn even this batch: look at gradients, structure and the learning rate "
        "(check lr_range)",
    ),
    "gain": (
        "share of the variance gained by that training",
        "the loss does not fall: look at gradients and the learning rate",
    ),
}
# metric -> (side, warn, fail), see jaxvol/config/limits.py
LIMITS = {
    "explained": (">", 0.15, 0.05),  # share of the variance
    "gain": (">", 0.15, 0.05),  # share of the variance
}


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """`preflight.steps` real updates on batch 0, scored with the raw weights on the same batch."""
    batch = ctx.batch(0)
    if "target" not in batch:
        return Result(skip="the batch has no 'target' to explain")
    state, history = probe.run(ctx, ctx.config.preflight.steps, lambda step: batch)
    target, mask = (
        np.asarray(batch["target"]),
        np.asarray(batch["mask"]) if "mask" in batch else None,
    )
    before, after = (
        probe.explained(
            np.asarray(jax.device_get(probe.predict(ctx)(*probe.pair(s, "raw"), batch))),
            target,
            mask,
        )
        for s in (ctx.state, state)
    )
    figure = figures.canvas(5.5, 3.4)
    panel = figure.subplots()
    for group, colour in zip(
        (g for g in ctx.state.params if f"{g}/loss" in history[0]), figures.COLOURS
    ):
        panel.plot([row[f"{group}/loss"] for row in history], color=colour, label=f"{group} loss")
    panel.set(
        xlabel="update on the same batch",
        ylabel="loss",
        yscale="log" if history[-1][next(iter(history[-1]))] > 0 else "linear",
    )
    panel.legend()
    return Result(
        {"explained": after, "gain": after - max(before, -1.0)},
        {
            "explained variance": [
                {"updates": 0, "explained": before},
                {"updates": len(history), "explained": after},
            ]
        },
        {"loss": figure},
    )
