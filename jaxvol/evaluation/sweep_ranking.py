"""What a sweep leaves: its points from the best to those that failed, as a table, a figure, and
data for other programs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jaxvol.config import components
from jaxvol.evaluation import tables
from jaxvol.evaluation.sweep_points import Point, flag
from jaxvol.plots import figures
from jaxvol.runtime import atomic, text


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a point; `value` is None unless the state is "finished"."""

    point: Point
    state: str  # finished | unfinished | failed
    reason: str = ""
    value: float | None = None
    step: int | None = None  # update at which the best value was measured


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Best first; then the unfinished, then the failed, in the order of the sweep."""
    direction = components.best_direction(outcomes[0].point.config)
    states = ("finished", "unfinished", "failed")
    return sorted(
        outcomes,
        key=lambda o: (states.index(o.state), 0.0 if o.value is None else -direction * o.value),
    )


def rows(order: Sequence[Outcome]) -> list[list[str]]:
    """The ranking as text, its header first."""
    keys = list(dict.fromkeys(k for o in order for k in o.point.params))
    metric = order[0].point.config.checkpoint.best_metric
    table = [["rank", *keys, f"best {metric}", "at step", "state", "reason", "workdir"]]
    for rank, o in enumerate(order, 1):
        params = [str(o.point.params[k]) if k in o.point.params else "" for k in keys]
        value = "" if o.value is None else f"{o.value:.6g}"
        table.append(
            [
                str(rank) if o.value is not None else "-",
                *params,
                value,
                "" if o.step is None else str(o.step),
                o.state,
                o.reason,
                str(o.point.workdir),
            ]
        )
    return table


def figure(order: Sequence[Outcome]) -> Figure:
    """The best validation metric against every swept field, the winner filled."""
    done = [o for o in order if o.value is not None]
    keys = list(dict.fromkeys(k for o in done for k in o.point.params)) or ["point"]
    drawing = Figure(figsize=(3.4 * len(keys), 3.2), dpi=120, layout="constrained")
    panels = drawing.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for panel, key in zip(panels, keys, strict=True):
        swept = [o for o in done if key in o.point.params or key == "point"]
        values = [o.point.params[key] if key in o.point.params else o.point.name for o in swept]
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        panel.scatter(
            values if numbers else [text.figure(v) for v in values],
            [o.value for o in swept],
            facecolors=["C0" if o is done[0] else "white" for o in swept],
            edgecolors="C0",
            zorder=2,
        )
        if numbers and min(values) > 0 and max(values) >= 10 * min(values):
            panel.set_xscale("log")
        panel.set_xlabel(text.figure(key))
        panel.grid(alpha=0.3)
    metric = text.figure(order[0].point.config.checkpoint.best_metric)
    drawing.axes[0].set_ylabel(f"best validation {metric}")
    return drawing


def report(outcomes: Sequence[Outcome], folder: Path) -> str:
    """Write the ranking, its figure, objective.json and best.txt into `folder`; return the table,
    ready to print.
    """
    order = ranked(outcomes)
    config, table = order[0].point.config, rows(order)
    objective = [
        {
            "objective": o.value,
            "metric": config.checkpoint.best_metric,
            "mode": "max" if components.best_direction(config) > 0 else "min",
            "params": o.point.params,
            "state": o.state,
            "reason": o.reason,
            "step": o.step,
            "workdir": str(o.point.workdir),
        }
        for o in order
    ]
    atomic.write_text(folder / "ranking.csv", tables.as_csv(table))
    atomic.write_text(folder / "objective.json", json.dumps(objective, indent=1) + "\n")
    (folder / "best.txt").unlink(missing_ok=True)
    written = "ranking.csv, objective.json"
    if order[0].value is not None:
        flags = " ".join(flag(k, v) for k, v in order[0].point.params.items())
        atomic.write_text(folder / "best.txt", flags + "\n")
        figures.save(figure(order), folder / "ranking.png")
        written += ", ranking.png, best.txt"
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return "\n".join([*lines, "", f"Written to {folder}/: {written}"])
