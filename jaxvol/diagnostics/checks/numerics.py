"""Precision and first values: bfloat16 against float32, float32 against float64, and the loss at
the start against that of the mean and against its definition.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.training import averages
from jaxvol.types import Result

RANK = 45
NEEDS = ("paired",)
MEANING = {
    "bf16": (
        "difference between the predictions in bfloat16 and float32, relative to their variation",
        "something is summed or normalised in bfloat16: it has to be float32",
    ),
    "f64": (
        "difference between the predictions in float32 and float64, relative to their variation",
        "cancellation in float32: look for differences of large numbers",
    ),
    "start_loss": (
        "loss at the start as a multiple of the loss of predicting the mean",
        "the first predictions are far too large, and many updates go into undoing them: scale the "
        "last layer down",
    ),
    "loss_error": (
        "difference between the loss that the first update reports and that of its prediction, "
        "relative",
        "the loss is averaged over the wrong number of voxels, examples or devices, or is another "
        "one than its name says",
    ),
    "not_finite": (
        "1 if the first update, of weights that nothing has moved yet, is refused because "
        "something is not finite, else 0",
        "the message of the run names the tensors: look at normalisers, masks, divisions and roots "
        "in the loss",
    ),
}
LIMITS = {
    "bf16": ("<", 0.1, 0.5),  # relative
    "f64": ("<", 1e-3, 0.05),  # relative
    "start_loss": ("<", 5.0, 100.0),  # multiple of the mean predictor's loss
    "loss_error": ("<", 1e-3, 0.02),  # relative
    "not_finite": ("<", 0.0, 0.0),  # 1 or 0
}


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """Forward passes of the same parameters in other precisions; the losses that the first update
    reports.
    """
    batch = probe.unmarked(ctx.put(probe.examples(ctx)))
    if "target" not in batch:
        return Result(skip="the batch has no 'target'")
    weights = averages.weights_of(ctx.state, "raw")
    y = probe.prediction(ctx, weights, batch)
    scale = max(float(y.std()), 1e-12)
    metrics, precision = {}, ctx.config.precision
    for other in {"f32": ("bf16", "f64"), "bf16": ("f32",), "f64": ()}[precision]:
        name = "bf16" if "bf16" in (precision, other) else "f64"
        difference = cast(ctx, other, *weights, batch) - y
        metrics[name] = float(np.sqrt((difference**2).mean())) / scale
    _, history = probe.short_run(ctx)
    metrics["start_loss"] = start_loss(ctx, history[0])
    if (error := loss_error(ctx, history[0])) is not None:
        metrics["loss_error"] = error
    metrics["not_finite"] = float(any(not np.isfinite(v) for v in history[0].values()))
    return Result(metrics)


def cast(ctx: Context, precision: str, params, extra, batch) -> np.ndarray:
    """The prediction of the same weights by the task of another precision."""
    task = ctx.rebuild_task({"precision": precision})
    forward = jax.jit(task.predict, compiler_options=probe.quick())
    if precision != "f64":
        return np.asarray(forward(params, extra, batch), np.float64)

    def wide(v) -> np.ndarray:
        return np.asarray(v, np.float64 if jnp.issubdtype(v.dtype, jnp.floating) else None)

    with jax.enable_x64(True):
        return np.asarray(forward(*jax.tree.map(wide, (params, extra, batch))))


def start_loss(ctx: Context, first: dict[str, float]) -> float:
    """The first update's squared error over that of the mean of the target; 1 where there is no
    such term.
    """
    group, weights = probe.learner(ctx), probe.loss_weights(ctx)
    if "mse" not in weights or weights["mse"] == 0 or f"{group}/mse" not in first:
        return 1.0
    target = np.asarray(ctx.batch(0)["target"], np.float64)
    return first[f"{group}/mse"] / max(weights["mse"] * float(target.var()), 1e-30)


def loss_error(ctx: Context, first: dict[str, float]) -> float | None:
    """Relative difference between the first update's squared and absolute error and those of its
    prediction by numpy; None where they may differ.

    They may where the model is another one while it trains (dropout, batch statistics), and with
    masks or several resolutions.
    """
    group, batch = probe.learner(ctx), ctx.batch(0)
    random = [name for name in ctx.config.model if "dropout" in name and ctx.config.model[name] > 0]
    if random or jax.tree.leaves(stats_of(ctx, group)) or "mask" in batch or "target" not in batch:
        return None
    weights = probe.loss_weights(ctx)
    if not {"mse", "l1"} & set(weights) or tuple(ctx.config.task.resolutions) != (1,):
        return None
    y = probe.prediction(ctx, averages.weights_of(ctx.state, "raw"), batch)
    residual = y - np.asarray(batch["target"], np.float64)
    means = {"mse": np.square(residual).mean(), "l1": np.abs(residual).mean()}
    expected = {
        name: weights[name] * mean
        for name, mean in means.items()
        if name in weights and weights[name] > 0 and f"{group}/{name}" in first
    }
    return max(
        abs(first[f"{group}/{name}"] - value) / max(value, 1e-30)
        for name, value in expected.items()
    )


def stats_of(ctx: Context, group: str):
    """Running statistics of a group's model."""
    stats = ctx.state.extra["stats"]
    return stats[group] if group in stats else {}
