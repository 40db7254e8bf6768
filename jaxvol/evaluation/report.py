"""Scoring a split and writing what came out: metrics.json, metrics.csv, spectra.csv and a table
with the baselines.

Imports records only; the task, the dataset and the placement of batches are handed in.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvol.types import Metrics

HIGHER = (
    "r_eighth",
    "r_quarter",
    "r_half",
    "pearson",
    "ssim",
    "psnr",
    "ccc",
    "r2",
    "dice",
    "nsd",
    "iou",
    "accuracy",
)
LOWER = (
    "transfer_error",
    "vrmse",
    "rmse",
    "mae",
    "mape",
    "mse",
    "relative_l2",
    "h1",
    "hd95",
    "pdf_distance",
    "wasserstein",
    "loss",
)
# what tables lead with and sentences are about
FIRST = {"vrmse": "VRMSE", "relative_l2": "relative L2", "dice": "Dice"}
ORDER = (*FIRST, "rmse", "mae", "pearson", "ssim", "psnr")
SPELLED = {
    "vnet": "V-Net",
    "vit3d": "ViT3D",
    "pix2pixcc": "Pix2PixCC",
    "unet": "U-Net",
    "cheb_kan": "Chebyshev KAN",
}
TITLES = {"mean": "mean", "identity": "identity", "wiener": "Wiener filter"}


def report(
    directory: str | os.PathLike,
    scores: Mapping[str, tuple[Metrics, Mapping[str, np.ndarray]]],
    names: Sequence[str],
    info: Mapping[str, Any],
) -> str:
    """Write metrics.json, metrics.csv (per example) and spectra.csv into `directory`; return the
    table, ready to print.

    scores: {"model": (metrics, rows), "mean": ..., "identity": ..., "wiener": ...}, of which
            "model" is required.
    names:  name of every example of the split, looked up by `_index`.
    info:   goes into metrics.json as it is: name (of the model), split, weights, checkpoint,
            config_hash, data_hash, ...
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    broken = {who: _broken(metrics, "") for who, (metrics, _) in scores.items()}
    payload = {
        "model": scores["model"][0],
        "baselines": {k: v[0] for k, v in scores.items() if k != "model"},
        **info,
        "examples": _count(scores["model"][1]),
        "versus": _versus(scores),
        "non_finite": {who: found for who, found in broken.items() if found},
    }
    write_text(
        directory / "metrics.json", json.dumps(plain(payload), indent=1, allow_nan=False) + "\n"
    )
    write_text(directory / "metrics.csv", _per_example(scores, names))
    spectra = {
        who: metrics["spectra"] for who, (metrics, _) in scores.items() if "spectra" in metrics
    }
    if spectra:
        write_text(directory / "spectra.csv", _spectra(spectra))
    metrics = {who: scalars(found) for who, (found, _) in scores.items()}
    lines = [
        table(
            {label(who, info["name"]): found for who, found in metrics.items()},
            {label("model", info["name"])},
        )
    ]
    lines += sentences(metrics, info["name"], payload["versus"])
    lines += [
        f"{label(who, info['name'])}: {key.removesuffix('_count')} is undefined in some examples, "
        f"its mean is over {count}"
        for who, (found, _) in scores.items()
        for key, count in found.items()
        if key.endswith("_count")
    ]
    lines += [
        f"NOT FINITE in {label(who, info['name'])}: {', '.join(found)}"
        for who, found in payload["non_finite"].items()
    ]
    return "\n".join(lines)


def direction(name: str) -> int:
    """+1 when more is better, -1 when less is, 0 when unknown; `dice/liver` and `dice_mean` count
    as `dice`.
    """

    def is_one_of(known: Iterable[str]) -> bool:
        return not name.endswith("_count") and any(
            name == k or name.startswith((f"{k}/", f"{k}_")) for k in known
        )

    return 1 if is_one_of(HIGHER) else -1 if is_one_of(LOWER) else 0


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the metrics, the most telling first, the loss last; not its terms and not
    how many examples counted.
    """
    found = {
        k: float(v)
        for k, v in metrics.items()
        if not isinstance(v, (Mapping, str))
        and np.ndim(v) == 0
        and not k.startswith("loss_")
        and not k.endswith("_count")
    }
    return {k: found[k] for k in sorted(found, key=rank)}


def rank(name: str) -> int:
    """Place of a metric among the columns."""
    return ORDER.index(name) if name in ORDER else len(ORDER) + name.startswith("loss")


def label(who: str, name: str) -> str:
    """Heading of a row: the model under its own name, the baselines in words."""
    return pretty(name) if who == "model" else TITLES[who] if who in TITLES else who


def pretty(name: str) -> str:
    """Model names as people write them; short ones that are not listed in capitals."""
    return (
        SPELLED[name]
        if name in SPELLED
        else name.upper()
        if name.islower() and len(name) <= 4
        else name
    )


def table(
    lines: Mapping[str, Mapping[str, float]],
    ours: Iterable[str] = (),
    suffixes: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Aligned text: one line per model, one column per metric, arrows for what is better, `*` at
    the best.

    ours: lines set apart by `>`.   suffixes: text after a number, e.g. a scatter over seeds.
    """
    columns = list(dict.fromkeys(itertools.chain.from_iterable(lines.values())))
    arrow = {1: " ↑", -1: " ↓", 0: ""}
    cells = [["", *(c + arrow[direction(c)] for c in columns)]]
    best = {c: winners(lines, c) for c in columns}
    for who, found in lines.items():
        cells.append([f"{'>' if who in ours else ' '} {who}"])
        for c in columns:
            text = number(found[c]) if c in found else "-"
            text += suffixes[who][c] if suffixes and c in suffixes.get(who, {}) else ""
            cells[-1].append(text + ("*" if who in best[c] else " "))
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns) + 1)]
    text = [
        row[0].ljust(widths[0]) + "".join("  " + v.rjust(w) for v, w in zip(row[1:], widths[1:]))
        for row in cells
    ]
    rule = "-" * max(map(len, text))
    return "\n".join(
        [text[0].rstrip(), rule, *(t.rstrip() for t in text[1:]), rule, "* best in its column"]
    )


