"""Predictions for files: read, normalise, predict whole or tile by tile, undo the normalisation,
write.

<workdir>/predictions/<relative path>         same container as the input, float32, physical units,
                                              attributes and affine kept
<workdir>/predictions/<relative path>.json    what made it
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxvol.data.io import files
from jaxvol.evaluation import inputs, loading
from jaxvol.ops import normalise, window
from jaxvol.runtime import atomic, console
from jaxvol.types import Array, NonFiniteError, Spec, UserError


def predict_run(choice: ConfigDict, workdir: Path) -> None:
    """Predict the files of `choice.predict.input` with the run's weights, and print where each
    prediction is.  `choice` is a config, of which `predict` and `evaluate` are read.
    """
    task, params, extra, config, spec, meta = loading.restored(
        workdir, choice.evaluate.checkpoint, choice.evaluate.weights, choice.evaluate.tta
    )
    merged = ConfigDict(config.to_dict())
    merged.predict, merged.evaluate = choice.predict, choice.evaluate
    compiled = jax.jit(lambda x: task.predict(params, extra, {"input": x}))
    made_by = {
        "run": str(workdir),
        "checkpoint": choice.evaluate.checkpoint,
        "step": meta["step"],
        "weights": choice.evaluate.weights,
        "tta": choice.evaluate.tta,
        "config_hash": meta["config_hash"],
        "versions": meta["versions"],
    }
    trained_on = (
        config.data.input.key if "input" in config.data and "key" in config.data.input else ""
    )
    for file in predict(merged, spec, compiled, workdir, made_by, trained_on):
        console.say(str(file))


def predict(
    config: Any,
    spec: Spec,
    predict_fn: Callable[[Array], Array],
    workdir: str | os.PathLike,
    made_by: Mapping[str, Any],
    key: str = "",
) -> Iterator[Path]:
    """Predict every file of `config.predict.input`; gives the files written, one after another.

    predict_fn: normalised [1, D, H, W, C] -> normalised [1, D, H, W, K]; called with one shape per
                tile (or volume) size.
    made_by:    run, checkpoint, weights, config hash, versions: goes into the JSON beside each
                prediction.
    key:        dataset inside the files when config.predict.key is "" (the one that training read).
    The headers of all files are read before the first is predicted.  What is wrong with one file
    does not keep the others from being predicted; when all are done it is raised, as a UserError
    that names every such file (a NonFiniteError where the model's answer was not finite in all of
    them; nothing is written then).
    UserError at once: no file matches, a tile that fits no volume.
    """
    block = config.predict
    tile = inputs.check_tile(block.tile, spec)
    root = Path(workdir) / "predictions"
    pairs = inputs.targets(block.input, root)
    hidden = jax.process_index() != 0
    dtype = np.float64 if config.precision == "f64" else np.float32
    errors: list[Exception] = []

    def attempt(action: Callable, *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except (UserError, NonFiniteError) as error:
            if len(pairs) > 1:
                logging.error("%s", error)
            errors.append(error)
            return None

    plans = [
        attempt(inputs.plan, source, output, root, block.key or key, spec)
        for source, output in pairs
    ]
    plans = [plan for plan in plans if plan is not None]
    for plan in (bar := tqdm(plans, desc="predict", unit="file", disable=hidden)):
        bar.set_postfix_str(plan.source.name)
        y = attempt(predict_file, plan, spec, predict_fn, tile, block.overlap, dtype)
        if y is None:
            continue
        note = {
            "tile": list(tile),
            "overlap": block.overlap if tile else None,
            "wrap": list(spec.wrap),
            **made_by,
        }
        if hidden or attempt(write, plan, spec, y, note) is not None:
            yield plan.output
    if errors:
        raise summary(errors, len(pairs))


def summary(errors: list[Exception], count: int) -> Exception:
    """One error for all files, of `count`, that were not predicted."""
    if count == 1:
        return errors[0]
    every = all(isinstance(error, NonFiniteError) for error in errors)
    return (NonFiniteError if every else UserError)(
        f"{len(errors)} of {count} files were not predicted:\n  - "
        + "\n  - ".join(str(error) for error in errors)
    )


def predict_file(
    plan: inputs.Plan,
    spec: Spec,
    predict_fn: Callable[[Array], Array],
    tile: tuple[int, ...],
    overlap: float,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Prediction for one file, its axes arranged as the input's (a stack [N, ...] volume by
    volume).

    UserError: the input has values that are not finite.  NonFiniteError: so has the prediction.
    """
    axes, stacked = plan.axes.replace("N", ""), "N" in plan.axes
    results = []
    for i in range(plan.shape[0] if stacked else 1):
        where = f"{plan.source}, key '{plan.key}'" + (f", volume {i} of the stack" * stacked)
        x = files.read(str(plan.source), plan.key, (i,) if stacked else None)
        x = inputs.to_volume(np.asarray(x), axes)
        inputs.check_finite(x, where, "D, H, W, C")
        y = predict_volume(x.astype(dtype), spec, predict_fn, tile, overlap)
        if not np.isfinite(y).all():
            raise NonFiniteError(
                f"{where}: the prediction is not finite; the input may lie far outside of what the "
                "model was trained on (wrong unit or key?)"
            )
        results.append(inputs.from_volume(y, axes))
    return np.stack(results) if stacked else results[0]


def predict_volume(
    x: np.ndarray,
    spec: Spec,
    predict_fn: Callable[[Array], Array],
    tile: tuple[int, ...] = (),
    overlap: float = 0.5,
) -> np.ndarray:
    """Physical units in and out, [D, H, W, C] -> [D, H, W, K]; tile () = the whole volume at once.

    Tiles wrap round the axes where `spec.wrap`; the weighted mean of overlapping tiles is taken in
    normalised units.
    """
    normalised = np.asarray(normalise.forward(spec.fields["input"].normaliser, x), x.dtype)

    def call(volume: np.ndarray) -> np.ndarray:
        y = jax.device_get(predict_fn(jnp.asarray(volume[None])))[0]
        return y.astype(np.promote_types(y.dtype, np.float32))

    if tile:

        def track(corners: list) -> Any:
            return tqdm(corners, desc="tiles", leave=False, disable=jax.process_index() != 0)

        y = window.sliding(call, normalised, tile, overlap, spec.wrap, track=track)
    else:
        y = call(normalised)
    return np.asarray(normalise.inverse(spec.fields["target"].normaliser, y))


def write(plan: inputs.Plan, spec: Spec, y: np.ndarray, note: Mapping[str, Any]) -> Path:
    """Write a prediction and its note; returns where it is.  UserError, naming the file, whatever
    a library says about it.
    """
    note = {
        "input": str(plan.source),
        "fingerprint": files.fingerprint(str(plan.source)),
        "key": plan.key,
        "axes": plan.axes,
        "input_shape": list(plan.shape),
        "shape": list(y.shape),
        "channels": list(spec.fields["target"].channels),
        "unit": spec.fields["target"].unit,
        **note,
    }
    with inputs.one_sentence(plan.source, f"its prediction cannot be written to {plan.output}"):
        files.write(str(plan.output), inputs.KEY, y, like=str(plan.source), like_key=plan.key)
        atomic.write_text(inputs.note_of(plan.output), json.dumps(note, indent=1) + "\n")
    return plan.output
