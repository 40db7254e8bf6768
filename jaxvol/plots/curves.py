"""Pictures of a training: what metrics.csv holds, against the number of the update."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxvol.plots.figures import TRUTH, canvas, style
from jaxvol.runtime import text
from jaxvol.runtime.regular_files import open_regular

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]  # tag -> (steps, values)
NORMS = ("grad_norm", "clipped_norm", "update_norm")


def read(path: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """metrics.csv in long format (step, tag, value) -> {tag: (steps, values)}.

    Half-written and damaged lines are skipped.  Raises FileError where `path` is no regular file.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    with open_regular(path) as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", "replace", newline="")):
            try:
                points.setdefault(row["tag"], []).append((float(row["step"]), float(row["value"])))
            except (TypeError, ValueError):
                continue
    return {
        tag: (np.array([p[0] for p in of_tag]), np.array([p[1] for p in of_tag]))
        for tag, of_tag in points.items()
    }


def draw(curves: Curves, metric: str = "vrmse") -> Figure:
    """Training losses, the validation metric, learning rates, norms and shares against the update
    number.

    curves: what `read` returned.  Tags: train/<group>/<term>, train/<group>/{lr, grad_norm,
            clipped_norm, update_norm}, shares (clipped_fraction, accuracy_real, ...) and
            val/<metric>.
    """
    tags: dict[str, list[str]] = {}
    for tag in sorted(curves):
        tags.setdefault(panel_of(tag), []).append(tag)
    of_panel = lambda panel: tags[panel] if panel in tags else []
    validation = [tag for tag in of_panel("validation") if tag == f"val/{metric}"]
    validation = validation or of_panel("validation")[:1]
    rows = [["loss", "validation"], ["rate", "norm"]]
    if of_panel("share"):
        rows = [["loss", "loss", "validation"], ["rate", "norm", "share"]]
    figure = canvas(11.5 if len(rows[0]) == 2 else 15.0, 6.6)
    panels = figure.subplot_mosaic(rows)
    draw_tags(panels["loss"], curves, of_panel("loss"), "training loss", logarithmic=True)
    head = " ".join(["validation", *map(of_metric, validation)])
    draw_tags(panels["validation"], curves, validation, head)
    draw_tags(panels["rate"], curves, of_panel("rate"), "learning rate")
    head = "norms of gradient and update"
    draw_tags(panels["norm"], curves, of_panel("norm"), head, logarithmic=True)
    if "share" in panels:
        draw_tags(panels["share"], curves, of_panel("share"), "shares")
        panels["share"].set_ylim(-0.03, 1.03)
    return figure


def panel_of(tag: str) -> str:
    """Which panel a tag is drawn in: loss | validation | rate | norm | share; "" for none."""
    parts = tag.split("/")
    if parts[0] == "val":
        return "validation"
    if parts[0] != "train" or len(parts) < 3:
        return ""
    name = parts[-1]
    if name == "lr":
        return "rate"
    if name in NORMS:
        return "norm"
    if name.endswith("_fraction") or name.startswith("accuracy_"):
        return "share"
    return "" if name == "points" or name.startswith(("weight_", "residual_")) else "loss"


def of_metric(tag: str) -> str:
    """val/vrmse -> vrmse, as a figure shows it."""
    return text.figure(tag.removeprefix("val/"))


def draw_tags(
    panel: Any, curves: Curves, tags: Sequence[str], head: str, logarithmic: bool = False
) -> None:
    """One panel; `logarithmic` where all values are positive and not nearly the same."""
    for i, tag in enumerate(tags):
        marker = "." if len(curves[tag][0]) < 40 else None
        label = text.figure(tag.removeprefix("train/"))
        panel.plot(*curves[tag], marker=marker, linewidth=1.4, label=label, **style(i))
    every = np.concatenate([curves[tag][1] for tag in tags] or [np.zeros(0)])
    finite = every[np.isfinite(every)]
    if logarithmic and finite.size and 0 < 1.5 * finite.min() <= finite.max():
        panel.set_yscale("log")
        if finite.max() < 10 * finite.min():  # 0.6, not 6 x 10^-1
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            panel.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    panel.set_title(head, fontsize=11, loc="left")
    panel.set_xlabel("update")
    panel.grid(alpha=0.25)
    if tags:
        panel.legend(fontsize=8, loc="best", framealpha=0.85)
    else:
        middle = {"ha": "center", "va": "center", "transform": panel.transAxes}
        panel.text(0.5, 0.5, "not logged", color=TRUTH, **middle)
