"""How often the pre-flight finds a planted fault and names the right check first, and how often it
cries wolf.

    python launch/campaigns/fault_bench.py                      every fault at every strength, and
                                                                healthy runs: 2 hours on 2 CPU cores
    python launch/campaigns/fault_bench.py --faults leak clip   faults whose name contains one of
                                                                these words, and healthy runs
    python launch/campaigns/fault_bench.py --faults none --seeds 10      healthy runs only, 10 seeds
                                                                per variant of configs/healthy.py

Every run is one line of <folder>/runs.jsonl and is not repeated; the tables and the picture are in
<folder>/.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tests import compiler  # noqa: E402

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + compiler.quick()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "faults" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402  (the environment comes first)
from tqdm import tqdm  # noqa: E402

from jaxvol import main  # noqa: E402
from jaxvol.diagnostics import context, preflight  # noqa: E402
from jaxvol.diagnostics import engine as diagnostics  # noqa: E402
from jaxvol.diagnostics.records import Context
from jaxvol.training import sharding  # noqa: E402
from jaxvol.types import UserError  # noqa: E402
from launch.campaigns import planted  # noqa: E402
from launch.campaigns.planted import catalogue, state, tables  # noqa: E402

LEFT_OUT = ("environment", "memory")  # of the machine, not of the run


def make_source() -> None:
    """The finished run that faults of pretrained weights start from."""
    if not (state.SOURCE / "checkpoints").exists():
        main.cli(
            [
                "jaxvol",
                f"--config={planted.healthy.__file__}:fno",
                "--config.total_steps=20",
                "--config.preflight.run=False",
                "--config.evaluate.figures=False",
                f"--workdir={state.SOURCE}",
            ]
        )


def verdict(ctx: Context, check: str, upto: bool) -> dict:
    """Status of every check; with `upto` only of `check` and of those that come before it."""
    checks = {name: module for name, module in preflight.checks().items() if name not in LEFT_OUT}
    if upto:
        last = checks[check].RANK
        checks = {name: module for name, module in checks.items() if module.RANK <= last}
    judged = diagnostics.run(ctx, checks)
    return {
        "first": judged.first,
        "status": {o.name: o.status for o in judged.outcomes},
        "upto": upto,
        "reasons": {o.name: o.reason for o in judged.outcomes if o.status not in ("PASS", "SKIP")},
    }


def sick_run(fault: planted.Fault, strength, mesh, upto: bool) -> dict:
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
            with planted.planted(fault, strength, mesh, Path(folder)) as ctx:
                row |= verdict(ctx, fault.check, upto)
        except UserError as error:
            row |= {"first": f"refused: {error}"[:200], "status": {}, "reasons": {}, "upto": upto}
    return row | {"seconds": time.monotonic() - began}


def healthy_run(variant: str, seed: int, mesh) -> dict:
    """One healthy run, all checks."""
    began, config = time.monotonic(), planted.config_of(variant, seed)
    with tempfile.TemporaryDirectory() as folder:
        ctx = context.make(config, mesh, Path(folder), config.total_steps)
        row = {"kind": "healthy", "run": variant, "seed": seed, **verdict(ctx, "data", False)}
    return row | {"seconds": time.monotonic() - began}


def jobs(arguments: argparse.Namespace, rows: list[dict]) -> list:
    """Functions of the mesh, one per run that is not among `rows` yet."""
    done = {
        (row["fault"], row["strength"]) if row["kind"] == "fault" else (row["run"], row["seed"])
        for row in rows
    }
    faults = [
        fault
        for fault in catalogue.FAULTS
        if not arguments.faults
        or any(word in f"{fault.name} {fault.check} {fault.run}" for word in arguments.faults)
    ]
    sick = [
        functools.partial(sick_run, fault, strength, upto=arguments.upto)
        for fault in faults
        for strength in fault.strengths[-1 if arguments.strongest else 0 :]
        if (fault.name, repr(strength)) not in done
    ]
    return sick + [
        functools.partial(healthy_run, variant, seed)
        for seed in range(arguments.seeds)
        for variant in planted.healthy.VARIANTS
        if (variant, seed) not in done
    ]


def run(arguments: argparse.Namespace) -> None:
    """What is not in runs.jsonl yet, then the tables of all runs."""
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "runs.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    mesh = sharding.one_device()
    with jax.set_mesh(mesh):
        make_source()
        for job in tqdm(jobs(arguments, rows), disable=arguments.quiet):
            rows.append(job(mesh=mesh))
            with log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            jax.clear_caches()
    tables.write(folder, rows)


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
