"""Several processes train like one: undisturbed, after a kill, and when fewer of them go on.

    python launch/campaigns/processes.py [--only=0,3] [--out=FILE.md]    # minutes on two idle cores

Real processes of one CPU device each (launch/cluster/multihost.sh), the tiny training of
tests/tiny.py, against the same run of one process.  "Logged": the largest difference of a value of
metrics.csv (losses, gradient norms, validation), relative to it.  "Parameters": the largest
difference in a leaf, relative to the leaf's largest value.  Tolerances: parameters after 5 SGD
steps to 1e-5, under Adam the logged values to 1e-4.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SGD = (
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.1",
    "--config.total_steps=5",
    "--config.evaluate.every=5",
)
LOGGED, PARAMETERS = 1e-4, 1e-5
LIMIT_S = 400  # for one start of a run


class Stage(NamedTuple):
    """One start of a run."""

    processes: int
    mesh: tuple[str, ...] = ()
    until: int = 0  # all processes are killed when this step was logged; 0 = it runs to its end


FOUR = ("--config.mesh.data=2", "--config.mesh.space=2")
CASES: dict[str, tuple[tuple[str, ...], list[Stage]]] = {
    "4, all killed, 2 on another mesh, all killed, 1": (
        (),
        [
            Stage(4, FOUR, 17),
            Stage(2, ("--config.mesh.fsdp=2", "--config.mesh.data=1"), 35),
            Stage(1),
        ],
    ),
    "2 processes": ((), [Stage(2)]),
    "4 processes (2 × 2 in space)": ((), [Stage(4, FOUR)]),
    "2 processes, 5 SGD steps": (SGD, [Stage(2)]),
    "4 processes (2 × 2 in space), 5 SGD steps": (SGD, [Stage(4, FOUR)]),
    "2, all killed, 2": ((), [Stage(2, (), 17), Stage(2)]),
    "4, all killed, 4": ((), [Stage(4, FOUR, 17), Stage(4, FOUR)]),
}


class Row(NamedTuple):
    """What came of one case."""

    case: str
    resumed: list[int]  # the steps that it went on from
    logged: float
    parameters: float
    sgd: bool

    @property
    def good(self) -> bool:
        """Within the tolerance of its optimizer."""
        return (self.parameters <= PARAMETERS) if self.sgd else self.logged <= LOGGED


def step_of(workdir: Path) -> int:
    """The newest logged step, 0 for none."""
    try:
        last = (workdir / "metrics.csv").read_text().rstrip("\n").splitlines()[-1]
        return int(last.split(",")[0])
    except (OSError, ValueError, IndexError):
        return 0


def start(stage: Stage, workdir: Path, cache: Path, *more: str) -> str:
    """Run one stage and return its output; RuntimeError if it ends otherwise than it should."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "RERUN": "0",
        "PYTHON": sys.executable,
    }
    command = [
        "bash",
        "launch/cluster/multihost.sh",
        str(stage.processes),
        "--config=tests/tiny.py:slow",
        f"--workdir={workdir}",
        f"--config.data.cache_dir={cache}",
        *stage.mesh,
        *more,
    ]
    log = workdir.with_suffix(".log")
    with log.open("wb") as file:
        launcher = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    end = time.monotonic() + LIMIT_S
    while launcher.poll() is None and not (stage.until and step_of(workdir) >= stage.until):
        if time.monotonic() > end:
            os.killpg(launcher.pid, signal.SIGKILL)
        time.sleep(0.01)
    if stage.until and launcher.poll() is None:
        # the launcher and all its processes at once: the machine is gone
        os.killpg(launcher.pid, signal.SIGKILL)
    status = launcher.wait()
    if status != (-signal.SIGKILL if stage.until else 0):
        raise RuntimeError(f"{' '.join(command)} ended with {status}:\n{log.read_text()[-2000:]}")
    return log.read_text()


def values(workdir: Path) -> dict[tuple[str, str], float]:
    """{(step, tag): value} of metrics.csv."""
    rows = [row.split(",") for row in (workdir / "metrics.csv").read_text().splitlines()[1:]]
    return {(step, tag): float(value) for step, tag, value in rows}


def parameters(workdir: Path) -> dict:
    """{path: array} of the last checkpoint, read in this process whoever wrote it."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp
    from absl import logging

    # Orbax misses a file that the manager keeps one folder above
    logging.set_verbosity(logging.ERROR)
    last = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    reader = ocp.PyTreeCheckpointer()
    folder = (workdir / "checkpoints" / str(last) / "state").absolute()
    tree = reader.metadata(folder).item_metadata.tree
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    params = reader.restore(folder, restore_args=arguments)["params"]
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def compare(workdir: Path, reference: Path) -> tuple[float, float]:
    """Largest relative difference (of a logged value, of a leaf of the parameters).

    Infinite where something is missing.
    """
    logged, expected = values(workdir), values(reference)
    leaves, true_leaves = parameters(workdir), parameters(reference)
    if set(logged) != set(expected) or set(leaves) != set(true_leaves):
        return math.inf, math.inf
    # values below 0.01 are compared with 0.01: a difference of 1e-6 is rounding whatever the value
    in_values = max(abs(logged[k] - true) / max(abs(true), 1e-2) for k, true in expected.items())
    in_leaves = max(
        float(abs(leaves[k] - true).max() / max(abs(true).max(), 1e-6))
        for k, true in true_leaves.items()
    )
    return in_values, in_leaves


def run(case: str, folder: Path) -> Row:
    """One case, and the run of one process that it is compared with, which is made once."""
    more, stages = CASES[case]
    reference = folder / ("sgd" if more else "one")
    if not reference.exists():
        start(Stage(1), reference, folder / "cache", *more)
    workdir = folder / str(list(CASES).index(case))
    outputs = [start(stage, workdir, folder / "cache", *more) for stage in stages]
    resumed = [int(text.split("resumed from step ")[1].split()[0]) for text in outputs[1:]]
    return Row(case, resumed, *compare(workdir, reference), bool(more))


def main() -> int:
    """Print the table; the exit status is 0 where every difference is within its tolerance."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="", help="file for the table")
    parser.add_argument("--only", default="", help="numbers of cases: 0,3")
    args = parser.parse_args()
    cases = [list(CASES)[int(n)] for n in args.only.split(",") if n] or list(CASES)
    lines = ["| processes | went on from step | logged values | parameters |", "|---|---|---|---|"]
    good = True
    with tempfile.TemporaryDirectory(prefix="jaxvol-processes-") as folder:
        for case in cases:
            row = run(case, Path(folder))
            good = good and row.good
            resumed = ", ".join(map(str, row.resumed)) or "–"
            lines.append(f"| {case} | {resumed} | {row.logged:.1e} | {row.parameters:.1e} |")
            print(lines[-1] + ("" if row.good else "   TOO FAR"), flush=True)
    if args.out:
        Path(args.out).write_text("\n".join(lines) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
