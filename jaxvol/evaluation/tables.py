"""Tables of scores as text: how a number, a model and a baseline are written, and the sentences
about them.  Which metrics lead, and in which direction they are better, metrics say themselves
(jaxvol/scores/columns.py).
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvol.scores.columns import SIGNS, direction, headline, rank
from jaxvol.scores.columns import directions as known

SPELLED = {
    "vnet": "V-Net",
    "vit3d": "ViT3D",
    "pix2pixcc": "Pix2PixCC",
    "unet": "U-Net",
    "cheb_kan": "Chebyshev KAN",
}
TITLES = {"mean": "mean", "identity": "identity", "wiener": "Wiener filter"}


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the metrics, the most telling first, the loss last; not its terms and not
    how many examples counted.
    """
    values = {
        k: float(v)
        for k, v in metrics.items()
        if not isinstance(v, (Mapping, str))
        and np.ndim(v) == 0
        and not k.startswith("loss_")
        and not k.endswith("_count")
    }
    return {k: values[k] for k in sorted(values, key=rank)}


def label(predictor: str, name: str) -> str:
    """Heading of a row: the model under its own `name`, the baselines in words."""
    if predictor == "model":
        return pretty(name)
    return TITLES[predictor] if predictor in TITLES else predictor


def pretty(name: str) -> str:
    """Model names as people write them; short ones that are not listed in capitals."""
    if name in SPELLED:
        return SPELLED[name]
    return name.upper() if name.islower() and len(name) <= 4 else name


def table(
    lines: Mapping[str, Mapping[str, float]],
    models: Iterable[str] = (),
    suffixes: Mapping[str, Mapping[str, str]] | None = None,
    directions: Mapping[str, str] | None = None,
) -> str:
    """Aligned text: one line per model, one column per metric, arrows for what is better, `*` at
    the best.

    models:   lines set apart from the baselines by `>`.
    suffixes: text after a number, e.g. a scatter over seeds.
    directions: {column: "higher" or "lower"}, others get no mark; unless given, those that
                jaxvol/scores/columns.py knows.
    """
    columns = list(dict.fromkeys(itertools.chain.from_iterable(lines.values())))
    better = known(columns) if directions is None else directions
    cells = [["", *(heading(c, better) for c in columns)]]
    best = {c: winners(lines, c, better) for c in columns}
    for title, values in lines.items():
        cells.append([f"{'>' if title in models else ' '} {title}"])
        for c in columns:
            text = number(values[c]) if c in values else "-"
            text += suffixes[title][c] if suffixes and c in suffixes.get(title, {}) else ""
            cells[-1].append(text + ("*" if title in best[c] else " "))
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns) + 1)]
    text = [
        row[0].ljust(widths[0])
        + "".join("  " + v.rjust(w) for v, w in zip(row[1:], widths[1:], strict=True))
        for row in cells
    ]
    rule = "-" * max(map(len, text))
    return "\n".join(
        [text[0].rstrip(), rule, *(t.rstrip() for t in text[1:]), rule, "* best in its column"]
    )


def heading(column: str, better: Mapping[str, str]) -> str:
    """The name of a column and an arrow to what is better, where `better` has its direction."""
    return column + {"higher": " ↑", "lower": " ↓"}[better[column]] if column in better else column


def winners(
    lines: Mapping[str, Mapping[str, float]], column: str, better: Mapping[str, str]
) -> set[str]:
    """Lines with the best finite value of a metric; none when `better` has no direction of it or
    all are equal.
    """
    values = {
        title: metrics[column]
        for title, metrics in lines.items()
        if column in metrics and np.isfinite(metrics[column])
    }
    sign = SIGNS[better[column]] if column in better else 0
    if not values or not sign or (len(values) > 1 and len(set(values.values())) == 1):
        return set()
    best = (max if sign > 0 else min)(values.values())
    return {title for title, value in values.items() if value == best}


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
    for key in filter(headline, metrics["model"]):
        baselines = {
            predictor: values[key]
            for predictor, values in metrics.items()
            if predictor != "model" and key in values and np.isfinite(values[key])
        }
        model = metrics["model"][key]
        if not baselines or not np.isfinite(model):
            continue
        rival = (max if direction(key) > 0 else min)(baselines, key=baselines.get)
        if not baselines[rival]:
            continue
        change = 100 * (model / baselines[rival] - 1)
        text = (
            f"{abs(change):.0f} % {'below' if change < 0 else 'above'}"
            if round(abs(change))
            else "within 1 % of"
        )
        line = (
            f"{pretty(name)} {headline(key)} {model:.3g} is {text} the {label(rival, name)}'s "
            f"{baselines[rival]:.3g}"
        )
        pair = versus[rival][key] if rival in versus and key in versus[rival] else None
        if pair and np.isfinite(pair["standard_error"]):
            line += (
                f" (difference {pair['difference']:+.3g} ± {pair['standard_error']:.2g} over "
                f"{pair['examples']} examples)"
            )
        lines.append(line)
    return lines


def as_csv(lines: Iterable[Sequence[Any]]) -> str:
    """Comma-separated text with quoting where names need it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
