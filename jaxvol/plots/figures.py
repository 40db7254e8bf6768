"""Pictures of volumes, spectra and training, as matplotlib Figures without global state.

Every function takes arrays and returns a Figure; `save` writes it, `image` turns it into pixels for
TensorBoard.
Colours: Okabe and Ito (2008), told apart by colour-blind readers; lines differ in dash as well.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
TRUTH = "#444444"


def slices(
    input: np.ndarray,
    target: np.ndarray,
    prediction: np.ndarray,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    length_unit: str = "",
    units: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Middle slices along depth of input, target, prediction and residual (prediction - target).

    input: [D, H, W] in physical units; target, prediction: [D, H, W].  Target and prediction share
           one colour scale (0.5 to
    99.5 per cent of both), the residual has a symmetric one.  spacing: voxel size along D, H, W in
    `length_unit`.
    units: of the values, {"input": ..., "target": ...}.
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
    panels = figure.subplots(1, 4, sharey=True)
    for i, (panel, values, (vmin, vmax, colours), head) in enumerate(
        zip(panels, middle, scales, heads)
    ):
        drawn = panel.imshow(
            values, vmin=vmin, vmax=vmax, cmap=colours, extent=extent, interpolation="nearest"
        )
        panel.set_title(head, fontsize=11)
        panel.set_xlabel(named("W", length_unit))
        bar = figure.colorbar(drawn, ax=panel, fraction=0.046, pad=0.03, extend="both")
        bar.set_label(units["input"] if i == 0 else units["target"])
        bar.formatter.set_powerlimits((-2, 3))
    panels[0].set_ylabel(named("H", length_unit))
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def spectra(found: Mapping[str, Mapping[str, Any]], length_unit: str = "Mpc/h") -> Figure:
    """P(k), T(k) = sqrt(P_pred / P_true) and r(k) of the model and the baselines, bands of one
    standard deviation over boxes.

    found: {label: {"k", "T", "r", "modes", "T_std", "r_std"[, "P_pred", "P_true"]}}.  A baseline
           without spectrum (the
    mean: no power) is left out.  Numbers of modes per bin stand on the upper axes.  Of several
          channels, [K, C], the first is
    drawn.  An entry "window" other than "none" (boxes that are not periodic were tapered) is named
    in the title.
    """
    drawn = {who: series(s) for who, s in found.items()}
    drawn = {
        who: s
        for who, s in drawn.items()
        if np.isfinite(s["r"]).any() and np.nanmax(np.abs(s["r"])) > 0
    }
    tapers = sorted({s["window"] for s in found.values() if "window" in s} - {"none"})
    power = any("P_pred" in s and "P_true" in s for s in drawn.values())
    figure = canvas(13.5 if power else 9.5, 4.2)
    panels = list(np.atleast_1d(figure.subplots(1, 3 if power else 2)))
    everywhere = tuple(panels)
    if power:
        draw_power(panels.pop(0), drawn, length_unit)
    for panel, name, head in zip(
        panels, ("T", "r"), ("transfer T(k) = √(P_pred / P_true)", "correlation r(k)")
    ):
        for i, (who, s) in enumerate(drawn.items()):
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
            panel.plot(s["k"], s[name], label=who, linewidth=1.8, **style)
            if f"{name}_std" in s:
                panel.fill_between(
                    s["k"],
                    s[name] - s[f"{name}_std"],
                    s[name] + s[f"{name}_std"],
                    color=style["color"],
                    alpha=0.18,
                    linewidth=0,
                )
        panel.axhline(1.0, color=TRUTH, linewidth=0.8)
        panel.set_xscale("log")
        panel.set_title(head, fontsize=11)
        panel.set_xlabel(wavenumber(length_unit))
        wavenumber_ticks(panel, next(iter(drawn.values()))["k"] if drawn else np.ones(1))
        panel.grid(alpha=0.25)
    top = [np.nanmax(s["T"]) for s in drawn.values() if np.isfinite(s["T"]).any()]
    panels[0].set_ylim(0, min(max([1.1, *[1.1 * t for t in top]]), 2.5))
    panels[1].set_ylim(min([-0.05, *[np.nanmin(s["r"]) for s in drawn.values()]]), 1.05)
    panels[1].legend(fontsize=9, loc="best", frameon=False)
    for panel in everywhere if drawn else ():  # after the axes are logarithmic
        write_modes(panel, next(iter(drawn.values())))
    if tapers:
        figure.suptitle(
            f"boxes are not periodic: tapered with a {', '.join(tapers)} window", fontsize=10
        )
    return figure


def series(spectra: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The entries that have one value per bin, as float64 [K]; of [K, C] the first channel."""
    bins = len(spectra["k"])
    arrays = {
        k: np.asarray(v, np.float64)
        for k, v in spectra.items()
        if not isinstance(v, str) and np.shape(v)[:1] == (bins,)
    }
    return {k: v.reshape(bins, -1)[:, 0] for k, v in arrays.items()}


