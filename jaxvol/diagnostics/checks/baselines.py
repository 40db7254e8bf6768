"""What a model has to beat on validation data (the mean, the identity, the linear filter), and what
a short run reaches beside them.
"""

from __future__ import annotations

from jaxvol.config import components
from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.training import averages
from jaxvol.types import Result

RANK = 75
NEEDS = ("volumes", "paired")
MEANING = {
    "short_run": (
        "validation metric after the short run over that of the mean predictor",
        "the first updates make it worse than a constant: look at the learning rate and at the "
        "normalisers",
    ),
    "best_linear": (
        "validation metric of the best trivial predictor over that of the mean",
        "near 1, the input says nothing linear about the target, or the pairing is broken; near 0, "
        "there is nothing to learn",
    ),
}
LIMITS = {
    "short_run": ("<", 1.0, 2.0),  # multiple of the mean predictor's
    "best_linear": ("<", 0.999, 1.5),  # multiple of the mean predictor's
}


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """`checkpoint.best_metric` of the baselines and of the raw weights after `preflight.steps`
    updates.
    """
    name = ctx.config.checkpoint.best_metric
    if ctx.dataset.sizes["val"] == 0:
        return Result(skip="there is no validation split")
    if components.best_direction(ctx.config) > 0:
        return Result(
            skip=f"{name} is to be maximised; the baselines' table needs one to be minimised"
        )
    baselines = ctx.baselines()
    state, history = probe.short_run(ctx)
    weights = averages.weights_of(state, "raw")
    reached = ctx.score(*weights, "val", ctx.config.preflight.examples)[0]
    rows = [
        {"predictor": predictor, name: float(metrics[name])}
        for predictor, metrics in baselines.items()
        if name in metrics
    ]
    rows.append({"predictor": f"model after {len(history)} updates", name: float(reached[name])})
    mean = float(baselines["mean"][name])
    metrics = {
        "short_run": float(reached[name]) / mean,
        "best_linear": min(row[name] for row in rows[:-1]) / mean,
    }
    return Result(metrics, {"to beat": rows})
