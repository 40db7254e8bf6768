"""The ablations of configs/pinn.py as a table and a picture: relative L2 over seeds, and what
refinement did to the residual.

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

from jaxvol.evaluation import sweep_points  # noqa: E402
from jaxvol.plots import figures
from jaxvol.runtime import atomic  # noqa: E402

PERCENTILES = tuple(f"train/net/residual_p{p}" for p in (75, 95, 99))


def groups(config: str, folder: str) -> dict[str, list[sweep_points.Point]]:
    """Factor -> its finished points, one per seed, in the order of sweep()."""
    found: dict[str, list[sweep_points.Point]] = {}
    unnamed = ("seed", "task.refine.every", "task.refine.cap")
    for one in sweep_points.load(config, (), Path(folder)):
        factor = ", ".join(
            f"{name.split('.', 1)[-1]}={value}"
            for name, value in one.params.items()
            if name not in unnamed
        )
        if sweep_points.is_done(one) and (one.workdir / "evaluation" / "metrics.json").exists():
            found.setdefault(factor or "as it is", []).append(one)
    return found


def error(one: sweep_points.Point) -> float:
    """Relative L2 on the grid."""
    return json.loads((one.workdir / "evaluation" / "metrics.json").read_text())["model"][
        "relative_l2"
    ]


def refinements(one: sweep_points.Point) -> list[str]:
    """'updates: points; 75th, 95th, 99th percentile of |residual|' before each refinement; empty
    without any.
    """
    rows: dict[int, dict[str, float]] = {}
    for row in csv.DictReader((one.workdir / "metrics.csv").open()):
        rows.setdefault(int(row["step"]), {})[row["tag"]] = float(row["value"])
    seen, last = [], None
    for step, row in sorted(rows.items()):
        now = [row[name] for name in PERCENTILES if name in row]
        if now and any(now) and now != last:
            seen.append(
                f"{step}: {row['train/net/points']:.0f} points; "
                + ", ".join(f"{v:.2g}" for v in now)
            )
            last = now
    return seen


def main(config: str, folder: str) -> None:
    """Print the table, write it and draw it."""
    found = groups(config, folder)
    errors = {factor: sorted(map(error, points)) for factor, points in found.items()}
    lines = ["| factor | relative L2, median | lowest to highest | seeds |", "|---|---|---|---|"]
    lines += [
        f"| {factor} | {statistics.median(v):.2e} | {v[0]:.2e} to {v[-1]:.2e} | {len(v)} |"
        for factor, v in sorted(errors.items(), key=lambda item: statistics.median(item[1]))
    ]
    lines += [
        f"\n{factor}, seed 0, update: points; 75th, 95th, 99th percentile of the residual before "
        "the last refinement\n" + "\n".join(told)
        for factor, points in found.items()
        if (told := refinements(points[0]))
    ]
    print("\n".join(lines))
    atomic.write_text(Path(folder) / "ablations.md", "\n".join(lines) + "\n")
    if not errors:
        return
    figure = figures.canvas(7.5, 1.0 + 0.27 * len(errors))
    panel, names = figure.subplots(), sorted(errors, key=lambda f: statistics.median(errors[f]))
    for row, name in enumerate(names):
        panel.plot(
            errors[name],
            [row] * len(errors[name]),
            "o",
            color=figures.COLOURS[0],
            alpha=0.5,
            markersize=5,
        )
        panel.plot(statistics.median(errors[name]), row, "|", color="black", markersize=12)
    base = next(iter(found))  # sweep() begins with what the config has
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
    panel.set_xlim(
        0.8 * min(min(v) for v in errors.values()), 1.25 * max(max(v) for v in errors.values())
    )
    panel.grid(axis="x", alpha=0.25)
    figures.save(figure, Path(folder) / "ablations.png")


if __name__ == "__main__":
    os.chdir(ROOT)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/pinn.py:ablation")
    parser.add_argument("--folder", default="runs/sweep-pinn-ablation")
    main(**vars(parser.parse_args()))
