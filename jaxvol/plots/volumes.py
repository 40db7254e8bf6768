"""Pictures of volumes: slices beside one another, and the distribution of the voxel values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxvol.plots.figures import TRUTH, canvas, limits, style, with_unit
from jaxvol.runtime import text


def slices(
    input: np.ndarray,
    target: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    length_unit: str = "",
    units: Mapping[str, str] | None = None,
    title: str = "",
    input_scale: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Figure:
    """Middle slices along depth of input, target, prediction and residual (prediction - target).

    input, target, prediction: [D, H, W] in physical units.  Target and prediction share one colour
             scale (0.5 to 99.5 per cent of both), the residual has a symmetric one.
    spacing: voxel size along D, H, W in `length_unit`.
    units:   of the values, {"input": ..., "target": ...}.
    input_scale: values of the input -> where they stand on its colour scale, rising (the normaliser
             of the network); the bar bears the values themselves.  None = in proportion to them.
    """
    units = {"input": "", "target": "", **(units or {})}
    middle = [np.asarray(v, np.float32)[np.shape(v)[0] // 2] for v in (input, target, prediction)]
    middle.append(middle[2] - middle[1])
    low, high = limits(np.concatenate([middle[1].ravel(), middle[2].ravel()]))
    reach = max(abs(v) for v in limits(middle[3])) or 1.0
    scales = [
        (*limits(middle[0]), "viridis"),
        (low, high, "viridis"),
        (low, high, "viridis"),
        (-reach, reach, "RdBu_r"),
    ]
    heads = ("input", "target", "prediction", "prediction − target")
    height, width = middle[0].shape
    extent = (0, width * spacing[2], height * spacing[1], 0)
    figure = canvas(
        14.6,
        0.95 + 2.55 * min(max(extent[2] / extent[1], 0.3), 3.0) + (0.4 if title else 0.0),
        "compressed",
    )
    # the label of a colour bar stands free of the next picture
    figure.get_layout_engine().set(wspace=0.03)
    panels = figure.subplots(1, 4, sharey=True)
    for i, (panel, values, scale, head) in enumerate(zip(panels, middle, scales, heads)):
        drawn, bar = draw_slice(panel, values, scale, None if i else input_scale)
        drawn.set_extent(extent)
        panel.set_title(head, fontsize=11)
        panel.set_xlabel(with_unit("W", length_unit))
        bar.set_label(text.figure(units["target" if i else "input"], text.LABEL))
    panels[0].set_ylabel(with_unit("H", length_unit))
    if title:
        figure.suptitle(text.figure(title), fontsize=12)
    return figure


def draw_slice(
    panel: Any,
    values: np.ndarray,
    scale: tuple[float, float, str],
    place: Callable[[np.ndarray], np.ndarray] | None,
) -> tuple[Any, Any]:
    """(image, colour bar) of one slice [H, W].

    scale: lowest value, highest value, colours.   place: see `slices`; it has limits of its own.
    """
    low, high, colours = scale
    shown = values if place is None else place(values)
    low, high = (low, high) if place is None else limits(shown)
    drawn = panel.imshow(shown, vmin=low, vmax=high, cmap=colours, interpolation="nearest")
    bar = panel.figure.colorbar(drawn, ax=panel, fraction=0.046, pad=0.03, extend="both")
    if place is None:
        bar.formatter.set_powerlimits((-2, 3))
    else:
        places, labels = ticks(values, place, low, high)
        bar.set_ticks(places, labels=labels)
    return drawn, bar


def ticks(
    values: np.ndarray, place: Callable[[np.ndarray], np.ndarray], low: float, high: float
) -> tuple[list[float], list[str]]:
    """(places, labels) of round values on the scale `place`, from `low` to `high` of it, not closer
    than an eighth of its length.
    """
    values = values[np.isfinite(values)]
    largest = np.abs(values).max(initial=1e-12)
    tops = 10.0 ** np.arange(np.floor(np.log10(largest)) - 5, np.floor(np.log10(largest)) + 1)
    positive = np.concatenate([tops, 2 * tops, 5 * tops])
    # the roundest first: 0, powers of ten, then 2 and 5 times them
    candidates = [0.0, *tops[::-1], *-tops[::-1], *positive[len(tops) :], *-positive[len(tops) :]]
    chosen: dict[float, str] = {}
    for value in candidates:
        if not values.min(initial=0.0) <= value <= values.max(initial=0.0):
            continue
        at = float(place(np.array([value], np.float32))[0])
        apart = all(abs(at - other) >= (high - low) / 8 for other in chosen)
        if low <= at <= high and apart:
            chosen[at] = f"{value:g}"
    return sorted(chosen), [chosen[at] for at in sorted(chosen)]


def pdf(fields: Mapping[str, np.ndarray], unit: str = "", bins: int = 80) -> Figure:
    """Probability density of the voxel values; the entry "target" is drawn as the thick reference.

    fields: {label: values of any shape}.  The range is 0.1 to 99.9 per cent of the target.
    """
    low, high = limits(np.asarray(fields["target"]), 0.1)
    edges = np.linspace(low, high, bins + 1)
    figure = canvas(6.2, 4.4)
    panel = figure.subplots()
    others = [label for label in fields if label != "target"]
    for label, values in fields.items():
        values = np.asarray(values, np.float64).ravel()
        density = np.histogram(values, edges)[0] / max(values.size, 1) / np.diff(edges)
        density = np.where(density > 0, density, np.nan)
        if label == "target":
            line = {"color": TRUTH, "linewidth": 3.0}
        else:
            line = {**style(others.index(label)), "linewidth": 1.7}
        panel.plot(0.5 * (edges[1:] + edges[:-1]), density, label=text.figure(label), **line)
    panel.set_yscale("log")
    panel.set_xlabel(with_unit("value", unit))
    panel.set_ylabel("probability density")
    panel.grid(alpha=0.25)
    panel.legend(fontsize=9, frameon=False)
    return figure
