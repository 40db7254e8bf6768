"""Volume to volume: a network trained on a weighted sum of named losses.

Scoring is that of scoring.py, the baselines are those of predictors.py.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from jaxvol.tasks import predictors, scoring
from jaxvol.types import Batch, Extra, Fixed, Key, Metrics, Params, Spec, Task

rules, baselines = scoring.rules, predictors.baselines


def fields() -> ConfigDict:
    """Weighted sum of named losses in normalised units, metrics in physical units."""
    return ConfigDict(
        {
            "name": "regression",
            # ((loss, weight), ...) or ((loss, weight, {argument: value}), ...); a loss is a name in
            # jaxvol/scores/losses.py or the path of a function of yours, package.module.function
            "losses": (("mse", 1.0),),
            # a loss is its mean over volumes averaged over cubes of these sides, e.g. (1, 2, 4)
            "resolutions": (1,),
            # names in jaxvol/scores/metrics.py, (name, {argument: value}), or paths of functions
            "metrics": ("vrmse", "rmse", "mae", "relative_l2", "pearson", "ssim", "psnr"),
            "spectra": True,  # P(k), T(k), r(k) per box (needs cubic voxels)
        }
    )


def make(config: ConfigDict, spec: Spec, model: nn.Module) -> Task:
    """The task of training `model`, called as model(x, train=bool): the group "net".

    The model may use the rng "dropout" and hold other collections (batch statistics), which are
    extra["stats"]["net"].  Raises UserError when the config names a loss or metric that does not
    exist, or the prediction has another shape than the target.
    """
    terms = scoring.terms(config, spec)

    def init(rng: Key, batch: Batch) -> tuple[Params, Extra]:
        variables = dict(
            model.init({"params": rng}, scoring.volume(config, batch, "input")[:1], train=False)
        )
        return {"net": variables.pop("params")}, {"stats": {"net": variables}}

    def loss(
        params: Params, fixed: Fixed, batch: Batch, rng: Key
    ) -> tuple[dict, tuple[Metrics, Extra]]:
        stats = fixed.extra["stats"]["net"]
        pred, stats = model.apply(
            {"params": params["net"], **stats},
            scoring.volume(config, batch, "input"),
            train=True,
            rngs={"dropout": rng},
            mutable=list(stats),
        )
        return {"net": {name: jnp.mean(rows) for name, rows in terms(pred, batch).items()}}, (
            {},
            {"stats": {"net": stats}},
        )

    return scoring.task(
        config, spec, init, loss, scoring.network(config, spec, model, "net"), terms, {}
    )
