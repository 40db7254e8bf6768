"""What volume-to-volume tasks share: the named losses, the scoring, and the baselines that a
network is scored against.

A batch has `input` [B, D, H, W, C] and `target` [B, D, H, W, K] in normalised units, and `mask` [B,
D, H, W, 1] (1 = observed) where voxels are missing.  Losses are in normalised units; metrics and
spectra in physical ones, through the inverse of the target's normaliser.  The networks and every
baseline are scored by the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxvol.ops import masked, normalise, spectra, wiener
from jaxvol.scores import columns, entries, losses
from jaxvol.types import (
    Array,
    Batch,
    Extra,
    Fixed,
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
    """Violated rules of what `config.task` says about losses and scores, for
    jaxvol/config/validate.py.
    """
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


def baselines(
    config: ConfigDict,
    spec: Spec,
    train_batches: Iterable[dict[str, np.ndarray]],
    terms_of: Callable[[ConfigDict, Spec], Terms] | None = None,
) -> dict[str, tuple[Task, Params, Extra]]:
    """{"mean", "identity", "wiener": (task, params, extra)}, fitted on training batches, scored
    like the network.

    train_batches: host batches of the training split, normalised, padding marked by `_mask`; read
                   once.
    mean:     the training mean of the target.
    identity: the input in physical units is the prediction; absent when input and target differ in
              channels.
    wiener:   ops/wiener.py on the input in physical units or as the network sees it, whichever has
              the lower training VRMSE; metrics["fit"] says which: {"input": "physical" |
              "normalised", "training_vrmse": {"physical", "normalised"}}.
    terms_of: (config, spec) -> the terms of the task's own row `loss`, where they are not `terms`.
    Only the tasks' evaluate, summarize and predict are meant to be called.  Raises UserError when
    there is no batch.
    """
    inputs, targets = (len(spec.fields[name].channels) for name in ("input", "target"))
    found = _measure(spec, train_batches)
    outcome = slice(2 * inputs, 2 * inputs + targets)
    filters = {
        "physical": wiener.fit(found, slice(0, inputs), outcome),
        "normalised": wiener.fit(found, slice(inputs, 2 * inputs), outcome),
    }
    best = min(filters, key=lambda name: filters[name][1])
    report = {
        "input": best,
        "training_vrmse": {name: error for name, (_, error) in filters.items()},
    }
    fitted = {key: jnp.asarray(value) for key, value in filters[best][0].items()}

    def mean(params: Params, extra: Extra, batch: Batch) -> Array:
        return jnp.broadcast_to(params["net"]["target_mean"], (*batch["input"].shape[:-1], targets))

    def identity(params: Params, extra: Extra, batch: Batch) -> Array:
        return normalise.inverse(spec.fields["input"].normaliser, masked.promote(batch["input"]))

    def linear(params: Params, extra: Extra, batch: Batch) -> Array:
        x = identity(params, extra, batch) if best == "physical" else batch["input"]
        return wiener.apply(params["net"], x, mask(batch), spec.spacing)

    tasks = {"mean": (mean, {"target_mean": fitted["target_mean"]}, {})}
    if inputs == targets:
        tasks["identity"] = (identity, {}, {})
    tasks["wiener"] = (linear, fitted, {"fit": report})
    rows = (terms_of or terms)(config, spec)
    return {
        name: (
            baseline(config, spec, physical, rows, {"net": params}, info),
            {"net": params},
            {"stats": {"net": {}}},
        )
        for name, (physical, params, info) in tasks.items()
    }


def baseline(
    config: ConfigDict, spec: Spec, physical: Predict, terms: Terms, params: Params, info: Metrics
) -> Task:
    """A task that is not learned: it predicts in physical units, where a normaliser that clips
    cannot change it.
    """

    def init(rng: Key, batch: Batch) -> tuple[Params, Extra]:
        return params, {"stats": {"net": {}}}

    def loss(
        params: Params, fixed: Fixed, batch: Batch, rng: Key
    ) -> tuple[dict, tuple[Metrics, Extra]]:
        raise ValueError("a baseline has nothing to train")

    def predict(params: Params, extra: Extra, batch: Batch) -> tuple[Array, Array]:
        y = physical(params, extra, batch)
        return normalise.forward(spec.fields["target"].normaliser, y), y

    return task(config, spec, init, loss, predict, terms, info)


def task(
    config: ConfigDict,
    spec: Spec,
    init: Callable,
    loss: Callable,
    predict: PredictBoth,
    terms: Terms,
    info: Metrics,
) -> Task:
    """The task of `init` and `loss`, scored by `predict` and `terms`; `info` is added to the
    metrics as it is.
    """
    scores = entries.metric_functions(config.task.metrics, spec)
    has_spectra = (
        config.task.spectra
        and spec.shape[0] > 1
        and len(set(spec.shape)) == 1
        and len(set(spec.spacing)) == 1
    )

    def evaluate(params: Params, extra: Extra, batch: Batch, rng: Key) -> Rows:
        """Rows `loss` and `loss_<term>` (weighted, normalised units), one per metric, and P_pred,
        P_true, P_cross [B, k bins].
        """
        seen = mask(batch)
        normalised, pred = predict(params, extra, batch)
        rows = {f"loss_{name}": values for name, values in terms(normalised, batch).items()}
        rows["loss"] = sum(rows.values())
        target = normalise.inverse(
            spec.fields["target"].normaliser, volume(config, batch, "target")
        )
        rows |= {name: score(pred, target, seen) for name, score in scores.items()}
        if has_spectra:
            rows |= _spectra(spec, pred, target, seen)
        return rows

    def summarize(rows: dict[str, np.ndarray]) -> Metrics:
        """Means over boxes; T(k), r(k) of spectra summed over boxes, their scatter over boxes.

        A metric that is undefined in some boxes is averaged over the others, whose number is
        `<name>_count`; but once a loss is not finite, the model is broken, and every NaN shows.
        """
        skip_undefined = bool(np.isfinite(rows["loss"]).all())
        found = {}
        for name in (name for name, values in rows.items() if np.ndim(values) == 1):
            defined = ~np.isnan(rows[name])
            partial = skip_undefined and 0 < defined.sum() < len(defined)
            found[name] = float(
                np.mean(rows[name][defined] if partial else rows[name], dtype=np.float64)
            )
            if partial:
                found[f"{name}_count"] = int(defined.sum())
        if "P_pred" in rows:
            found["spectra"] = _summarize_spectra(spec, rows)
            found |= _scales(spec, found["spectra"])
        return found | info

    return Task(init, loss, evaluate, summarize, predict=lambda *arguments: predict(*arguments)[0])


def network(config: ConfigDict, spec: Spec, model: nn.Module, group: str) -> PredictBoth:
    """The predictions of `model` with the parameters and statistics of a group, in normalised and
    in physical units.
    """

    def predict(params: Params, extra: Extra, batch: Batch) -> tuple[Array, Array]:
        variables = {"params": params[group], **extra["stats"][group]}
        y = model.apply(variables, volume(config, batch, "input"), train=False)
        return y, normalise.inverse(spec.fields["target"].normaliser, y)

    return predict


def terms(config: ConfigDict, spec: Spec) -> Terms:
    """(prediction, batch) -> {loss name: weight * value per example}, the mean over the resolutions
    of `config.task`.

        L = 1/n sum_r loss(pool_r prediction, pool_r target, pool_r mask),   r in
        config.task.resolutions

    pool_r averages the observed voxels of cubes of r^3 (`downsample`); a loss that knows the voxel
    size is told the larger one.
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
            {factor: entries.bound(losses, entry, seen) for factor, seen in coarse.items()},
            entry.weight,
        )
        for entry in chosen
    ]

    def rows(pred: Array, batch: Batch) -> Rows:
        target = volume(config, batch, "target")
        if pred.shape != target.shape:
            raise UserError(
                f"the prediction has the shape {pred.shape} but the target {target.shape} (B, D, "
                "H, W, channels): "
                f"give the model {target.shape[-1]} output channel(s) and the size of its input"
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
            "divide by it: "
            "expected factors of every side that is longer than 1; change the resolutions, the "
            "grid or the crop"
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


def _spectra(spec: Spec, pred: Array, target: Array, mask: Array | None) -> Rows:
    """P_pred, P_true, P_cross, [B, K] or, with several channels, [B, K, C]; tapered along axes that
    do not wrap.
    """
    if pred.shape[1:4] != spec.shape:
        raise UserError(
            f"found volumes of {pred.shape[1:4]} voxels to score, but the spec says {spec.shape}: "
            "spectra need boxes "
            "of one size; set config.task.spectra=False"
        )
    weights = None if mask is None else (mask > 0).astype(jnp.float32)
    if not all(spec.periodic):
        window = jnp.asarray(spectra.taper(spec.shape, spec.periodic), jnp.float32)
        weights = window if weights is None else weights * window
    p = dict(
        zip(
            ("P_pred", "P_true", "P_cross"),
            spectra.spectra(pred, target, spec.box_size, weights=weights),
        )
    )
    return {name: values[..., 0] if values.shape[-1] == 1 else values for name, values in p.items()}


def _scales(spec: Spec, found: dict[str, Any]) -> Metrics:
    """r at an eighth, a quarter and half of the Nyquist frequency, and the mean of |T - 1| above
    half of it; first channel.
    """
    k = np.asarray(found["k"]) / (np.pi / max(spec.spacing))
    r, T = (np.asarray(found[name]).reshape(len(k), -1)[:, 0] for name in ("r", "T"))
    at = {
        f"r_{name}": float(np.interp(share, k, r))
        for name, share in (("eighth", 1 / 8), ("quarter", 1 / 4), ("half", 1 / 2))
    }
    return (
        at | {"transfer_error": float(np.abs(T[k >= 0.5] - 1).mean())} if (k >= 0.5).any() else at
    )


def _summarize_spectra(spec: Spec, rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """k, modes (independent ones per box), T, r, their standard deviation over boxes, mean P, and
    the taper.
    """
    boxes = {name: np.asarray(rows[name], np.float64) for name in ("P_pred", "P_true", "P_cross")}
    total = {name: values.sum(0) for name, values in boxes.items()}
    shells = spectra.shells(spec.shape, spec.box_size)
    inside = slice(1, shells.last + 1)
    found = {
        "k": shells.k[inside],
        "modes": shells.modes[inside].astype(int),
        "T": spectra.transfer(total["P_pred"], total["P_true"]),
        "r": spectra.cross_correlation(**_arguments(total)),
        "T_std": spectra.transfer(boxes["P_pred"], boxes["P_true"]).std(0),
        "r_std": spectra.cross_correlation(**_arguments(boxes)).std(0),
    }
    found |= {name: values / len(boxes[name]) for name, values in total.items()}
    return found | {"window": "none" if all(spec.periodic) else "hann"}


def _arguments(p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.lower(): values for name, values in p.items()}


def _measure(spec: Spec, train_batches: Iterable[dict[str, np.ndarray]]) -> wiener.Moments:
    """Moments of (physical input, normalised input, physical target) over the training boxes."""

    def boxes() -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray]]:
        for batch in train_batches:
            x, y = (
                normalise.inverse(spec.fields[name].normaliser, batch[name])
                for name in ("input", "target")
            )
            real = batch["_mask"] > 0 if "_mask" in batch else np.ones(len(x), bool)
            yield np.concatenate([x, batch["input"], y], -1), mask(batch), real

    return wiener.measure(boxes(), spec.spacing)
