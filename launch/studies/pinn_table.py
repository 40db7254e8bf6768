"""The table of docs/physics.md: relative L2 of all problems of configs/pinn.py.

Columns: cPIKAN with scaled coordinates and without, and the MLP of as many parameters.

    python launch/studies/pinn_table.py               # five seeds of MANY, one of the others
    python launch/studies/pinn_table.py --budget=4    # saved after four hours; the same command
                                                      # goes on
    python launch/studies/pinn_table.py --only diffusion helmholtz --models cPIKAN --seeds 3
    python launch/studies/pinn_table.py --budget=0    # the table of what there is

Trained first are the scaled networks with seed 0, then the others, then more seeds.  Every run is a
workdir in <folder>/, trained by jaxvol.main without its pre-flight; a finished one with today's
config is not repeated.  <folder>/table.md and table.png are written after every run.  Seconds are
processor time of the whole process, compilation and evaluation included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# One thread: the networks are small, and a second core halves nothing.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "pinn" / "jax"))

from jaxvol.config import command_line
from jaxvol.evaluation import sweep, sweep_points
from jaxvol.plots import figures
from jaxvol.runtime import atomic

MANY = ("diffusion", "poisson3d", "helmholtz", "diffusion-published")  # five seeds
PROBLEMS = (
    *MANY,
    "poisson1d",
    "poisson2d",
    "helmholtz2d",
    "helmholtz3d",
    "wave",
    "burgers",
    "allen-cahn",
    "reaction-diffusion",
    "inverse",
    "taylor-green",
)
MODELS = {
    "cPIKAN": ("", ()),
    "MLP": ("-mlp", ()),
    "cPIKAN, unscaled": ("", ("--config.model.scaling=none",)),
}
SEEDS = 5
MARKERS = ("o", "s", "^")


def jobs(args: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(problem, model, seed), most wanted first."""
    problems = [p for p in PROBLEMS if not args.only or p in args.only]
    models = [m for m in MODELS if not args.models or m in args.models]
    first = [(p, m, 0) for m in models for p in problems]
    return first + [
        (p, m, seed) for seed in range(1, args.seeds) for m in models for p in problems if p in MANY
    ]


def point(job: tuple[str, str, int], folder: Path, extra: list[str]) -> sweep_points.Point:
    """What sweep.train runs."""
    problem, model, seed = job
    variant, flags = MODELS[model]
    name = f"{problem}-{model.replace(', ', '-')}-seed{seed}"
    arguments = [
        f"--config={ROOT}/configs/pinn.py:{problem}{variant}",
        *flags,
        f"--config.seed={seed}",
        "--config.preflight.run=False",
        *extra,
        f"--workdir={folder / name}",
    ]
    config = command_line.parse(["pinn_table", *arguments])[0]
    return sweep_points.Point(
        name, {"problem": problem, "model": model, "seed": seed}, config, folder / name, arguments
    )


