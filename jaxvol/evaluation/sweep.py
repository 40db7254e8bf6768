"""Runs every point of a config file's `sweep()`, ranks them by the best validation metric, and
hands over the winner.

    python jaxvol/evaluation/sweep.py --config=configs/fno.py[:variant] [--config.a.b=v ...]
    [--workdir=DIR] [--jobs=N | --print]

`sweep()` in the config file returns a list of overrides: [{"optimizer.learning_rate": 3e-4,
"model.width": 32}, ...]. Each point trains in <workdir>/<its name>/ (workdir: runs/sweep-<config
file>[-variant]); finished points are skipped, so the same command goes on after an interruption.
--jobs=N trains N points at once on this machine; --print writes one command per point for a
scheduler instead, and this program without --print then ranks what they left.  In <workdir>:

    ranking.csv, ranking.png   every point, best first; unfinished and failed ones last, with the
    reason
    objective.json             [{"objective": value, "metric": ..., "params": {...}, ...}, ...] for
    Optuna and the like
    best.txt                   the winner: python -m jaxvol.main --config=... $(cat best.txt)

Exit status: 0 ranked, 75 some points are not finished (run the same command again), 1 user error or
             no point finished.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # config files import `configs.base`
# of the trainings; see README, "Performance"
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
from matplotlib.figure import Figure  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from jaxvol.config import command_line, components, identity
from jaxvol.plots import figures
from jaxvol.runtime import atomic, provenance  # noqa: E402
from jaxvol.types import UserError  # noqa: E402

REASONS = {
    1: "user error",
    2: "the pre-flight stopped it",
    3: "non-finite",
    4: "workdir in use",
    75: "saved but unfinished",
}
UNFINISHED = 75
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclasses.dataclass(frozen=True)
class Point:
    """One training of the sweep."""

    name: str
    params: dict[str, Any]  # what sweep() overrides at this point
    config: ConfigDict
    workdir: Path
    arguments: list[str]  # of jaxvol.main


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a point; `value` is None unless the state is "finished"."""

    point: Point
    state: str  # finished | unfinished | failed
    reason: str = ""
    value: float | None = None
    step: int | None = None  # update at which the best value was measured


def flag(key: str, value: Any) -> str:
    """An override as a flag without spaces, so that `$(cat best.txt)` keeps it in one piece."""
    text = re.sub(r"([,:]) ", r"\1", repr(tuple(value) if isinstance(value, list) else value))
    return f"--config.{key}={value if isinstance(value, str) else text}"


def short_name(params: dict[str, Any]) -> str:
    """Folder name of a point, learning_rate_0.001-width_32: no comma, since --config.compare.runs
    separates folders by it.
    """
    parts = (
        f"{key.rpartition('.')[2]}_{flag('', value).partition('=')[2].strip('(),')}"
        for key, value in params.items()
    )
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join(parts)).strip("_")[:80] or "as-it-is"


def load_points(config: str, overrides: Sequence[str], workdir: str) -> tuple[list[Point], Path]:
    """(the points of the sweep in the config file, their common workdir).  Raises UserError for
    anything unusable.

    Every point is parsed here, so that a typo in one of them stops the sweep before anything is
    trained.
    """
    file, _, variant = config.partition(":")
    if not Path(file).is_file():
        raise UserError(f"--config={config}: there is no file {file} in {Path.cwd()}.")
    command_line.parse(["sweep", f"--config={config}", *overrides])
    listed = runpy.run_path(file)
    if "sweep" not in listed:
        raise UserError(
            f"{file} has no function sweep(); expected one that returns "
            f"[{{'optimizer.learning_rate': 1e-3}}, ...]."
        )
    found = listed["sweep"]()
    if not isinstance(found, list) or not found or not all(isinstance(p, dict) for p in found):
        raise UserError(
            f"sweep() in {file} returned {found!r}; expected a list of dictionaries "
            f"{{'field.of.config': value}}."
        )
    folder = Path(
        workdir or Path("runs") / ("sweep-" + Path(file).stem + (f"-{variant}" if variant else ""))
    )
    names = [short_name(p) for p in found]
    points = []
    for params, name in zip(found, names):
        if names.count(name) > 1:
            name += "-" + hashlib.sha256(repr(sorted(params.items())).encode()).hexdigest()[:8]
        arguments = [
            f"--config={config}",
            *overrides,
            *(flag(k, v) for k, v in params.items()),
            f"--workdir={folder / name}",
        ]
        try:
            parsed, mode, _ = command_line.parse(["sweep", *arguments])
        except UserError as error:
            raise UserError(f"sweep() in {file}, point {params}: {error}") from None
        if mode != "train":
            raise UserError(f"--mode={mode} has no place in a sweep: every point is trained.")
        points.append(Point(name, params, parsed, folder / name, arguments))
    if len({p.name for p in points}) < len(points):
        raise UserError(
            f"sweep() in {file} returns the same point twice; make every point another one."
        )
    return points, folder


