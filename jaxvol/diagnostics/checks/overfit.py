"""One batch, over and over: whatever cannot learn two examples by heart cannot learn anything."""

from __future__ import annotations

import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.plots import figures
from jaxvol.training import averages
from jaxvol.types import Result

RANK = 70
NEEDS = ("paired",)
MEANING = {
    "explained": (
        "share of the target's variance that the model explains after training on one batch alone",
        "it cannot learn even this batch: look at gradients, structure and the learning rate "
        "(check lr_range)",
    ),
    "gain": (
        "share of the target's variance by which training on one batch alone improves on the start",
        "the loss does not fall: look at gradients and the learning rate",
    ),
}
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
    target, mask = np.asarray(batch["target"]), batch["mask"] if "mask" in batch else None
    before, after = (
        probe.explained(probe.prediction(ctx, averages.weights_of(s, "raw"), batch), target, mask)
        for s in (ctx.state, state)
    )
    return Result(
        {"explained": after, "gain": after - max(before, -1.0)},
        {
            "explained variance": [
                {"updates": 0, "explained": before},
                {"updates": len(history), "explained": after},
            ]
        },
        {"loss": draw(history, [g for g in ctx.state.params if f"{g}/loss" in history[0]])},
    )


def draw(history: list[dict], groups: list[str]):
    """The loss of each group over the updates."""
    figure = figures.canvas(5.5, 3.4)
    panel = figure.subplots()
    losses = {group: [row[f"{group}/loss"] for row in history] for group in groups}
    for (group, values), colour in zip(losses.items(), figures.COLOURS):
        panel.plot(values, color=colour, label=f"{group} loss")
    positive = all(values[-1] > 0 for values in losses.values())
    panel.set(
        xlabel="update on the same batch", ylabel="loss", yscale="log" if positive else "linear"
    )
    panel.legend()
    return figure