def train(one: sweep_points.Point, running: sweep.Running) -> None:
    """Train a point that is not finished, and note the processor time of all its attempts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome = sweep.train(one, running)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    note = one.workdir / "seconds.json"
    if one.workdir.exists() and spent > 0:
        spent += json.loads(note.read_text()) if note.exists() else 0.0
        atomic.write_text(note, json.dumps(spent))
    if outcome.state == "failed":
        print(f"{one.name}: {outcome.reason}", flush=True)


def score(one: sweep_points.Point) -> dict | None:
    """{"relative_l2", "seconds", "parameters"} and errors of coefficients of a finished point."""
    try:
        scored = json.loads((one.workdir / "evaluation" / "metrics.json").read_text())
        seconds = json.loads((one.workdir / "seconds.json").read_text())
    except (OSError, ValueError):
        return None
    if not sweep_points.is_done(one):
        return None
    errors = {k: v for k, v in scored["model"].items() if k.endswith("_error")}
    return {
        "relative_l2": scored["model"]["relative_l2"],
        "seconds": seconds,
        "parameters": scored["parameters"].split()[-1],
        **errors,
    }


def cell(scores: list[dict]) -> str:
    """Median over seeds, and lowest to highest; the errors of coefficients behind it."""
    if not scores:
        return ""
    values = sorted(s["relative_l2"] for s in scores)
    text = f"{statistics.median(values):.1e}"
    if len(values) > 1:
        text += f" ({values[0]:.1e} to {values[-1]:.1e}, {len(values)} seeds)"
    for key in scores[0]:
        if key.endswith("_error"):
            median = statistics.median([s[key] for s in scores])
            text += f", {key.removesuffix('_error')} off by {median:.1%}"
    return text


def table(results: dict[tuple[str, str], list[dict]]) -> str:
    """Markdown, one row per problem that has a result."""
    rows = [
        "| problem | " + " | ".join(MODELS) + " | seconds | parameters |",
        "|---" * (len(MODELS) + 3) + "|",
    ]
    for problem in PROBLEMS:
        by_model = [results.get((problem, model), []) for model in MODELS]
        if not any(by_model):
            continue
        seconds = [
            f"{statistics.median([s['seconds'] for s in scores]):.0f}" if scores else "-"
            for scores in by_model
        ]
        parameters = [scores[0]["parameters"] if scores else "-" for scores in by_model]
        cells = [problem, *map(cell, by_model), " / ".join(seconds), " / ".join(parameters)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(results: dict[tuple[str, str], list[dict]]):
    """Every run as a dot: problem against relative L2."""
    problems = [p for p in PROBLEMS if any(results.get((p, m)) for m in MODELS)]
    figure = figures.canvas(8.0, 1.4 + 0.36 * len(problems))
    panel = figure.subplots()
    for i, (model, marker) in enumerate(zip(MODELS, MARKERS)):
        dots = [
            (f["relative_l2"], row + 0.16 * (i - 1))
            for row, p in enumerate(problems)
            for f in results.get((p, model), [])
        ]
        panel.plot(
            *zip(*dots) if dots else ((), ()),
            marker,
            color=figures.COLOURS[i],
            label=model,
            markersize=5,
            alpha=0.85,
        )
    panel.set(xscale="log", xlabel="relative L2 error on the grid (u = 0 has 1)")
    panel.set_yticks(range(len(problems)), problems)
    panel.set_ylim(len(problems) - 0.5, -0.5)
    panel.axvline(1.0, color=figures.TRUTH, linewidth=0.8, linestyle="--")
    panel.grid(axis="x", alpha=0.25)
    panel.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=len(MODELS), frameon=False, fontsize=9
    )
    return figure


def write(points: list[sweep_points.Point], folder: Path) -> str:
    """table.md and table.png from what is finished."""
    results: dict[tuple[str, str], list[dict]] = {}
    for one in points:
        scores = score(one)
        if scores:
            results.setdefault((one.params["problem"], one.params["model"]), []).append(scores)
    text = table(results)
    atomic.write_text(folder / "table.md", text + "\n")
    if results:
        figures.save(draw(results), folder / "table.png")
    return text


def main(args: argparse.Namespace, extra: list[str]) -> None:
    """Train until everything is done or the time is over."""
    folder, end = Path(args.folder), time.monotonic() + 3600 * args.budget
    folder.mkdir(parents=True, exist_ok=True)
    points = [point(job, folder, extra) for job in jobs(args)]
    # The table has what earlier commands left as well.
    everything = [
        point(job, folder, extra)
        for job in jobs(argparse.Namespace(only=[], models=[], seeds=max(args.seeds, SEEDS)))
    ]
    running = sweep.Running((sys.executable, "-m", "jaxvol.main"))
    for number in sweep.SIGNALS:
        signal.signal(number, lambda *_: sweep.stop(running))
    alarm = threading.Timer(max(end - time.monotonic(), 0.0), sweep.stop, (running,))
    alarm.daemon = True
    alarm.start()
    for one in points:
        if running.stopping.is_set() or time.monotonic() >= end:
            break
        train(one, running)
        write(everything, folder)
    print(write(everything, folder))


if __name__ == "__main__":
    os.chdir(ROOT)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        choices=PROBLEMS,
        metavar="PROBLEM",
        help=", ".join(PROBLEMS),
    )
    parser.add_argument(
        "--models",
        nargs="*",
        default=[],
        choices=list(MODELS),
        metavar="MODEL",
        help=" | ".join(MODELS),
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of " + ", ".join(MANY))
    parser.add_argument(
        "--budget", type=float, default=4.0, help="hours; what is in flight then is saved"
    )
    parser.add_argument("--folder", default="runs/pinn-table")
    main(*parser.parse_known_args())
