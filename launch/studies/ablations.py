"""The ablations of configs/pinn.py as a table and a picture.

Relative L2 of every factor over its seeds, and what refinement did to the residual.

    python -m jaxvol.main --config=configs/pinn.py:ablation --mode=sweep   # trains them
    python launch/studies/ablations.py                                     # reads what there is

The second command writes ablations.md and ablations.png into the sweep's folder.  Of another sweep:

    python launch/studies/ablations.py --config=configs/pinn.py:ablation-elliptic \\
        --folder=runs/sweep-pinn-ablation-elliptic
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from jaxvol.evaluation import sweep_points
from jaxvol.plots import figures
from jaxvol.runtime import atomic

PERCENTILES = tuple(f"train/net/residual_p{p}" for p in (75, 95, 99))


def groups(config: str, folder: str) -> dict[str, list[sweep_points.Point]]:
    """Factor -> its finished points, one per seed, in the order of sweep()."""
    finished: dict[str, list[sweep_points.Point]] = {}
    unnamed = ("seed", "task.refine.every", "task.refine.cap")
    for one in sweep_points.load(config, (), Path(folder)):
        factor = ", ".join(
            f"{name.split('.', 1)[-1]}={value}"
            for name, value in one.params.items()
            if name not in unnamed
        )
        if sweep_points.is_done(one) and (one.workdir / "evaluation" / "metrics.json").exists():
            finished.setdefault(factor or "as it is", []).append(one)
    return finished


def error(one: sweep_points.Point) -> float:
    """Relative L2 on the grid."""
    scores = json.loads((one.workdir / "evaluation" / "metrics.json").read_text())
    return scores["model"]["relative_l2"]


def refinements(one: sweep_points.Point) -> list[str]:
    """One line per refinement: 'updates: points; percentiles 75, 95, 99 of |residual|'.

    Empty where nothing was refined.
    """
    rows: dict[int, dict[str, float]] = {}
    for row in csv.DictReader((one.workdir / "metrics.csv").open()):
        rows.setdefault(int(row["step"]), {})[row["tag"]] = float(row["value"])
    lines, last = [], None
    for step, row in sorted(rows.items()):
        now = [row[name] for name in PERCENTILES if name in row]
        if now and any(now) and now != last:
            lines.append(
                f"{step}: {row['train/net/points']:.0f} points; "
                + ", ".join(f"{v:.2g}" for v in now)
            )
            last = now
    return lines


def table(points: dict[str, list[sweep_points.Point]], errors: dict[str, list[float]]) -> str:
    """Markdown: one row per factor, best first, and the refinements of those that have any."""
    lines = ["| factor | relative L2, median | lowest to highest | seeds |", "|---|---|---|---|"]
    for factor in ranked(errors):
        v = errors[factor]
        median = statistics.median(v)
        lines.append(f"| {factor} | {median:.2e} | {v[0]:.2e} to {v[-1]:.2e} | {len(v)} |")
    for factor, of_factor in points.items():
        steps = refinements(of_factor[0])
        if steps:
            lines.append(
                f"\n{factor}, seed 0, update: points; 75th, 95th, 99th percentile of the residual "
                "before the last refinement"
            )
            lines += steps
    return "\n".join(lines)


def ranked(errors: dict[str, list[float]]) -> list[str]:
    """Factors by the median of their errors."""
    return sorted(errors, key=lambda factor: statistics.median(errors[factor]))


def draw(errors: dict[str, list[float]]):
    """Every run as a dot, and the median of each factor as a bar."""
    figure = figures.canvas(7.5, 1.0 + 0.27 * len(errors))
    panel, names = figure.subplots(), ranked(errors)
    for row, name in enumerate(names):
        dots = {"color": figures.COLOURS[0], "alpha": 0.5, "markersize": 5}
        panel.plot(errors[name], [row] * len(errors[name]), "o", **dots)
        panel.plot(statistics.median(errors[name]), row, "|", color="black", markersize=12)
    base = next(iter(errors))  # sweep() begins with what the config has
    panel.axvline(
        statistics.median(errors[base]),
        color=figures.TRUTH,
        linewidth=0.9,
        linestyle="--",
        label=f"{base}, as in the config",
    )
    panel.legend(loc="lower left", fontsize=9)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set(xscale="log", xlabel="relative L2 error on the grid: every seed, and their median")
    ticks = [m * 10.0**e for e in range(-8, 1) for m in (1, 2, 5)]
    panel.set_xticks(ticks, [f"{tick:.0e}".replace("e-0", "e-") for tick in ticks])
    panel.set_xticks([], minor=True)
    values = [error for of_factor in errors.values() for error in of_factor]
    panel.set_xlim(0.8 * min(values), 1.25 * max(values))
    panel.grid(axis="x", alpha=0.25)
    return figure


def main(config: str, folder: str) -> None:
    """Print the table, write it and draw it."""
    points = groups(config, folder)
    errors = {factor: sorted(map(error, of_factor)) for factor, of_factor in points.items()}
    text = table(points, errors)
    print(text)
    atomic.write_text(Path(folder) / "ablations.md", text + "\n")
    if errors:
        figures.save(draw(errors), Path(folder) / "ablations.png")


if __name__ == "__main__":
    os.chdir(ROOT)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/pinn.py:ablation")
    parser.add_argument("--folder", default="runs/sweep-pinn-ablation")
    main(**vars(parser.parse_args()))