def draw_power(panel: Any, drawn: Mapping[str, Mapping[str, np.ndarray]], length_unit: str) -> None:
    """P(k) of the truth and of every prediction, on two logarithmic axes."""
    first = next(s for s in drawn.values() if "P_true" in s)
    panel.loglog(first["k"], first["P_true"], color=TRUTH, linewidth=2.6, label="target")
    for i, (who, s) in enumerate(drawn.items()):
        if "P_pred" in s:
            panel.loglog(
                s["k"],
                np.where(s["P_pred"] > 0, s["P_pred"], np.nan),
                label=who,
                linewidth=1.6,
                color=COLOURS[i % len(COLOURS)],
                linestyle=DASHES[i % len(DASHES)],
            )
    panel.set_title("power spectrum P(k)", fontsize=11)
    panel.set_xlabel(wavenumber(length_unit))
    panel.set_ylabel(f"P(k)  [({length_unit})³]" if length_unit else "P(k)")
    wavenumber_ticks(panel, first["k"])
    panel.grid(alpha=0.25)
    panel.legend(fontsize=9, frameon=False)


def write_modes(panel: Any, s: Mapping[str, np.ndarray]) -> None:
    """Numbers of modes on an upper axis, at bins far enough apart to be legible."""
    shown, last = [], -np.inf
    for i, k in enumerate(np.log10(s["k"])):
        if k - last > 0.16 * np.ptp(np.log10(s["k"])):
            shown.append(i)
            last = k
    upper = panel.secondary_xaxis(1.0)
    upper.set_xticks(
        [float(s["k"][i]) for i in shown], [f"{s['modes'][i]:.0f}" for i in shown], fontsize=8
    )
    upper.set_xticks([], minor=True)
    upper.set_xlabel("modes in the bin", fontsize=8)


def wavenumber_ticks(panel: Any, k: np.ndarray) -> None:
    """Plain numbers at 1, 2, 5 times powers of ten: a log axis over one decade has too few labels
    of its own.
    """
    ticks = [
        m * 10.0**e
        for e in range(-6, 7)
        for m in (1, 2, 5)
        if 0.8 * k.min() <= m * 10.0**e <= 1.25 * k.max()
    ]
    panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
    panel.set_xticks([], minor=True)


def pdf(fields: Mapping[str, np.ndarray], unit: str = "", bins: int = 80) -> Figure:
    """Probability density of the voxel values; the entry "target" is drawn as the thick reference.

    fields: {label: values of any shape}.  The range is 0.1 to 99.9 per cent of the target.
    """
    low, high = limits(np.asarray(fields["target"]), 0.1)
    edges = np.linspace(low, high, bins + 1)
    figure = canvas(6.2, 4.4)
    panel = figure.subplots()
    others = [who for who in fields if who != "target"]
    for who, values in fields.items():
        values = np.asarray(values, np.float64).ravel()
        density = np.histogram(values, edges)[0] / max(values.size, 1) / np.diff(edges)
        i = others.index(who) if who in others else 0
        style = (
            {"color": TRUTH, "linewidth": 3.0}
            if who == "target"
            else {
                "color": COLOURS[i % len(COLOURS)],
                "linestyle": DASHES[i % len(DASHES)],
                "linewidth": 1.7,
            }
        )
        panel.plot(
            0.5 * (edges[1:] + edges[:-1]),
            np.where(density > 0, density, np.nan),
            label=who,
            **style,
        )
    panel.set_yscale("log")
    panel.set_xlabel(named("value", unit))
    panel.set_ylabel("probability density")
    panel.grid(alpha=0.25)
    panel.legend(fontsize=9, frameon=False)
    return figure


