"""Pictures of fields over coordinates: exact solution, network, error and residual.

Where there is time, they are animated.  x [*grid, d] are the coordinates of a grid in the order of
`coordinates`, the others [*grid, m] with one channel per field; axes of length one come first and
are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure

from jaxvol.plots.figures import COLOURS, TRUTH, canvas, limits, style
from jaxvol.runtime import text

FRAMES = 40  # of an animation, at most
RATE = 10  # frames per second
HEADS = ("exact", "network", "network − exact")


class Solution(NamedTuple):
    """What is drawn; `exact` and `residual`, which `remainder` is the name of, may be None."""

    x: np.ndarray
    exact: np.ndarray | None
    network: np.ndarray
    residual: np.ndarray | None
    coordinates: Sequence[str]
    fields: Sequence[str]
    remainder: str = "residual of the equation"

    def squeezed(self) -> Solution:
        """Without the axes of length one."""
        d = len(self.coordinates)
        flat = lambda v: (
            None
            if v is None
            else np.asarray(v, np.float64).reshape(*v.shape[-1 - d : -1], v.shape[-1])
        )
        return self._replace(
            x=flat(self.x),
            exact=flat(self.exact),
            network=flat(self.network),
            residual=flat(self.residual),
        )

    def at(self, axis: int, index: int) -> Solution:
        """One slice across a coordinate."""
        cut = lambda v: None if v is None else np.take(v, index, axis)
        left = [i for i in range(len(self.coordinates)) if i != axis]
        return self._replace(
            x=cut(self.x)[..., left],
            exact=cut(self.exact),
            network=cut(self.network),
            residual=cut(self.residual),
            coordinates=[self.coordinates[i] for i in left],
        )

    def columns(self, i: int) -> list[tuple[str, np.ndarray]]:
        """(heading, values) of field i: exact, network, error, residual, those that there are."""
        name, drawn = text.figure(self.fields[i], text.LABEL), [("network", self.network)]
        if self.exact is not None:
            drawn = list(zip(HEADS, (self.exact, self.network, self.network - self.exact)))
        columns = [(f"{name}, {head}", values[..., i]) for head, values in drawn]
        if self.residual is not None and i < self.residual.shape[-1]:
            head = f"{self.remainder} {i + 1}" if len(self.fields) > 1 else self.remainder
            columns.append((head, self.residual[..., i]))
        return columns


def draw(solution: Solution, title: str = "") -> Figure:
    """Curves over one coordinate, pictures over two, and of three the middle slice of the last."""
    solution = solution.squeezed()
    if len(solution.coordinates) == 3:
        index = solution.x.shape[2] // 2
        name, value = solution.coordinates[2], solution.x[0, 0, index, 2]
        return draw(solution.at(2, index), f"{title}, {name} = {value:.3g}".strip(", "))
    return curves(solution, title) if len(solution.coordinates) == 1 else pictures(solution, title)


def curves(solution: Solution, title: str) -> Figure:
    """One coordinate: a column per field."""
    x, errors = solution.x[:, 0], solution.exact is not None
    below = errors + (solution.residual is not None)
    figure = canvas(7.0 * len(solution.fields), 3.2 + 1.5 * below)
    rows, heights = 1 + below, (2.2, *[1] * below)
    panels = figure.subplots(
        rows, len(solution.fields), sharex=True, squeeze=False, height_ratios=heights
    )
    for i, name in enumerate(solution.fields):
        top, network = panels[0, i], solution.network[:, i]
        if errors:
            top.plot(x, solution.exact[:, i], color=TRUTH, linewidth=3.0, label="exact")
            panels[1, i].plot(x, network - solution.exact[:, i], color=COLOURS[1], linewidth=1.2)
            panels[1, i].set_ylabel("error")
        top.plot(x, network, color=COLOURS[0], linestyle="--", linewidth=1.6, label="network")
        top.set_ylabel(text.figure(name, text.LABEL))
        top.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, fontsize=9, frameon=False)
    for i in range(solution.residual.shape[-1] if solution.residual is not None else 0):
        panels[below, 0].plot(x, solution.residual[:, i], color=COLOURS[2 + i], linewidth=1.2)
        panels[below, 0].set_ylabel("residual")
    for panel in panels[1:].ravel():
        panel.axhline(0, color=TRUTH, linewidth=0.6)
        panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for panel in panels[-1]:
        panel.set_xlabel(text.figure(solution.coordinates[0], text.LABEL))
    figure.suptitle(text.figure(title), fontsize=12)
    return figure


def across(coordinates: Sequence[str]) -> tuple[int, int]:
    """(axis to the right, axis upwards): time to the right."""
    return (1, 0) if coordinates[1] == "t" else (0, 1)


def pictures(solution: Solution, title: str) -> Figure:
    """Two coordinates: a row per field; exact and network share one scale."""
    right, up = across(solution.coordinates)
    columns, fields = len(solution.columns(0)), 1 if solution.exact is None else 2
    figure = canvas(3.7 * columns, 0.7 + 3.0 * len(solution.fields))
    panels = figure.subplots(len(solution.fields), columns, sharex=True, sharey=True, squeeze=False)
    extent = [f(solution.x[..., axis]) for axis in (right, up) for f in (np.min, np.max)]
    for i in range(len(solution.fields)):
        parts = solution.columns(i)
        scale = limits(np.stack([values for _, values in parts[:fields]]), 0.0)
        for column, (panel, (head, values)) in enumerate(zip(panels[i], parts)):
            reach, of_field = max(map(abs, limits(values))), column < fields
            low, high = scale if of_field else (-reach, reach)
            drawn = panel.imshow(
                values.T if up == 1 else values,
                vmin=low,
                vmax=high,
                cmap="viridis" if of_field else "RdBu_r",
                extent=extent,
                origin="lower",
                aspect="auto",
                interpolation="nearest",
            )
            bar = figure.colorbar(
                drawn, ax=panel, pad=0.02, extend="neither" if of_field else "both"
            )
            bar.formatter.set_powerlimits((-2, 3))
            panel.set_title(head, fontsize=10)
        panels[i, 0].set_ylabel(text.figure(solution.coordinates[up], text.LABEL))
    for panel in panels[-1]:
        panel.set_xlabel(text.figure(solution.coordinates[right], text.LABEL))
    figure.suptitle(text.figure(title), fontsize=12)
    return figure


def history(logged: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Terms of the loss as they were trained on, and the error on the grid, over updates.

    logged: {tag: (steps, values)}, see jaxvol/plots/curves.py.
    """
    readings = ("lr", "grad_norm", "clipped_norm", "clipped_fraction", "update_norm", "points")
    terms = [
        t
        for t in sorted(logged)
        if t.startswith("train/net/")
        and t.split("/")[-1] not in readings
        and not t.split("/")[-1].startswith(("weight_", "residual_"))
    ]
    # with one term the sum says nothing new
    terms = [t for t in terms if len(terms) > 2 or not t.endswith("/loss")]
    heads = {"weighted terms of the loss": terms}
    if "val/relative_l2" in logged:
        heads["relative L2 error on the grid"] = ["val/relative_l2"]
    figure = canvas(5.25 * len(heads), 4.0)
    panels = figure.subplots(1, len(heads), sharex=True, squeeze=False)[0]
    for panel, (head, tags) in zip(panels, heads.items()):
        for i, tag in enumerate(tags):
            marker = "." if len(logged[tag][0]) < 40 else None
            label = text.figure(tag.split("/")[-1])
            panel.plot(*logged[tag], linewidth=1.4, marker=marker, label=label, **style(i))
        panel.set_title(head, fontsize=11)
        panel.set(yscale="log", xlabel="update")
        panel.grid(alpha=0.25)
    panels[0].legend(fontsize=9)
    return figure


