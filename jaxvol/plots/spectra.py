"""Pictures of power spectra: P(k), the transfer function T(k) and the correlation r(k)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxvol.plots.figures import TRUTH, canvas, style
from jaxvol.runtime import text


def draw(spectra: Mapping[str, Mapping[str, Any]], length_unit: str = "Mpc/h") -> Figure:
    """P(k), T(k) = sqrt(P_pred / P_true) and r(k) of the model and the baselines.

    spectra: {label: {"k", "T", "r", "modes", "T_std", "r_std"[, "P_pred", "P_true"]}}.  Of several
             channels, [K, C], the first is drawn.

    Bands are one standard deviation over boxes; numbers of modes per bin stand on the upper axes.
    A baseline without spectrum (the mean: no power) is left out.  An entry "window" other than
    "none" (boxes that are not periodic were tapered) is named in the title.
    """
    drawn = {label: series(of_label) for label, of_label in spectra.items()}
    drawn = {
        label: s
        for label, s in drawn.items()
        if np.isfinite(s["r"]).any() and np.nanmax(np.abs(s["r"])) > 0
    }
    tapers = sorted({s["window"] for s in spectra.values() if "window" in s} - {"none"})
    power = any("P_pred" in s and "P_true" in s for s in drawn.values())
    figure = canvas(13.5 if power else 9.5, 4.2)
    panels = list(figure.subplots(1, 3 if power else 2))
    transfer, correlation = panels[-2:]
    if power:
        draw_power(panels[0], drawn, length_unit)
    draw_ratio(transfer, drawn, "T", "transfer T(k) = √(P_pred / P_true)", length_unit)
    draw_ratio(correlation, drawn, "r", "correlation r(k)", length_unit)
    top = [np.nanmax(s["T"]) for s in drawn.values() if np.isfinite(s["T"]).any()]
    transfer.set_ylim(0, min(max([1.1, *[1.1 * t for t in top]]), 2.5))
    correlation.set_ylim(min([-0.05, *[np.nanmin(s["r"]) for s in drawn.values()]]), 1.05)
    correlation.legend(fontsize=9, loc="best", frameon=False)
    for panel in panels if drawn else ():  # after the axes are logarithmic
        write_modes(panel, next(iter(drawn.values())))
    if tapers:
        names = ", ".join(tapers)
        figure.suptitle(f"boxes are not periodic: tapered with a {names} window", fontsize=10)
    return figure


def draw_ratio(
    panel: Any,
    drawn: Mapping[str, Mapping[str, np.ndarray]],
    name: str,
    head: str,
    length_unit: str,
) -> None:
    """T(k) or r(k) (`name`) of every prediction, with its scatter over boxes."""
    for i, (label, s) in enumerate(drawn.items()):
        panel.plot(s["k"], s[name], label=text.figure(label), linewidth=1.8, **style(i))
        if f"{name}_std" in s:
            low, high = s[name] - s[f"{name}_std"], s[name] + s[f"{name}_std"]
            colour = style(i)["color"]
            panel.fill_between(s["k"], low, high, color=colour, alpha=0.18, linewidth=0)
    panel.axhline(1.0, color=TRUTH, linewidth=0.8)
    panel.set_xscale("log")
    panel.set_title(head, fontsize=11)
    panel.set_xlabel(wavenumber(length_unit))
    wavenumber_ticks(panel, next(iter(drawn.values()))["k"] if drawn else np.ones(1))
    panel.grid(alpha=0.25)


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
    for i, (label, s) in enumerate(drawn.items()):
        if "P_pred" in s:
            power = np.where(s["P_pred"] > 0, s["P_pred"], np.nan)
            panel.loglog(s["k"], power, label=text.figure(label), linewidth=1.6, **style(i))
    panel.set_title("power spectrum P(k)", fontsize=11)
    panel.set_xlabel(wavenumber(length_unit))
    panel.set_ylabel(f"P(k)  [({text.figure(length_unit, text.UNIT)})³]" if length_unit else "P(k)")
    wavenumber_ticks(panel, first["k"])
    panel.grid(alpha=0.25)
    panel.legend(fontsize=9, frameon=False)


def write_modes(panel: Any, s: Mapping[str, np.ndarray]) -> None:
    """Numbers of modes on an upper axis, at bins far enough apart to be legible."""
    bins, last = [], -np.inf
    for i, k in enumerate(np.log10(s["k"])):
        if k - last > 0.16 * np.ptp(np.log10(s["k"])):
            bins.append(i)
            last = k
    upper = panel.secondary_xaxis(1.0)
    upper.set_xticks(
        [float(s["k"][i]) for i in bins], [f"{s['modes'][i]:.0f}" for i in bins], fontsize=8
    )
    upper.set_xticks([], minor=True)
    upper.set_xlabel("modes in the bin", fontsize=8)


def wavenumber_ticks(panel: Any, k: np.ndarray) -> None:
    """Plain numbers at 1, 2 and 5 times powers of ten.

    A logarithmic axis over one decade has too few labels of its own.
    """
    ticks = [
        m * 10.0**e
        for e in range(-6, 7)
        for m in (1, 2, 5)
        if 0.8 * k.min() <= m * 10.0**e <= 1.25 * k.max()
    ]
    panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
    panel.set_xticks([], minor=True)


def wavenumber(length_unit: str) -> str:
    """Label of a wavenumber axis for lengths in `length_unit`."""
    written = {"Mpc/h": "k  [h/Mpc]", "": "k"}
    return (
        written[length_unit]
        if length_unit in written
        else f"k  [1/{text.figure(length_unit, text.UNIT)}]"
    )
