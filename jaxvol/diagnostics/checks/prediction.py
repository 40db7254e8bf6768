"""Predictions after a short run: their slices, collapse to the mean, saturation at the ends of the
range, sharpness, and whether they are scored in physical units.
"""

from __future__ import annotations

import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.ops import normalise
from jaxvol.plots import volumes as plots
from jaxvol.training import averages
from jaxvol.types import Result

RANK = 80
NEEDS = ("paired",)
MEANING = {
    "variance_ratio": (
        "variance of the prediction over that of the target",
        "the model gives the mean, with or without noise",
    ),
    "saturated": (
        "share of the predicted voxels within a thousandth of the ends of the predicted range",
        "the output sticks at a bound: remove the output activation or widen the normaliser's "
        "range",
    ),
    "sharpness": (
        "mean gradient of the prediction over that of the target",
        "the prediction is blurred, which early on is normal",
    ),
    "roughness": (
        "mean gradient of the prediction over that of the target",
        "the prediction is noise or has artefacts",
    ),
    "physical": (
        "|log2| of the reported RMSE over the RMSE of the prediction in physical units",
        "metrics or predictions are not in physical units: the normaliser is not undone",
    ),
    "self_score": (
        "RMSE that evaluation gives to a prediction held against itself, relative to its variation",
        "what is scored is not what is predicted: units, clipping or order differ between the two",
    ),
    "correlation": (
        "correlation of prediction and target",
        "what the short run learned has nothing to do with the target",
    ),
}
LIMITS = {
    "variance_ratio": (">", 0.02, 0.001),  # of the target's variance
    "saturated": ("<", 0.05, 0.3),  # share of the voxels
    "sharpness": (">", 0.02, 0.0),  # of the target's gradient
    "roughness": ("<", 3.0, 30.0),  # of the target's gradient
    "physical": ("<", 0.1, 0.5),  # |log2|
    "self_score": ("<", 0.05, 0.2),  # of the prediction's variation
    "correlation": (">", 0.1, 0.0),  # Pearson
}


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """The raw weights after `preflight.steps` updates, on validation examples."""
    state, _ = probe.short_run(ctx)
    host = probe.examples(ctx)
    if "target" not in host or "input" not in host:
        return Result(skip="the batch has no 'input' and 'target'")
    real = known(host)
    if not real.any():
        return Result(skip="no example has a known target")
    batch, (params, extra) = ctx.put(host), averages.weights_of(state, "raw")
    y = probe.prediction(ctx, (params, extra), batch)[real]
    x, target = (host[name][real].astype(np.float64) for name in ("input", "target"))
    metrics = shape(y, target)
    if (physical := physical_units(ctx, params, extra, y, target)) is not None:
        metrics["physical"] = physical
    if (score := self_score(ctx, params, extra, batch)) is not None:
        metrics["self_score"] = score
    return Result(metrics, figures=draw(ctx, x[:1], target[:1], y[:1]))


def draw(ctx: Context, x: np.ndarray, target: np.ndarray, y: np.ndarray) -> dict:
    """Middle slices of one example in physical units, and their logarithm where values allow it."""
    fitted = {name: ctx.spec.fields[name].normaliser for name in ("input", "target")}
    volumes = [
        np.asarray(normalise.inverse(fitted[name], v))[0, ..., 0]
        for name, v in (("input", x), ("target", target), ("target", y))
    ]
    lengths = {"spacing": ctx.spec.spacing, "length_unit": ctx.spec.unit}
    pictures = {"slices": plots.slices(*volumes, **lengths)}
    if min(v.min() for v in volumes) > -1:
        logs = [np.log10(v - min(v.min(), 0.0) + 0.03) for v in volumes]
        pictures["slices, log10"] = plots.slices(*logs, **lengths)
    return pictures


def known(batch: dict[str, np.ndarray]) -> np.ndarray:
    """[B]: which examples are no padding and have a target, as far as mask and values tell."""
    each = lambda x: np.asarray(x).reshape(len(x), -1)
    there = np.isfinite(each(batch["target"])).any(1) & (np.asarray(batch["_mask"]) > 0)
    return there & each(batch["mask"]).any(1) if "mask" in batch else there


def shape(y: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Variance, saturation, sharpness and correlation of predictions [B, D, H, W, K] against their
    targets of the same shape.
    """
    low, high = y.min(), y.max()
    edge = 1e-3 * max(high - low, 1e-30)
    sharp = sharpness(y) / max(sharpness(target), 1e-30)
    return {
        "variance_ratio": float(y.var() / max(target.var(), 1e-30)),
        "saturated": float(((y < low + edge) | (y > high - edge)).mean()),
        "sharpness": sharp,
        "roughness": sharp,
        "correlation": float(np.corrcoef(y.ravel(), target.ravel())[0, 1]) if y.std() > 0 else 0.0,
    }


def sharpness(v: np.ndarray) -> float:
    """Mean absolute difference of neighbours along all axes."""
    return float(sum(np.abs(np.diff(v, axis=a)).mean() for a in (1, 2, 3) if v.shape[a] > 1))


def physical_units(ctx: Context, params, extra, y: np.ndarray, target: np.ndarray) -> float | None:
    """|log2| of the reported RMSE over the one by the fitted normaliser's inverse; None where the
    task reports none.
    """
    metrics, _ = ctx.score(params, extra, probe.split(ctx), len(y))
    if "rmse" not in metrics:
        return None
    expected = physical_rmse(ctx.spec.fields["target"].normaliser, y, target)
    return abs(float(np.log2(max(metrics["rmse"], 1e-30) / max(expected, 1e-30))))


def self_score(ctx: Context, params, extra, batch) -> float | None:
    """RMSE of evaluation where the target is the prediction, over the prediction's standard
    deviation; None where the task reports none.
    """
    rows, y = probe.against_itself(ctx, params, extra, batch)
    if "rmse" not in rows:
        return None
    physical = np.asarray(
        normalise.inverse(ctx.spec.fields["target"].normaliser, y.astype(np.float64))
    )
    return float(
        np.sqrt((rows["rmse"].astype(np.float64) ** 2).mean()) / max(float(physical.std()), 1e-12)
    )


def physical_rmse(fitted: tuple[dict, ...], y: np.ndarray, target: np.ndarray) -> float:
    """Mean over examples of the RMSE in physical units; where the normaliser is one linear step, by
    its fitted numbers alone, so that a wrong inverse shows.
    """
    difference = np.sqrt(((y - target) ** 2).mean((1, 2, 3, 4)))
    if len(fitted) == 1 and "std" in fitted[0]:
        return float(difference.mean() * np.mean(fitted[0]["std"]))
    physical = [np.asarray(normalise.inverse(fitted, v)) for v in (y, target)]
    return float(np.sqrt(((physical[0] - physical[1]) ** 2).mean((1, 2, 3, 4))).mean())
