"""A trained model as a function, for Python and notebooks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.evaluation import tta
from jaxvol.ops import normalise
from jaxvol.training import restore
from jaxvol.types import Params, Spec, Task


def restored(
    workdir: str | Path, which: str, weights: str, transforms: str, mesh: Mesh | None = None
) -> tuple[Task, Params, dict, ConfigDict, Spec, dict]:
    """`restore.restore` with predictions averaged over `transforms` (jaxvol/evaluation/tta.py)."""
    wrap = functools.partial(tta.wrap, name=transforms)
    return restore.restore(workdir, which, weights, mesh, wrap)


def load(
    workdir: str | Path, which: str = "best", weights: str = "ema", transforms: str = "none"
) -> tuple[Callable, ConfigDict, Spec]:
    """(predict, config, spec) of a finished or running training, for Python and notebooks.

    predict: physical input `[B, D, H, W, C]` -> physical prediction `[B, D, H, W, K]`, at any grid
             size the model takes.
    which: best | final | <step>; weights: ema | raw; transforms: see evaluate.tta.  Raises UserError
           if there is no such checkpoint.
    """
    task, params, extra, config, spec, _ = restored(workdir, which, weights, transforms)
    run = jax.jit(task.predict)

    def predict(x: np.ndarray) -> np.ndarray:
        batch = {"input": normalise.forward(spec.fields["input"].normaliser, np.asarray(x))}
        return normalise.inverse(
            spec.fields["target"].normaliser, np.asarray(run(params, extra, batch))
        )

    return predict, config, spec
