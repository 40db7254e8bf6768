"""A picture of several models beside one another: bars, one panel per metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxvol.plots.figures import COLOURS, canvas
from jaxvol.runtime import text


def bars(
    values: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
) -> Figure:
    """One panel of horizontal bars per metric, a bar per model or baseline, its number at its end.

    values, errors: {label: {metric: number}}; an error (scatter over seeds) may be missing.
    """
    names = list(values)
    labels = [text.figure(name) for name in names]
    longest = max(map(len, labels))
    figure = canvas(1.2 + 0.085 * longest + 3.0 * len(columns), 1.1 + 0.42 * len(names))
    panels = np.atleast_1d(figure.subplots(1, len(columns), sharey=True))
    for panel, column in zip(panels, columns):
        heights = np.array([values[n].get(column, np.nan) for n in names], np.float64)
        spread = [errors[n][column] if n in errors and column in errors[n] else 0.0 for n in names]
        panel.barh(
            range(len(names)),
            np.nan_to_num(heights),
            height=0.66,
            color=[COLOURS[i % len(COLOURS)] for i in range(len(names))],
        )
        known = [
            i for i, s in enumerate(spread) if np.isfinite(s) and s > 0 and np.isfinite(heights[i])
        ]
        panel.errorbar(
            heights[known],
            known,
            xerr=[spread[i] for i in known],
            fmt="none",
            capsize=3,
            ecolor="black",
        )
        finite = heights[np.isfinite(heights)]
        low, high = min([0.0, *finite]), max([0.0, *finite]) or 1.0
        for i, height in enumerate(heights):
            number = f"{height:.3g}" if np.isfinite(height) else "-"
            end = np.nan_to_num(height) + np.nan_to_num(spread[i])
            panel.text(max(end, 0.0) + 0.02 * (high - low), i, number, va="center", fontsize=9)
        panel.set_xlim(low * 1.1, high + 0.28 * (high - low))
        panel.set_title(text.figure(column, text.LABEL), fontsize=11)
        panel.set_yticks(range(len(names)), labels)
        panel.tick_params(axis="y", length=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    return figure
