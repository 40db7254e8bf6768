"""Trivial predictors as tasks, scored like the network: what every table has beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from ml_collections import ConfigDict

from jaxvol.ops import normalise
from jaxvol.scores import baselines as trivial
from jaxvol.tasks import scoring
from jaxvol.types import Array, Batch, Extra, Fixed, Key, Metrics, Params, Spec, Task


def baselines(
    config: ConfigDict,
    spec: Spec,
    train_batches: Iterable[dict[str, np.ndarray]],
    terms_of: Callable[[ConfigDict, Spec], scoring.Terms] | None = None,
) -> dict[str, tuple[Task, Params, Extra]]:
    """{"mean", "identity", "wiener": (task, params, extra)} of jaxvol/scores/baselines.py.

    train_batches: host batches of the training split, normalised, padding marked by `_mask`; read
                   once.
    terms_of: (config, spec) -> the terms of the task's own row `loss`, where they are not
              `scoring.terms`.

    The identity is absent where input and target differ in channels.  metrics["fit"] of the filter
    says what it is applied to: {"input": "physical" | "normalised", "training_vrmse": {"physical",
    "normalised"}}.  Only the tasks' evaluate, summarize and predict are meant to be called.  Raises
    UserError when there is no batch.
    """
    fitted = trivial.fit(spec, train_batches)
    fit = {"input": fitted.input, "training_vrmse": fitted.training_vrmse}
    target_mean = {"target_mean": fitted.target_mean}

    def mean(params: Params, extra: Extra, batch: Batch) -> Array:
        return trivial.mean(params["net"]["target_mean"], batch)

    def identity(params: Params, extra: Extra, batch: Batch) -> Array:
        return trivial.identity(spec, batch)

    def linear(params: Params, extra: Extra, batch: Batch) -> Array:
        return trivial.linear(params["net"], fitted.input, spec, batch)

    predictors = {
        "mean": (mean, target_mean, {}),
        "identity": (identity, {}, {}),
        "wiener": (linear, fitted.filter, {"fit": fit}),
    }
    inputs, targets = (len(spec.fields[name].channels) for name in ("input", "target"))
    if inputs != targets:
        del predictors["identity"]
    terms = (terms_of or scoring.terms)(config, spec)
    return {
        name: untrained(config, spec, physical, terms, {"net": params}, info)
        for name, (physical, params, info) in predictors.items()
    }


def untrained(
    config: ConfigDict,
    spec: Spec,
    physical: scoring.Predict,
    terms: scoring.Terms,
    params: Params,
    info: Metrics,
) -> tuple[Task, Params, Extra]:
    """(task, params, extra) of a predictor that is not learned.

    It predicts in physical units, where a normaliser that clips cannot change it.
    """
    extra = {"stats": {"net": {}}}

    def init(rng: Key, batch: Batch) -> tuple[Params, Extra]:
        return params, extra

    def loss(
        params: Params, fixed: Fixed, batch: Batch, rng: Key
    ) -> tuple[dict, tuple[Metrics, Extra]]:
        raise ValueError("a baseline has nothing to train")

    def predict(params: Params, extra: Extra, batch: Batch) -> tuple[Array, Array]:
        y = physical(params, extra, batch)
        return normalise.forward(spec.fields["target"].normaliser, y), y

    return scoring.task(config, spec, init, loss, predict, terms, info), params, extra