def animate(solution: Solution, path: Path, title: str = "") -> bool:
    """Write a GIF over time: curves of one coordinate in space, pictures of two.

    Returns False, and writes nothing, where there is no time or nothing exact to compare with.
    """
    solution = solution.squeezed()
    if "t" not in solution.coordinates or len(solution.coordinates) == 1 or solution.exact is None:
        return False
    time = list(solution.coordinates).index("t")
    steps = np.unique(np.linspace(0, solution.x.shape[time] - 1, FRAMES).round().astype(int))
    frames = [
        (float(np.take(solution.x, i, time)[..., time].flat[0]), solution.at(time, i))
        for i in steps
    ]
    figure = canvas(6.4, 4.6) if len(solution.coordinates) == 2 else canvas(10.5, 3.6)
    show = moving_curves if len(solution.coordinates) == 2 else moving_pictures
    update = show(figure, [f for _, f in frames])

    def one(i: int) -> list:
        title_now = f"{title}, t = {frames[i][0]:.2f}".strip(", ")
        figure.suptitle(text.figure(title_now), fontsize=12)
        update(i)
        return []

    path.parent.mkdir(parents=True, exist_ok=True)
    FuncAnimation(figure, one, frames=len(frames), blit=False).save(
        str(path), writer=PillowWriter(fps=RATE), dpi=80
    )
    return True


