"""Pixels per second and error at equal time, for mini-batches of pixels of a coordinate network.

    python launch/studies/fringe_points.py --seconds=45

The network is that of configs/interferometry.py:pinn-adam.  Every setting is timed for 1,000
updates, gets as many as fit into the seconds at that speed (shares of the phases as in the config),
and is scored on the grid.  The seconds of the table are those that the updates took in the end,
compilation apart.  A set is an independent draw of pixels: 4 sets of 256 are statistically 1 set of
1,024.
"""

import argparse
import csv
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from jaxvol import main
from jaxvol.config import experiments

interferometry = experiments.load("interferometry")

# pixels per update, in so many sets, precision
SETTINGS = (
    (256, 1, "f32"),
    (256, 4, "f32"),
    (1024, 1, "f32"),
    (1024, 4, "f32"),
    (1024, 4, "bf16"),
    (4096, 1, "f32"),
    (4096, 4, "f32"),
    (4096, 4, "bf16"),
)


def config_of(points: int, sets: int, precision: str, steps: tuple[int, ...]):
    """The variant "pinn-adam" with so many pixels per update and updates per phase.

    It makes no pictures and runs no checks.
    """
    config = interferometry.get_config("pinn-adam")
    config.precision = precision
    config.data.points.data = points // sets
    config.data.points.interior = max(points // sets // 4, 1)
    config.batch_size = sets
    interferometry.lengths(config, *steps)
    config.optimizer.schedule.warmup_steps = min(50, min(steps) // 2)
    config.preflight.run, config.evaluate.figures, config.log_every = False, False, 25
    config.evaluate.every = config.checkpoint.every = config.total_steps
    return config.lock()


def trained(config) -> tuple[dict, float, float]:
    """(scores, updates per second, seconds that all updates take at that rate).

    The rate is the median over the rows of the log, which leaves out compilation.
    """
    folder = Path(tempfile.mkdtemp())
    try:
        if main.do_train(config, folder):
            raise SystemExit("the training did not finish")
        with open(folder / "perf.csv", newline="") as file:
            rate = statistics.median(
                [float(row[2]) for row in csv.reader(file) if row[1] == "perf/steps_per_sec"]
            )
        scores = json.loads((folder / "evaluation/metrics.json").read_text())
        return scores, rate, config.total_steps / rate
    finally:
        shutil.rmtree(folder)


def measure(points: int, sets: int, precision: str, seconds: float) -> str:
    """One row of the table."""
    rate = trained(config_of(points, sets, precision, (2, 2, 2, 994)))[1]
    total = max(int(rate * seconds), 40)
    steps = tuple(max(int(total * share), 10) for share in (0.11, 0.11, 0.17, 0.61))
    scores, rate, spent = trained(config_of(points, sets, precision, steps))
    return (
        f"| {points:,} | {sets} | {precision} | {sum(steps):,} | {rate * points:,.0f} | "
        f"{spent:.1f} | {scores['model']['rmse']:.4f} | {scores['model']['mae']:.4f} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=45.0, help="of training per setting, compilation apart"
    )
    args = parser.parse_args()
    print(
        "| pixels per update | sets | precision | updates | pixels/s | s | RMSE, µm | MAE, µm "
        "|\n|---|---|---|---|---|---|---|---|"
    )
    for points, sets, precision in SETTINGS:
        print(measure(points, sets, precision, args.seconds), flush=True)
