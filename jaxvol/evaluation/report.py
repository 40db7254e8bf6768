"""What an evaluation leaves on disk: metrics.json, metrics.csv, spectra.csv, and a table with the
baselines for the console.

Imports records only; the task, the dataset and the placement of batches are handed in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxvol.evaluation import tables
from jaxvol.runtime import atomic
from jaxvol.scores import columns
from jaxvol.types import Metrics

# predictor -> (metrics, rows): "model", and the baselines "mean", "identity", "wiener", ...
Scores = Mapping[str, tuple[Metrics, Mapping[str, np.ndarray]]]


def folder(workdir: Path, usual: ConfigDict, split: str, checkpoint: str) -> Path:
    """Where the scores of a checkpoint on a split lie.

    usual: `evaluate` of the run's own config; its split and checkpoint go to evaluation/, all
           others to evaluation/<split>-<checkpoint>/, so that none overwrites another.
    """
    if (split, str(checkpoint)) == (usual["split"], str(usual["checkpoint"])):
        return workdir / "evaluation"
    return workdir / "evaluation" / f"{split}-{checkpoint}"


def report(
    directory: str | os.PathLike,
    scores: Scores,
    names: Sequence[str],
    info: Mapping[str, Any],
    configured: Sequence[Any] = (),
) -> str:
    """Write metrics.json, metrics.csv (per example) and spectra.csv into `directory`; return the
    table, ready to print.

    scores: "model" is required.
    names:  name of every example of the split, looked up by `_index`.
    info:   goes into metrics.json as it is: name (of the model), split, weights, checkpoint,
            config_hash, data_hash, ...
    configured: `config.task.metrics`, for the direction of the user's own ones.  metrics.json keeps
            all directions, for tables of several runs.
    """
    directory = Path(directory)
    non_finite = {predictor: _broken(metrics, "") for predictor, (metrics, _) in scores.items()}
    payload = {
        "model": scores["model"][0],
        "baselines": {k: metrics for k, (metrics, _) in scores.items() if k != "model"},
        **info,
        "directions": columns.directions(tables.scalars(scores["model"][0]), configured),
        "examples": _count(scores["model"][1]),
        "versus": _versus(scores),
        "non_finite": {predictor: paths for predictor, paths in non_finite.items() if paths},
    }
    text = json.dumps(plain(payload), indent=1, allow_nan=False)
    atomic.write_text(directory / "metrics.json", text + "\n")
    atomic.write_text(directory / "metrics.csv", _per_example(scores, names))
    spectra = {k: metrics["spectra"] for k, (metrics, _) in scores.items() if "spectra" in metrics}
    if spectra:
        atomic.write_text(directory / "spectra.csv", _spectra(spectra))
    return "\n".join(_lines(scores, info["name"], payload))


def _lines(scores: Scores, name: str, payload: Mapping[str, Any]) -> list[str]:
    """The table, what it means in sentences, and what in it is not defined or not finite."""
    metrics = {predictor: tables.scalars(values) for predictor, (values, _) in scores.items()}
    titles = {predictor: tables.label(predictor, name) for predictor in scores}
    values = {titles[predictor]: numbers for predictor, numbers in metrics.items()}
    lines = [tables.table(values, {titles["model"]}, directions=payload["directions"])]
    lines += tables.sentences(metrics, name, payload["versus"])
    lines += [
        f"{titles[predictor]}: {key.removesuffix('_count')} is undefined in some examples, its "
        f"mean is over {count}"
        for predictor, (values, _) in scores.items()
        for key, count in values.items()
        if key.endswith("_count")
    ]
    return lines + [
        f"NOT FINITE in {titles[predictor]}: {', '.join(paths)}"
        for predictor, paths in payload["non_finite"].items()
    ]


def _versus(scores: Scores) -> dict[str, dict[str, dict[str, float]]]:
    """Model minus baseline, paired by example: mean and jackknife standard error s / sqrt(n) of
    that mean, over the examples where either is defined.
    """
    model, differences = scores["model"][1], {}
    for predictor, (_, rows) in scores.items():
        shared = [
            k
            for k in filter(tables.headline, model)
            if k in rows and model[k].shape == rows[k].shape and model[k].ndim == 1
        ]
        if predictor != "model" and shared:
            pairs = {k: np.array([model[k], rows[k]], np.float64) for k in shared}
            # where both are undefined, so is the target's own norm or variance
            defined = {k: ~np.isnan(pair).all(0) for k, pair in pairs.items()}
            gaps = {k: (pair[0] - pair[1])[defined[k]] for k, pair in pairs.items()}
            differences[predictor] = {
                k: {
                    "difference": float(np.mean(d)) if len(d) else float("nan"),
                    "examples": len(d),
                    "standard_error": float(np.std(d, ddof=1) / np.sqrt(len(d)))
                    if len(d) > 1
                    else float("nan"),
                }
                for k, d in gaps.items()
            }
    return differences


def _per_example(scores: Scores, names: Sequence[str]) -> str:
    """CSV text: one line per (model, example), one column per metric that has one value per
    example.
    """
    headings = list(
        dict.fromkeys(
            k
            for _, rows in scores.values()
            for k, v in rows.items()
            if not k.startswith("_") and np.ndim(v) == 1
        )
    )
    headings.sort(key=tables.rank)
    lines = [["model", "example", *headings]]
    for predictor, (_, rows) in scores.items():
        index = rows["_index"] if "_index" in rows else np.arange(_count(rows))
        lines += [
            [
                predictor,
                names[int(example)],
                *(repr(float(rows[c][i])) if c in rows else "" for c in headings),
            ]
            for i, example in enumerate(index)
        ]
    return tables.as_csv(lines)


def _spectra(spectra: Mapping[str, Mapping[str, Any]]) -> str:
    """CSV text: one line per (model, wavenumber bin); spectra of several channels, [K, C], are
    columns T_0, T_1, ...
    """
    flat: dict[str, dict[str, np.ndarray]] = {}
    for predictor, spectrum in spectra.items():
        bins = len(spectrum["k"])
        arrays = {
            k: np.asarray(v)
            for k, v in spectrum.items()
            if not isinstance(v, str) and np.shape(v)[:1] == (bins,)
        }
        flat[predictor] = {
            f"{k}_{c}" if v.ndim > 1 else k: column
            for k, v in arrays.items()
            for c, column in enumerate(v.reshape(bins, -1).T)
        }
    headings = list(dict.fromkeys(k for arrays in flat.values() for k in arrays))
    lines = [
        [predictor, *(repr(float(arrays[c][i])) if c in arrays else "" for c in headings)]
        for predictor, arrays in flat.items()
        for i in range(len(arrays["k"]))
    ]
    return tables.as_csv([["model", *headings], *lines])


def _count(rows: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(rows.values())))


def _broken(value: Any, path: str) -> list[str]:
    """Names of the metrics that hold a NaN or an infinity."""
    if isinstance(value, Mapping):
        return [
            name for k, v in value.items() for name in _broken(v, f"{path}/{k}" if path else str(k))
        ]
    array = np.asarray(value)
    return [path] if array.dtype.kind in "fc" and not np.isfinite(array).all() else []


def plain(value: Any) -> Any:
    """The same for JSON: arrays as lists, numbers as Python's, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (np.ndarray, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.generic,)):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