def moving_curves(figure: Figure, frames: list[Solution]):
    """Panels of the first field, scales that hold for all times; returns what shows frame i."""
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    x = frames[0].x[:, 0]
    values = np.stack([np.stack([f.exact[:, 0], f.network[:, 0]]) for f in frames])
    error = values[:, 1] - values[:, 0]
    (exact,) = upper.plot(x, values[0, 0], color=TRUTH, linewidth=3.0, label="exact")
    (network,) = upper.plot(
        x, values[0, 1], color=COLOURS[0], linestyle="--", linewidth=1.6, label="network"
    )
    (wrong,) = lower.plot(x, error[0], color=COLOURS[1], linewidth=1.2)
    pad = 0.06 * np.ptp(values) or 1.0
    upper.set(
        ylim=(values.min() - pad, values.max() + pad),
        ylabel=text.figure(frames[0].fields[0], text.LABEL),
    )
    lower.set(
        ylim=(-1.05 * np.abs(error).max() or -1.0, 1.05 * np.abs(error).max() or 1.0),
        ylabel="network − exact",
        xlabel=text.figure(frames[0].coordinates[0], text.LABEL),
    )
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    upper.legend(loc="upper right", fontsize=9)

    def show(i: int) -> None:
        exact.set_ydata(values[i, 0])
        network.set_ydata(values[i, 1])
        wrong.set_ydata(error[i])

    return show


def moving_pictures(figure: Figure, frames: list[Solution]):
    """The same for two coordinates in space."""
    exact, network = (
        np.stack([getattr(f, name)[..., 0] for f in frames]) for name in ("exact", "network")
    )
    shared, reach = limits(np.stack([exact, network]), 0.0), np.abs(network - exact).max() or 1.0
    extent = [f(frames[0].x[..., axis]) for axis in (0, 1) for f in (np.min, np.max)]
    columns = (
        (exact, shared, "viridis"),
        (network, shared, "viridis"),
        (network - exact, (-reach, reach), "RdBu_r"),
    )
    drawn = []
    for panel, (values, (low, high), colours), head in zip(
        figure.subplots(1, 3, sharey=True), columns, HEADS
    ):
        drawn.append(
            panel.imshow(
                values[0].T,
                vmin=low,
                vmax=high,
                cmap=colours,
                extent=extent,
                origin="lower",
                interpolation="nearest",
            )
        )
        figure.colorbar(drawn[-1], ax=panel, fraction=0.046, pad=0.03).formatter.set_powerlimits(
            (-2, 3)
        )
        name = text.figure(frames[0].fields[0], text.LABEL)
        panel.set(title=f"{name}, {head}", xlabel=text.figure(frames[0].coordinates[0], text.LABEL))
    figure.axes[0].set_ylabel(text.figure(frames[0].coordinates[1], text.LABEL))

    def show(i: int) -> None:
        for picture, (values, _, _) in zip(drawn, columns):
            picture.set_data(values[i].T)

    return show
