"""Pictures of a training: what metrics.csv holds, against the number of the update."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxvol.plots.figures import TRUTH, canvas, style

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]  # tag -> (steps, values)
NORMS = ("grad_norm", "clipped_norm", "update_norm")


def read(path: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """metrics.csv in long format (step, tag, value) -> {tag: (steps, values)}.

    A half-written last line is skipped.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                points.setdefault(row["tag"], []).append((float(row["step"]), float(row["value"])))
            except (TypeError, ValueError):
                continue
    return {
        tag: (np.array([p[0] for p in of_tag]), np.array([p[1] for p in of_tag]))
        for tag, of_tag in points.items()
    }


def draw(curves: Curves, metric: str = "vrmse") -> Figure:
    """Training losses, the validation metric, learning rates and norms against the update number.

    curves: what `read` returned.  Tags: train/<group>/<term>, train/<group>/{lr, grad_norm,
            clipped_norm, update_norm} and val/<metric>.
    """
    readings = {name: [] for name in ("lr", *NORMS, "terms")}
    for tag in sorted(curves):
        parts = tag.split("/")
        if parts[0] == "train" and len(parts) >= 3:
            readings[parts[-1] if parts[-1] in readings else "terms"].append(tag)
    metrics = sorted(tag for tag in curves if tag.startswith("val/"))
    validation = [f"val/{metric}"] if f"val/{metric}" in curves else metrics[:1]
    figure = canvas(11.5, 6.6)
    losses, scores, rates, norms = figure.subplots(2, 2).ravel()
    draw_tags(losses, curves, readings["terms"], "training loss", logarithmic=True)
    draw_tags(scores, curves, validation, " ".join(["validation", *map(of_metric, validation)]))
    draw_tags(rates, curves, readings["lr"], "learning rate")
    lengths = [tag for name in NORMS for tag in readings[name]]
    draw_tags(norms, curves, lengths, "norms of gradient and update", logarithmic=True)
    return figure


def of_metric(tag: str) -> str:
    """val/vrmse -> vrmse."""
    return tag.removeprefix("val/")


def draw_tags(
    panel: Any, curves: Curves, tags: Sequence[str], head: str, logarithmic: bool = False
) -> None:
    """One panel; `logarithmic` where all values are positive."""
    for i, tag in enumerate(tags):
        marker = "." if len(curves[tag][0]) < 40 else None
        label = tag.removeprefix("train/")
        panel.plot(*curves[tag], marker=marker, linewidth=1.4, label=label, **style(i))
    finite = [curves[tag][1] for tag in tags if np.isfinite(curves[tag][1]).any()]
    if logarithmic and tags and all(np.nanmin(values) > 0 for values in finite):
        panel.set_yscale("log")
    panel.set_title(head, fontsize=11, loc="center" if len(tags) > 3 else "left")
    panel.set_xlabel("update")
    panel.grid(alpha=0.25)
    if len(tags) > 3:
        panel.legend(fontsize=8)
    elif tags:  # above the frame, where no curve can run through it
        corner = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.985), "ncol": len(tags)}
        panel.legend(fontsize=8, frameon=False, **corner)
    else:
        middle = {"ha": "center", "va": "center", "transform": panel.transAxes}
        panel.text(0.5, 0.5, "not logged", color=TRUTH, **middle)
