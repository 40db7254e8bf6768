"""How often the pre-flight finds a planted fault, names the right check first, and how often it
cries wolf.

    python launch/campaigns/fault_bench.py                          every fault at every strength,
    and healthy runs: about 2 hours on 2 CPU cores
    python launch/campaigns/fault_bench.py --faults leak clip       those whose names contain one of
    these words python launch/campaigns/fault_bench.py --faults none --seeds 10 healthy runs only,
    10 seeds per variant of configs/healthy.py

Every run is one line of <folder>/runs.jsonl and is not repeated; the tables and the picture are in
<folder>/.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from jaxvol.runtime import modules  # noqa: E402
from tests import compiler

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + compiler.quick()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "faults" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402  (the environment comes first)
import numpy as np  # noqa: E402
from scipy.stats import beta  # noqa: E402
from tqdm import tqdm  # noqa: E402

from jaxvol import main
from jaxvol.config import experiments
from jaxvol.diagnostics import context, preflight
from jaxvol.diagnostics import engine as diagnostics  # noqa: E402
from jaxvol.plots import figures
from jaxvol.training import sharding  # noqa: E402
from jaxvol.types import UserError  # noqa: E402
from launch.campaigns import planted
from launch.campaigns.planted import (
    data as planted_data,
)
from launch.campaigns.planted import (
    later as planted_later,
)
from launch.campaigns.planted import (
    model as planted_model,
)
from launch.campaigns.planted import (
    physics as planted_physics,
)
from launch.campaigns.planted import (
    training as planted_training,
)

healthy = experiments.load("healthy")

FAULTS = (
    planted_data.FAULTS
    + planted_model.FAULTS
    + planted_training.FAULTS
    + planted_later.FAULTS
    + planted_physics.FAULTS
)
LEFT_OUT = ("environment", "memory")  # of the machine, not of the run


def make_source() -> None:
    """The finished run that faults of pretrained weights start from."""
    if not (planted_training.SOURCE / "checkpoints").exists():
        main.cli(
            [
                "jaxvol",
                f"--config={healthy.__file__}:fno",
                "--config.total_steps=20",
                "--config.preflight.run=False",
                "--config.evaluate.figures=False",
                f"--workdir={planted_training.SOURCE}",
            ]
        )


def verdict(seen, named: str, upto: bool) -> dict:
    """Status of every check; with `upto` only of those that come before the named one, and of
    itself.
    """
    known = {name: module for name, module in preflight.checks().items() if name not in LEFT_OUT}
    if upto:
        known = {name: module for name, module in known.items() if module.RANK <= known[named].RANK}
    found = diagnostics.run(seen, known)
    return {
        "first": found.first,
        "status": {o.name: o.status for o in found.outcomes},
        "upto": upto,
        "reasons": {o.name: o.reason for o in found.outcomes if o.status not in ("PASS", "SKIP")},
    }


def sick(fault: planted.Fault, strength, mesh, upto: bool) -> dict:
    """One fault at one strength; a run that cannot even be set up says so, and does not count as
    found by a check.
    """
    began = time.monotonic()
    row = {
        "kind": "fault",
        "fault": fault.name,
        "run": fault.run,
        "check": fault.check,
        "strength": repr(strength),
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            with planted.planted(fault, strength, mesh, Path(folder)) as seen:
                row |= verdict(seen, fault.check, upto)
        except UserError as error:
            row |= {"first": f"refused: {error}"[:200], "status": {}, "reasons": {}, "upto": upto}
    return row | {"seconds": time.monotonic() - began}


def well(variant: str, seed: int, mesh) -> dict:
    """One healthy run."""
    began, config = time.monotonic(), planted.config_of(variant, seed)
    with tempfile.TemporaryDirectory() as folder:
        seen = context.make(config, mesh, Path(folder), config.total_steps)
        return {
            "kind": "healthy",
            "run": variant,
            "seed": seed,
            **verdict(seen, "data", False),
            "seconds": time.monotonic() - began,
        }


def found(row: dict) -> bool:
    """The named check is red, and the first that is."""
    return row["status"].get(row["check"]) in diagnostics.RED and row["first"] == row["check"]


def upper(bad: int, runs: int) -> float:
    """Exact (Clopper-Pearson) 95 % upper bound of a rate."""
    return 1.0 if bad >= runs else float(beta.ppf(0.95, bad + 1, runs - bad))


def tables(rows: list[dict]) -> tuple[list[dict], list[dict], str]:
    """One row per fault, one row per check over the healthy runs, and the summary."""
    sick_rows, healthy_rows = (
        [r for r in rows if r["kind"] == kind] for kind in ("fault", "healthy")
    )
    declared = {fault.name: fault for fault in FAULTS}
    per_fault = []
    for name in dict.fromkeys(r["fault"] for r in sick_rows):
        own = [r for r in sick_rows if r["fault"] == name]
        caught = [r["strength"] for r in own if found(r)]
        allowed = (
            {declared[name].check, *declared[name].consequences} if name in declared else set()
        )
        wrong = sorted(
            {check for r in own for check, s in r["status"].items() if s in diagnostics.RED}
            - allowed
        )
        missed = [f"{r['strength']} ({r['first'] or 'nothing'} first)" for r in own if not found(r)]
        per_fault.append(
            {
                "fault": name,
                "run": own[0]["run"],
                "check": own[0]["check"],
                "caught": f"{len(caught)}/{len(own)}",
                "weakest caught": caught[0] if caught else "-",
                "missed": ", ".join(missed),
                "wrongly red": ", ".join(wrong),
            }
        )
    checks = sorted({check for r in healthy_rows for check in r["status"]})
    per_check = []
    for check in checks:
        seen = [
            r["status"][check] for r in healthy_rows if r["status"].get(check, "SKIP") != "SKIP"
        ]
        red, warn = sum(s in diagnostics.RED for s in seen), seen.count("WARN")
        per_check.append(
            {
                "check": check,
                "healthy runs": len(seen),
                "FAIL": red,
                "at most (95 %)": f"{upper(red, len(seen)):.1%}" if seen else "-",
                "WARN": warn,
            }
        )
    at_all = [
        any(found(r) for r in sick_rows if r["fault"] == name)
        for name in {r["fault"] for r in sick_rows}
    ]
    red_runs = sum(any(s in diagnostics.RED for s in r["status"].values()) for r in healthy_rows)
    summary = (
        f"{sum(at_all)} of {len(at_all)} faults found at one strength or more, "
        f"{sum(map(found, sick_rows))} of {len(sick_rows)} "
        f"(fault, strength) pairs; {red_runs} of {len(healthy_rows)} healthy runs with a FAIL (at "
        "most "
        f"{upper(red_runs, len(healthy_rows)) if healthy_rows else 1:.1%} at 95 % confidence)"
    )
    return per_fault, per_check, summary


def draw(rows: list[dict]):
    """Faults against checks: what was red, and what had to be."""
    sick_rows = [r for r in rows if r["kind"] == "fault"]
    names = list(dict.fromkeys(r["fault"] for r in sick_rows))
    checks = sorted(
        {c for r in sick_rows for c in r["status"]},
        key=lambda c: modules.module("diagnostics/checks", c).RANK,
    )
    share = np.zeros((len(names), len(checks)))
    for i, name in enumerate(names):
        own = [r for r in sick_rows if r["fault"] == name]
        for j, check in enumerate(checks):
            # some runs end at the named check
            ran = [r["status"][check] in diagnostics.RED for r in own if check in r["status"]]
            share[i, j] = np.mean(ran) if ran else 0
    figure = figures.canvas(9.0, 1.6 + 0.21 * len(names))
    panel = figure.subplots()
    drawn = panel.imshow(share, cmap="Reds", vmin=0, vmax=1, aspect="auto")
    for i, name in enumerate(names):
        wanted = next(r["check"] for r in sick_rows if r["fault"] == name)
        for colour, size in (("black", 7.5), ("white", 6)):
            panel.plot(
                checks.index(wanted),
                i,
                "o",
                markerfacecolor="none",
                markeredgecolor=colour,
                markersize=size,
            )
    panel.set_xticks(range(len(checks)), checks, rotation=60, ha="right", fontsize=8)
    panel.set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(
        drawn,
        ax=panel,
        label="share of the runs of this check in which it is red (ring: the check named)",
        fraction=0.03,
    )
    return figure


def write(folder: Path, rows: list[dict]) -> None:
    """Tables and picture from all runs so far."""
    per_fault, per_check, summary = tables(rows)
    text = (
        "\n\n".join(markdown(table) for table in (per_fault, per_check) if table)
        + f"\n\n{summary}\n"
    )
    (folder / "table.md").write_text(text)
    if per_fault:
        figures.save(draw(rows), folder / "faults.png")
    print(text)


def markdown(rows: list[dict]) -> str:
    """A table."""
    return "\n".join(
        [
            "| " + " | ".join(rows[0]) + " |",
            "|" + "---|" * len(rows[0]),
            *("| " + " | ".join(str(v) for v in row.values()) + " |" for row in rows),
        ]
    )


def run(arguments: argparse.Namespace) -> None:
    """What is not in runs.jsonl yet."""
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "runs.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {
        (r["fault"], r["strength"]) if r["kind"] == "fault" else (r["run"], r["seed"]) for r in rows
    }
    wanted = [
        (f, s)
        for f in FAULTS
        for s in f.strengths[-1 if arguments.strongest else 0 :]
        if not arguments.faults
        or any(word in f"{f.name} {f.check} {f.run}" for word in arguments.faults)
    ]
    jobs = [
        lambda mesh, f=f, s=s: sick(f, s, mesh, arguments.upto)
        for f, s in wanted
        if (f.name, repr(s)) not in done
    ]
    jobs += [
        lambda mesh, v=v, i=i: well(v, i, mesh)
        for i in range(arguments.seeds)
        for v in healthy.VARIANTS
        if (v, i) not in done
    ]
    mesh = sharding.one_device()
    with jax.set_mesh(mesh):
        make_source()
        for job in tqdm(jobs, disable=arguments.quiet):
            row = job(mesh)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            rows.append(row)
            jax.clear_caches()
    write(folder, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--faults",
        nargs="*",
        default=[],
        help="words that a fault's name, check or run contains; none: no fault",
    )
    parser.add_argument(
        "--seeds", type=int, default=6, help="healthy runs per variant of configs/healthy.py"
    )
    parser.add_argument(
        "--upto",
        action="store_true",
        help="stop each pre-flight after the check that the fault names",
    )
    parser.add_argument(
        "--strongest", action="store_true", help="each fault at its last strength only"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--folder", default="runs/fault-bench", help="where the runs are noted")
    logging.getLogger("absl").setLevel(logging.WARNING)
    run(parser.parse_args())