def read_status(point: Point) -> dict[str, Any]:
    """status.json of a point; empty if it never ran or the file cannot be read."""
    try:
        return json.loads((point.workdir / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def is_done(point: Point) -> bool:
    """The point was trained to its end and scored, with the config it has now."""
    status, scored = read_status(point), (point.workdir / "evaluation" / "metrics.json").exists()
    if not scored or "state" not in status or status["state"] not in ("finished", "early_stopped"):
        return False
    # no readable config.json: the training itself says what is wrong
    with contextlib.suppress(UserError):
        return identity.fingerprint(
            provenance.read_config(point.workdir / "config.json")
        ) == identity.fingerprint(point.config)
    return False


def finished(point: Point) -> Outcome:
    """Outcome of a trained point; without a finite best value it cannot be ranked."""
    best = {"best": {}, **read_status(point)}["best"]
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

    prefix: tuple[str, ...]
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
    if is_done(point):
        say(f"{point.name}: already finished")
        return finished(point)
    if running.stopping.is_set():
        return Outcome(point, "unfinished", "not started")
    point.workdir.mkdir(parents=True, exist_ok=True)
    log = point.workdir / "sweep.log"
    say(f"{point.name}: started, see {log}")
    with log.open("wb") as file:  # a session of its own: Ctrl-C reaches it once, through stop()
        process = subprocess.Popen(
            [*running.prefix, *point.arguments],
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
    shown = (
        outcome.reason
        if outcome.value is None
        else f"{point.config.checkpoint.best_metric} {outcome.value:.6g}"
    )
    say(f"{point.name}: {outcome.state}, {shown}")
    return outcome


def failed(point: Point, code: int, log: Path) -> Outcome:
    """Outcome of a point that ended with an exit status other than 0; negative numbers
    are signals.
    """
    if code == UNFINISHED or code in (-signal.SIGTERM, -signal.SIGINT):
        return Outcome(
            point, "unfinished", REASONS[code] if code in REASONS else "stopped by a signal"
        )
    what = (
        REASONS[code]
        if code in REASONS
        else f"killed by signal {-code}"
        if code < 0
        else f"exit status {code}"
    )
    return Outcome(point, "failed", f"{what}: {last_words(log)}")


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Best first; then the unfinished, then the failed, in the order of the sweep."""
    direction = components.best_direction(outcomes[0].point.config)
    states = ("finished", "unfinished", "failed")
    return sorted(
        outcomes,
        key=lambda o: (states.index(o.state), 0.0 if o.value is None else -direction * o.value),
    )


def rows(order: Sequence[Outcome]) -> list[list[str]]:
    """The ranking as text, its header first."""
    keys = list(dict.fromkeys(k for o in order for k in o.point.params))
    metric = order[0].point.config.checkpoint.best_metric
    table = [["rank", *keys, f"best {metric}", "at step", "state", "reason", "workdir"]]
    for rank, o in enumerate(order, 1):
        chosen = [str(o.point.params[k]) if k in o.point.params else "" for k in keys]
        value = "" if o.value is None else f"{o.value:.6g}"
        table.append(
            [
                str(rank) if o.value is not None else "-",
                *chosen,
                value,
                "" if o.step is None else str(o.step),
                o.state,
                o.reason,
                str(o.point.workdir),
            ]
        )
    return table


def figure(order: Sequence[Outcome]) -> Figure:
    """The best validation metric against every swept field, the winner filled."""
    done = [o for o in order if o.value is not None]
    keys = list(dict.fromkeys(k for o in done for k in o.point.params)) or ["point"]
    drawing = Figure(figsize=(3.4 * len(keys), 3.2), dpi=120, layout="constrained")
    for panel, key in zip(drawing.subplots(1, len(keys), sharey=True, squeeze=False)[0], keys):
        chosen = [o for o in done if key in o.point.params or key == "point"]
        values = [o.point.params[key] if key in o.point.params else o.point.name for o in chosen]
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        x = values if numbers else [str(v) for v in values]
        panel.scatter(
            x,
            [o.value for o in chosen],
            facecolors=["C0" if o is done[0] else "white" for o in chosen],
            edgecolors="C0",
            zorder=2,
        )
        if numbers and min(values) > 0 and max(values) >= 10 * min(values):
            panel.set_xscale("log")
        panel.set_xlabel(key)
        panel.grid(alpha=0.3)
    drawing.axes[0].set_ylabel(f"best validation {order[0].point.config.checkpoint.best_metric}")
    return drawing


def report(outcomes: Sequence[Outcome], folder: Path) -> str:
    """Write the ranking, its figure, objective.json and best.txt into `folder`; return the table,
    ready to print.
    """
    order = ranked(outcomes)
    table = rows(order)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    atomic.write_text(folder / "ranking.csv", text.getvalue())
    checkpoint = order[0].point.config.checkpoint
    mode = "max" if components.best_direction(order[0].point.config) > 0 else "min"
    objective = [
        {
            "objective": o.value,
            "metric": checkpoint.best_metric,
            "mode": mode,
            "params": o.point.params,
            "state": o.state,
            "reason": o.reason,
            "step": o.step,
            "workdir": str(o.point.workdir),
        }
        for o in order
    ]
    atomic.write_text(folder / "objective.json", json.dumps(objective, indent=1) + "\n")
    (folder / "best.txt").unlink(missing_ok=True)
    if order[0].value is not None:
        flags = " ".join(flag(k, v) for k, v in order[0].point.params.items())
        atomic.write_text(folder / "best.txt", flags + "\n")
        figures.save(figure(order), folder / "ranking.png")
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table
    )


def sweep(argv: Sequence[str], prefix: Sequence[str]) -> int:
    """Run one command line with `prefix` as the training command; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE.py[:variant]")
    parser.add_argument("--workdir", default="", help="folder of the sweep")
    parser.add_argument("--jobs", type=int, default=1, help="points trained at once")
    parser.add_argument(
        "--print", action="store_true", dest="only_print", help="one command per point, run nothing"
    )
    asked, overrides = parser.parse_known_args(argv)
    try:
        if asked.jobs < 1:
            raise UserError(f"--jobs={asked.jobs}; expected 1 or more.")
        points, folder = load_points(asked.config, overrides, asked.workdir)
    except UserError as error:
        print(f"jaxvol: {error}", file=sys.stderr)
        return 1
    if asked.only_print:
        print("\n".join(shlex.join([*prefix, *point.arguments]) for point in points))
        return 0
    running = Running(tuple(prefix))
    old = {number: signal.signal(number, lambda *_: stop(running)) for number in SIGNALS}
    try:
        with ThreadPoolExecutor(asked.jobs) as pool:
            outcomes = list(pool.map(lambda point: train(point, running), points))
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    print(
        f"\n{report(outcomes, folder)}\n\nWritten to {folder}/: ranking.csv, objective.json"
        + (", ranking.png, best.txt" if any(o.value is not None for o in outcomes) else "")
    )
    if any(o.state == "unfinished" for o in outcomes):
        return UNFINISHED
    return 0 if any(o.state == "finished" for o in outcomes) else 1


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(sweep(sys.argv[1:], (sys.executable, "-m", "jaxvol.main")))