def winners(lines: Mapping[str, Mapping[str, float]], column: str) -> set[str]:
    """Who has the best finite value of a metric; nobody when the direction is unknown or all are
    equal.
    """
    values = {
        who: found[column]
        for who, found in lines.items()
        if column in found and np.isfinite(found[column])
    }
    if not values or not direction(column) or (len(values) > 1 and len(set(values.values())) == 1):
        return set()
    best = (max if direction(column) > 0 else min)(values.values())
    return {who for who, value in values.items() if value == best}


def number(value: float) -> str:
    """Four significant digits; NaN and infinities by name."""
    return f"{value:.4g}" if np.isfinite(value) else str(float(value))


def sentences(
    metrics: Mapping[str, Mapping[str, float]],
    name: str,
    versus: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> list[str]:
    """One sentence per leading metric: the model against the best baseline, in per cent."""
    lines = []
    for key in (k for k in FIRST if k in metrics["model"]):
        others = {
            who: found[key]
            for who, found in metrics.items()
            if who != "model" and key in found and np.isfinite(found[key])
        }
        ours = metrics["model"][key]
        if not others or not np.isfinite(ours):
            continue
        rival = (max if direction(key) > 0 else min)(others, key=others.get)
        if not others[rival]:
            continue
        change = 100 * (ours / others[rival] - 1)
        text = (
            f"{abs(change):.0f} % {'below' if change < 0 else 'above'}"
            if round(abs(change))
            else "within 1 % of"
        )
        line = (
            f"{pretty(name)} {FIRST[key]} {ours:.3g} is {text} the {label(rival, name)}'s "
            f"{others[rival]:.3g}"
        )
        pair = versus[rival][key] if rival in versus and key in versus[rival] else None
        if pair and np.isfinite(pair["standard_error"]):
            line += (
                f" (difference {pair['difference']:+.3g} ± {pair['standard_error']:.2g} over "
                f"{pair['examples']} examples)"
            )
        lines.append(line)
    return lines


def _versus(
    scores: Mapping[str, tuple[Metrics, Mapping[str, np.ndarray]]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Model minus baseline, paired by example: mean and jackknife standard error s / sqrt(n) of
    that mean.
    """
    ours, out = scores["model"][1], {}
    for who, (_, theirs) in scores.items():
        shared = [
            k
            for k in FIRST
            if k in ours and k in theirs and ours[k].shape == theirs[k].shape and ours[k].ndim == 1
        ]
        if who != "model" and shared:
            gaps = {
                k: np.asarray(ours[k], np.float64) - np.asarray(theirs[k], np.float64)
                for k in shared
            }
            out[who] = {
                k: {
                    "difference": float(np.mean(d)),
                    "examples": len(d),
                    "standard_error": float(np.std(d, ddof=1) / np.sqrt(len(d)))
                    if len(d) > 1
                    else float("nan"),
                }
                for k, d in gaps.items()
            }
    return out


def _per_example(
    scores: Mapping[str, tuple[Metrics, Mapping[str, np.ndarray]]], names: Sequence[str]
) -> str:
    """CSV text: one line per (model, example), one column per metric that has one value per
    example.
    """
    columns = list(
        dict.fromkeys(
            k
            for _, rows in scores.values()
            for k, v in rows.items()
            if not k.startswith("_") and np.ndim(v) == 1
        )
    )
    columns.sort(key=rank)
    out = [["model", "example", *columns]]
    for who, (_, rows) in scores.items():
        index = rows["_index"] if "_index" in rows else np.arange(_count(rows))
        for i, example in enumerate(index):
            out.append(
                [
                    who,
                    names[int(example)],
                    *(repr(float(rows[c][i])) if c in rows else "" for c in columns),
                ]
            )
    return as_csv(out)


def _spectra(spectra: Mapping[str, Mapping[str, Any]]) -> str:
    """CSV text: one line per (model, wavenumber bin); spectra of several channels, [K, C], are
    columns T_0, T_1, ...
    """
    flat: dict[str, dict[str, np.ndarray]] = {}
    for who, found in spectra.items():
        bins = len(found["k"])
        arrays = {
            k: np.asarray(v)
            for k, v in found.items()
            if not isinstance(v, str) and np.shape(v)[:1] == (bins,)
        }
        flat[who] = {
            f"{k}_{c}" if v.ndim > 1 else k: column
            for k, v in arrays.items()
            for c, column in enumerate(v.reshape(bins, -1).T)
        }
    columns = list(dict.fromkeys(k for found in flat.values() for k in found))
    out = [
        [who, *(repr(float(found[c][i])) if c in found else "" for c in columns)]
        for who, found in flat.items()
        for i in range(len(found["k"]))
    ]
    return as_csv([["model", *columns], *out])


def as_csv(lines: Iterable[Sequence[Any]]) -> str:
    """Comma-separated text with quoting where names need it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


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


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, so that nobody ever reads half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, 0o644)
    os.replace(name, path)
