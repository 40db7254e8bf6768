"""Precision and chance: bfloat16 against float32, float32 against float64, and the loss at the start against its chance level."""
from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.types import Context, Fixed, Result

RANK = 45
MEANING = {
    "bf16": ("difference between the predictions in bfloat16 and float32, relative to their variation",
             "something is summed or normalised in bfloat16: it has to be float32"),
    "f64": ("difference between the predictions in float32 and float64, relative to their variation",
            "cancellation in float32: look for differences of large numbers"),
    "start_loss": ("loss at the start over the loss of predicting the mean",
                   "the first predictions are far too large: scale the last layer down; many updates go into undoing them"),
    "not_finite": ("share of the first updates that were refused because something was not finite",
                   "see the message of the run; lower the learning rate"),
}


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """Forward passes of the same parameters in three precisions; the mean predictor's loss from the targets themselves."""
    host = ctx.batches("val" if ctx.dataset.sizes["val"] else "train", ctx.config.evaluate.batch_size)[0]
    batch = {name: v for name, v in ctx.put(host).items() if name[0] != "_"}
    if "target" not in batch:
        return Result(skip="the batch has no 'target'")
    params, extra = probe.pair(ctx.state, "raw")
    own = np.asarray(probe.predict(ctx)(params, extra, batch), np.float64)
    scale = max(float(own.std()), 1e-12)
    metrics, kind = {}, ctx.config.precision
    for other in {"f32": ("bf16", "f64"), "bf16": ("f32",), "f64": ()}[kind]:
        name = "bf16" if "bf16" in (kind, other) else "f64"
        metrics[name] = float(np.sqrt(((cast(ctx, other, params, extra, batch) - own) ** 2).mean())) / scale
    metrics["start_loss"] = start_loss(ctx)
    _, history = probe.short_run(ctx)
    bad = [any(not np.isfinite(v) for v in row.values()) for row in history]
    metrics["not_finite"] = float(np.mean(bad))
    return Result(metrics, absent=tuple(set(MEANING) - set(metrics)))


def cast(ctx: Context, precision: str, params, extra, batch) -> np.ndarray:
    """The prediction of the same weights by the task of another precision."""
    task = ctx.retask({"precision": precision})
    if precision != "f64":
        return np.asarray(jax.jit(task.predict, compiler_options=probe.QUICK)(params, extra, batch), np.float64)
    with jax.enable_x64(True):
        def wide(tree):
            return jax.tree.map(lambda v: np.asarray(v, np.float64) if jnp.issubdtype(v.dtype, jnp.floating) else np.asarray(v), tree)
        return np.asarray(jax.jit(task.predict, compiler_options=probe.QUICK)(wide(params), wide(extra), wide(batch)))


def start_loss(ctx: Context) -> float:
    """Sum of a group's loss terms at the start over the same with the mean of the target as prediction, largest over groups."""
    fixed = Fixed(ctx.state.step, ctx.state.extra, ctx.state.ema)
    batch = ctx.batch(0)
    terms, _ = jax.jit(ctx.task.loss)(ctx.state.params, fixed, batch, jax.random.key(0))
    named = {name: weight for name, weight in ctx.config.task.losses} if "losses" in ctx.config.task else {}
    group = next(iter(terms))
    if "mse" not in named or "mse" not in terms[group]:
        return 1.0
    target = np.asarray(batch["target"], np.float64)
    return float(terms[group]["mse"]) / max(named["mse"] * float(target.var()), 1e-30)
