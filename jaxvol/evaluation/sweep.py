"""Trains every point of a config file's `sweep()`, ranks them by the best validation metric, and
hands over the winner.

    python -m jaxvol.main --config=configs/fno.py[:variant] --mode=sweep [--config.a.b=v]
                          [--workdir=DIR]

`sweep()` in the config file returns a list of overrides: [{"optimizer.learning_rate": 3e-4,
"model.width": 32}, ...].  Each point trains in <workdir>/<its name>/ (workdir:
runs/sweep-<config file>[-variant]); finished points are skipped, so the same command goes on after
an interruption.

    --config.sweep.jobs=N            trains N points at once on this machine
    --config.sweep.print_only=True   writes one command per point for a scheduler instead; the same
                                     command without it then ranks what they left

In <workdir>:

    ranking.csv, ranking.png   every point, best first; unfinished and failed ones last, with the
                               reason
    objective.json             [{"objective": value, "metric": ..., "params": {...}, ...}, ...] for
                               Optuna and the like
    best.txt                   the winner: python -m jaxvol.main --config=... $(cat best.txt)

Exit status: 0 ranked, 75 some points are not finished (run the same command again), 1 user error or
no point finished.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ml_collections import ConfigDict

from jaxvol.evaluation import sweep_points, sweep_ranking
from jaxvol.evaluation.sweep_points import Point
from jaxvol.evaluation.sweep_ranking import Outcome
from jaxvol.runtime.monitoring import UNFINISHED
from jaxvol.types import UserError

REASONS = {
    1: "user error",
    2: "the pre-flight stopped it",
    3: "non-finite",
    4: "workdir in use",
    UNFINISHED: "saved but unfinished",
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# of the trainings: larger pages of host memory, see README, "Performance"
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def finished(point: Point) -> Outcome:
    """Outcome of a trained point; without a finite best value it cannot be ranked."""
    best = {"best": {}, **sweep_points.read_status(point)}["best"]
    value = best["best_value"] if "best_value" in best else None
    if value is None or not math.isfinite(value):
        return Outcome(
            point, "failed", f"no finite validation value of {point.config.checkpoint.best_metric}"
        )
    return Outcome(
        point, "finished", "", float(value), best["best_step"] if "best_step" in best else None
    )


def last_words(log: Path) -> str:
    """The error in a log: its last line that starts with "jaxvol:", else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("jaxvol: ")]
    return (errors or lines or [""])[-1][:200]


@dataclasses.dataclass(frozen=True)
class Running:
    """The sweep in flight: how a training is started, which ones run, and whether all were asked to
    stop.
    """

    command: tuple[str, ...]
    stopping: threading.Event = dataclasses.field(default_factory=threading.Event)
    processes: set[subprocess.Popen] = dataclasses.field(default_factory=set)


def say(line: str) -> None:
    """Print in one write: several threads speak."""
    print(line + "\n", end="", flush=True)


def stop(running: Running) -> None:
    """Ask every running point to save and exit, and start no other."""
    running.stopping.set()
    for process in list(running.processes):
        process.terminate()


def train(point: Point, running: Running) -> Outcome:
    """Train one point, unless it is done; its output goes to <workdir>/sweep.log."""
    if sweep_points.is_done(point):
        say(f"{point.name}: already finished")
        return finished(point)
    if running.stopping.is_set():
        return Outcome(point, "unfinished", "not started")
    point.workdir.mkdir(parents=True, exist_ok=True)
    log = point.workdir / "sweep.log"
    say(f"{point.name}: started, see {log}")
    with log.open("wb") as file:  # a session of its own: Ctrl-C reaches it once, through stop()
        process = subprocess.Popen(
            [*running.command, *point.arguments],
            env={**HUGE_PAGES, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running.processes.add(process)
        if running.stopping.is_set():  # the signal came since the question above
            process.terminate()
        code = process.wait()
        running.processes.discard(process)
    outcome = finished(point) if code == 0 else failed(point, code, log)
    result = outcome.reason
    if outcome.value is not None:
        result = f"{point.config.checkpoint.best_metric} {outcome.value:.6g}"
    say(f"{point.name}: {outcome.state}, {result}")
    return outcome


def failed(point: Point, code: int, log: Path) -> Outcome:
    """Outcome of a point that ended with an exit status other than 0; negative numbers are
    signals.
    """
    reason = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    reason = REASONS[code] if code in REASONS else reason
    if code == UNFINISHED:
        return Outcome(point, "unfinished", reason)
    if code in (-signal.SIGTERM, -signal.SIGINT):
        return Outcome(point, "unfinished", "stopped by a signal")
    return Outcome(point, "failed", f"{reason}: {last_words(log)}")


def sweep(
    settings: ConfigDict, arguments: Sequence[str], folder: Path, command: Sequence[str]
) -> int:
    """Train and rank the points of a sweep; returns the exit status.

    settings:  config.sweep
    arguments: the command line that asked for the sweep, without the program's name
    folder:    workdir of the sweep
    command:   what trains a point, given its own arguments
    Raises UserError before anything is trained if a point cannot be.
    """
    if settings.jobs < 1:
        raise UserError(f"sweep.jobs is {settings.jobs}; it has to be at least 1.")
    points = sweep_points.load(*sweep_points.separated(arguments), folder)
    if settings.print_only:
        print("\n".join(shlex.join([*command, *point.arguments]) for point in points))
        return 0
    running = Running(tuple(command))
    before = {number: signal.signal(number, lambda *_: stop(running)) for number in SIGNALS}
    try:
        with ThreadPoolExecutor(settings.jobs) as pool:
            outcomes = list(pool.map(lambda point: train(point, running), points))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"\n{sweep_ranking.report(outcomes, folder)}")
    if any(o.state == "unfinished" for o in outcomes):
        return UNFINISHED
    return 0 if any(o.state == "finished" for o in outcomes) else 1
