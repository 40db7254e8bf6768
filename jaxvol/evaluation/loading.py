"""A trained model as a function, for Python and notebooks."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.evaluation import inputs, tta
from jaxvol.ops import normalise
from jaxvol.training import restore
from jaxvol.types import Params, Spec, Task, UserError


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

    predict:    physical input `[B, D, H, W, C]` -> physical prediction `[B, D, H, W, K]`, at any
                grid size the model takes; UserError for another shape and for values that are not
                finite.
    which:      best | final | <step>
    weights:    ema | raw
    transforms: see evaluate.tta
    Raises UserError if there is no such checkpoint.
    """
    with without_orbax():
        task, params, extra, config, spec, _ = restored(workdir, which, weights, transforms)
    run = jax.jit(task.predict)

    def predict(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        check(x, spec)
        batch = {"input": normalise.forward(spec.fields["input"].normaliser, x)}
        return normalise.inverse(
            spec.fields["target"].normaliser, np.asarray(run(params, extra, batch))
        )

    return predict, config, spec


def check(x: np.ndarray, spec: Spec) -> None:
    """UserError unless `x` holds finite numbers and has the axes and channels of the model."""
    if x.dtype.kind not in "biuf":
        raise UserError(f"predict(x): found values of type {x.dtype}; expected real numbers")
    if x.ndim != 5 or x.shape[-1] != len(spec.fields["input"].channels):
        raise UserError(
            f"predict(x): {inputs.mismatch(x.shape, spec, ('BDHWC',))}; rearrange the axes"
        )
    inputs.check_finite(x, "predict(x)", "B, D, H, W, C")


@contextlib.contextmanager
def without_orbax() -> Iterator[None]:
    """Hide Orbax's warnings of options that a store needs when it is only read."""

    def wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or "orbax" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
