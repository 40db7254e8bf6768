"""The canvas of every picture: colours, an empty figure, its pixels, its file.

Figures are matplotlib's, without global state.  Colours: Okabe and Ito (2008), told apart by
colour-blind readers; lines differ in dash as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxvol.runtime import atomic, text

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
TRUTH = "#444444"


def canvas(width: float, height: float, layout: str = "constrained") -> Figure:
    """An empty figure that arranges its own labels; "compressed" suits pictures of fixed aspect."""
    figure = Figure(figsize=(width, height), dpi=130, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def style(i: int) -> dict[str, Any]:
    """Colour and dash of line i."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


def limits(values: np.ndarray, tail: float = 0.5) -> tuple[float, float]:
    """Lowest and highest value without the outer `tail` per cent; never equal, never NaN."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, [tail, 100 - tail])
    if low == high:
        low, high = values.min(), values.max()
    return (float(low), float(high)) if low < high else (float(low) - 0.5, float(low) + 0.5)


def with_unit(axis: str, unit: str) -> str:
    """Axis label with its unit."""
    return f"{axis}  [{text.figure(unit, text.UNIT)}]" if unit else axis


def image(figure: Figure) -> np.ndarray:
    """Pixels of a figure, [height, width, 3] uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a PNG in one step; missing folders are made."""
    with atomic.replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)
