"""What volume-to-volume tasks share: the named losses and the scoring.

A batch has `input` [B, D, H, W, C] and `target` [B, D, H, W, K] in normalised units, and `mask`
[B, D, H, W, 1], 1 = observed, where voxels are missing.  Losses are in normalised units; metrics
and spectra in physical ones, through the inverse of the target's normaliser.  A target that cannot
be told from zeros or from a constant after that is one, so that what divides by its norm or its
variance is undefined.  The networks and every baseline (predictors.py) are scored by the same
function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxvol.ops import masked, normalise, round_trip
from jaxvol.scores import columns, entries, losses, spectra
from jaxvol.types import (
    Array,
    Batch,
    Extra,
    Key,
    Metrics,
    Params,
    Rows,
    Spec,
    Task,
    UserError,
)

Predict = Callable[[Params, Extra, Batch], Array]
# in normalised and in physical units
PredictBoth = Callable[[Params, Extra, Batch], tuple[Array, Array]]
# (prediction, batch) -> {name: weight * [B] values}
Terms = Callable[[Array, Batch], Rows]


def rules(config: ConfigDict) -> list[str]:
    """Violated rules of the losses and scores of `config.task`, for jaxvol/config/validate.py."""
    problems = entries.wrong_losses(config.task.losses) + wrong_metrics(config)
    if not config.task.losses:
        problems.append("task.losses is empty; name at least one (a weight of 0 only reports it).")
    if (
        not config.task.resolutions
        or len(set(config.task.resolutions)) < len(config.task.resolutions)
        or any(not isinstance(factor, int) or factor < 1 for factor in config.task.resolutions)
    ):
        problems.append(
            f"task.resolutions is {config.task.resolutions!r}; expected different whole numbers >= "
            "1, as in (1, 2, 4)."
        )
    return problems


def wrong_metrics(config: ConfigDict) -> list[str]:
    """Violated rules of `config.task.metrics`, and of the one that decides "best" among them."""
    chosen = config.task.metrics
    return entries.wrong_metrics(chosen) or columns.wrong_best(
        config.checkpoint.best_metric, chosen
    )


def task(
    config: ConfigDict,
    spec: Spec,
    init: Callable,
    loss: Callable,
    predict: PredictBoth,
    terms: Terms,
    info: Metrics,
) -> Task:
    """The task of `init` and `loss`, scored by `predict` and `terms`.

    info: added to the metrics as it is.
    """
    scores = entries.metric_functions(config.task.metrics, spec)
    has_spectra = config.task.spectra and spectra.possible(spec)

    def evaluate(params: Params, extra: Extra, batch: Batch, rng: Key) -> Rows:
        """Rows `loss` and `loss_<term>` (weighted, in normalised units), one per metric, and the
        spectra P_pred, P_true, P_cross [B, k bins].
        """
        observed = mask(batch)
        normalised, pred = predict(params, extra, batch)
        rows = {f"loss_{name}": values for name, values in terms(normalised, batch).items()}
        rows["loss"] = sum(rows.values())
        normaliser = spec.fields["target"].normaliser
        target = normalise.inverse(normaliser, volume(config, batch, "target"))
        target = round_trip.settle(normaliser, target, observed)
        rows |= {name: score(pred, target, observed) for name, score in scores.items()}
        if has_spectra:
            rows |= spectra.rows(spec, pred, target, observed)
        return rows

    def summarize(rows: dict[str, np.ndarray]) -> Metrics:
        """Means over boxes; T(k), r(k) of spectra summed over boxes, their scatter over boxes.

        A metric that is undefined in some boxes is averaged over the others, whose number is
        `<name>_count`; but once a loss is not finite, the model is broken, and every NaN shows.
        """
        skip_undefined = bool(np.isfinite(rows["loss"]).all())
        metrics = {}
        for name in (name for name, values in rows.items() if np.ndim(values) == 1):
            defined = ~np.isnan(rows[name])
            partial = skip_undefined and 0 < defined.sum() < len(defined)
            values = rows[name][defined] if partial else rows[name]
            metrics[name] = float(np.mean(values, dtype=np.float64))
            if partial:
                metrics[f"{name}_count"] = int(defined.sum())
        if "P_pred" in rows:
            metrics["spectra"] = spectra.summary(spec, rows)
            metrics |= spectra.scales(spec, metrics["spectra"])
        return metrics | info

    return Task(
        init,
        loss,
        evaluate,
        summarize,
        predict=lambda *arguments: predict(*arguments)[0],
        provides=frozenset(("volumes", "paired", *(("spectral",) if has_spectra else ()))),
    )


def network(config: ConfigDict, spec: Spec, model: nn.Module, group: str) -> PredictBoth:
    """The predictions of `model`, with the parameters and statistics of a group."""

    def predict(params: Params, extra: Extra, batch: Batch) -> tuple[Array, Array]:
        variables = {"params": params[group], **extra["stats"][group]}
        y = model.apply(variables, volume(config, batch, "input"), train=False)
        return y, normalise.inverse(spec.fields["target"].normaliser, y)

    return predict


def terms(config: ConfigDict, spec: Spec) -> Terms:
    """(prediction, batch) -> {loss name: weight * value per example}.

        L = 1/n sum_r loss(pool_r prediction, pool_r target, pool_r mask)

    is the mean over the n resolutions r of `config.task.resolutions`.  pool_r averages the observed
    voxels of cubes of r^3 (`downsample`); a loss that knows the voxel size is told the larger one.
    Raises UserError where no loss is named, or one twice.
    """
    chosen = entries.once(map(entries.loss, config.task.losses), "losses")
    if not chosen:
        raise UserError("config.task.losses is empty: expected at least one (name, weight)")
    coarse = {
        factor: dataclasses.replace(spec, spacing=tuple(factor * size for size in spec.spacing))
        for factor in config.task.resolutions
    }
    named = [
        (
            entry.name,
            {factor: entries.bound(losses, entry, larger) for factor, larger in coarse.items()},
            entry.weight,
        )
        for entry in chosen
    ]

    def rows(pred: Array, batch: Batch) -> Rows:
        target = volume(config, batch, "target")
        if pred.shape != target.shape:
            raise UserError(
                f"the prediction has the shape {pred.shape} but the target {target.shape} "
                f"(B, D, H, W, channels): give the model {target.shape[-1]} output channel(s) and "
                "the size of its input"
            )
        pairs = {factor: downsample(pred, target, mask(batch), factor) for factor in coarse}
        return {
            name: weight
            * (sum(f(*pairs[factor]) for factor, f in functions.items()) / len(functions))
            for name, functions, weight in named
        }

    return rows


def downsample(
    pred: Array, target: Array, mask: Array | None, factor: int
) -> tuple[Array, Array, Array | None]:
    """Both volumes [B, D, H, W, C] averaged over cubes of factor^3, and the mask [B, D, H, W, 1];
    axes of depth 1 stay.

    Averages are over the observed voxels; a cube is observed when one of its voxels is.  Raises
    UserError when a side does not divide by the factor.
    """
    if factor == 1:
        return pred, target, mask
    sides = tuple(1 if n == 1 else factor for n in pred.shape[1:4])
    if any(n % side for n, side in zip(pred.shape[1:4], sides)):
        raise UserError(
            f"config.task.resolutions has {factor}, but volumes of {pred.shape[1:4]} voxels do not "
            "divide by it: expected factors of every side that is longer than 1; change the "
            "resolutions, the grid or the crop"
        )

    def total(x: Array) -> Array:
        cells = [part for n, side in zip(x.shape[1:4], sides) for part in (n // side, side)]
        return jnp.sum(x.reshape(x.shape[0], *cells, x.shape[-1]), axis=(2, 4, 6))

    pred, target = masked.fill(pred, mask), masked.fill(target, mask)
    if mask is None:
        cells = sides[0] * sides[1] * sides[2]
        return total(pred) / cells, total(target) / cells, None
    count = total((mask > 0).astype(pred.dtype))
    return *(total(x) / jnp.maximum(count, 1) for x in (pred, target)), (count > 0).astype(
        pred.dtype
    )


def volume(config: ConfigDict, batch: Batch, name: str) -> Array:
    """A leaf of the batch in the precision of the run; the model itself lowers it to bfloat16."""
    return batch[name].astype(jnp.float64) if config.precision == "f64" else batch[name]


def mask(batch: Batch) -> Array | None:
    """The batch's mask [B, D, H, W, 1], 1 = observed, or None."""
    return batch["mask"] if "mask" in batch else None