def read_curves(path: str | os.PathLike) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """metrics.csv in long format (step, tag, value) -> {tag: (steps, values)}; a half-written last
    line is skipped.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                curves.setdefault(row["tag"], []).append((float(row["step"]), float(row["value"])))
            except (TypeError, ValueError):
                continue
    return {
        tag: (np.array([p[0] for p in points]), np.array([p[1] for p in points]))
        for tag, points in curves.items()
    }


def curves(found: Mapping[str, tuple[np.ndarray, np.ndarray]], metric: str = "vrmse") -> Figure:
    """Training losses, the validation metric, learning rates and gradient norms against the update
    number.

    found: what `read_curves` returned.
    Tags: train/<group>/<term>, train/<group>/{lr, grad_norm, clipped_norm, update_norm},
          val/<metric>.
    """
    kinds = {"lr": [], "grad_norm": [], "clipped_norm": [], "update_norm": [], "terms": []}
    for tag in sorted(found):
        parts = tag.split("/")
        if parts[0] == "train" and len(parts) >= 3:
            kinds[parts[-1] if parts[-1] in kinds else "terms"].append(tag)
    validation = [t for t in found if t == f"val/{metric}"] or sorted(
        t for t in found if t.startswith("val/")
    )[:1]
    head = f"validation {validation[0].removeprefix('val/')}" if validation else "validation"
    panels = [
        ("training loss", kinds["terms"], True),
        (head, validation, False),
        ("learning rate", kinds["lr"], False),
        (
            "norms of gradient and update",
            [t for k in ("grad_norm", "clipped_norm", "update_norm") for t in kinds[k]],
            True,
        ),
    ]
    figure = canvas(11.5, 6.6)
    for panel, (head, tags, logarithmic) in zip(figure.subplots(2, 2).ravel(), panels):
        for i, tag in enumerate(tags):
            steps, values = found[tag]
            panel.plot(
                steps,
                values,
                color=COLOURS[i % len(COLOURS)],
                linestyle=DASHES[i % len(DASHES)],
                marker="." if len(steps) < 40 else None,
                linewidth=1.4,
                label=tag.removeprefix("train/"),
            )
        positive = bool(tags) and all(
            np.nanmin(found[t][1]) > 0 for t in tags if np.isfinite(found[t][1]).any()
        )
        if logarithmic and positive:
            panel.set_yscale("log")
        panel.set_title(head, fontsize=11, loc="center" if len(tags) > 3 else "left")
        panel.set_xlabel("update")
        panel.grid(alpha=0.25)
        if len(tags) > 3:
            panel.legend(fontsize=8)
        # above the frame, where no curve can run through it
        elif tags:
            panel.legend(
                fontsize=8,
                frameon=False,
                loc="lower right",
                bbox_to_anchor=(1.0, 0.985),
                ncol=len(tags),
            )
        else:
            panel.text(
                0.5,
                0.5,
                "not logged",
                ha="center",
                va="center",
                transform=panel.transAxes,
                color=TRUTH,
            )
    return figure


def comparison(
    values: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
) -> Figure:
    """One panel of horizontal bars per metric, one bar per model or baseline, with the number at
    its end.

    values, errors: {label: {metric: number}}; an error (scatter over seeds) may be missing.
    """
    names = list(values)
    longest = max(map(len, names))
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
            text = f"{height:.3g}" if np.isfinite(height) else "-"
            end = np.nan_to_num(height) + np.nan_to_num(spread[i])
            panel.text(max(end, 0.0) + 0.02 * (high - low), i, text, va="center", fontsize=9)
        panel.set_xlim(low * 1.1, high + 0.28 * (high - low))
        panel.set_title(column, fontsize=11)
        panel.set_yticks(range(len(names)), names)
        panel.tick_params(axis="y", length=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    return figure


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


def named(axis: str, unit: str) -> str:
    """Axis label with its unit."""
    return f"{axis}  [{unit}]" if unit else axis


def wavenumber(length_unit: str) -> str:
    """Label of a wavenumber axis for lengths in `length_unit`."""
    return (
        {"Mpc/h": "k  [h/Mpc]", "": "k"}[length_unit]
        if length_unit in ("Mpc/h", "")
        else f"k  [1/{length_unit}]"
    )


def canvas(width: float, height: float, layout: str = "constrained") -> Figure:
    """An empty figure that arranges its own labels; "compressed" suits pictures of a
    fixed aspect.
    """
    figure = Figure(figsize=(width, height), dpi=130, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def image(figure: Figure) -> np.ndarray:
    """Pixels of a figure, [height, width, 3] uint8."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a PNG in one step; missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    figure.savefig(partial, format="png")
    os.replace(partial, path)
    return path
