"""Step time, throughput, compile time and peak memory of the four models, next to PyTorch.

    python launch/benchmarks/bench.py            # FNO at 32, 64 and 128 cubed, float32 and bfloat16
    python launch/benchmarks/bench.py --sizes 32 64 --precisions f32 --output bench.json
    python launch/benchmarks/bench.py --rival    # PyTorch as well (needs torch, neuraloperator)
    python launch/benchmarks/bench.py --models fno vnet vit3d pix2pixcc --sizes 32 --precisions f32

One step is MSE, gradient, clipping by the global norm and Adam.  Each number is measured in a
process of its own.  Next to PyTorch a step is timed by the processor time of one thread, so that a
busy machine does not decide, and the two take turns; otherwise, and on an accelerator, by the
clock.  Rivals have the same layers and parameters (launch/benchmarks/rivals.py).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.benchmarks import steps


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["fno"], choices=list(steps.FIELDS))
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[32, 64, 128], help="voxels per axis"
    )
    parser.add_argument("--precisions", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument(
        "--implementations", nargs="+", default=["auto"], choices=["auto", "fft", "dft"]
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="timed steps per turn")
    parser.add_argument("--turns", type=int, default=2, help="turns of each model")
    parser.add_argument(
        "--rival",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="measure neuraloperator as well, on one thread; default: where it is installed",
    )
    parser.add_argument("--output", default="", help="write the JSON here instead of to the screen")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def cases_of(args: argparse.Namespace, rival: bool) -> list[dict]:
    """What is measured, see launch/benchmarks/steps.py; rival: with the PyTorch counterparts."""
    common = {"batch": args.batch, "steps": args.steps, "one_thread": rival}
    cases = [
        {
            "model": model,
            "by": "jaxvol",
            "size": size,
            "precision": precision,
            "implementation": implementation,
            **common,
        }
        for model in args.models
        for size in args.sizes
        for precision in args.precisions
        for implementation in (args.implementations if model == "fno" else ["auto"])
    ]
    counterpart = {"by": "torch", "precision": "f32", "implementation": "fft", **common}
    return cases + [
        {"model": model, "size": size, **counterpart}
        for model in args.models
        for size in args.sizes
        if rival
    ]


def main() -> None:
    """Measure every case and print a table and JSON."""
    args = arguments()
    if args.worker:
        case = json.loads(args.worker)
        measure = steps.measure_torch if case["by"] == "torch" else steps.measure_jax
        print(json.dumps(measure(case)))
        return
    rival = bool(find_spec("torch") and find_spec("neuralop")) if args.rival is None else args.rival
    cases = cases_of(args, rival)
    turns = [[] for _ in cases]
    for _ in range(args.turns):
        for case, measured in zip(cases, turns):
            measured.append(run(case))
    rows = [merge(measured) for measured in turns]
    of_torch = {(row["size"], row["model"]): row for row in rows if row["by"] == "torch"}
    for row in rows:
        reference = of_torch.get((row["size"], row["model"]))
        row["ratio"] = reference["step_ms"] / row["step_ms"] if reference else None
    print_table(rows)
    text = json.dumps(rows, indent=1)
    print(text) if not args.output else Path(args.output).write_text(text + "\n")


def run(case: dict) -> dict:
    """One case in a fresh process; on one thread both frameworks get the same environment."""
    env, command = dict(os.environ), [sys.executable, __file__, "--worker", json.dumps(case)]
    env["PYTHONPATH"] = str(ROOT)
    if case["one_thread"]:
        env["XLA_FLAGS"] = (
            env.get("XLA_FLAGS", "")
            + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        )
        env["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: {case} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def merge(turns: list[dict]) -> dict:
    """The median over all steps of all turns; the first turn's other numbers."""
    times = [t for turn in turns for t in turn.pop("times_ms")]
    row = {**turns[0], "step_ms": statistics.median(times), "fastest_ms": min(times)}
    row["voxels_per_s"] = row["batch"] * row["size"] ** 3 / row["step_ms"] * 1e3
    return row


def in_words(cell: str | int | float | None) -> str:
    """A cell of the table; numbers from 100 without decimals."""
    if cell is None:
        return "-"
    if isinstance(cell, str | int):
        return str(cell)
    return f"{cell:,.2f}" if cell < 100 else f"{cell:,.0f}"


def print_table(rows: list[dict]) -> None:
    """One line per case."""
    first = rows[0]
    clock = "processor time, one thread" if first["one_thread"] else "wall clock"
    print(f"{first['device']}, batch {first['batch']}, {clock}")
    columns = (
        ("model", "model"),
        ("by", "by"),
        ("parameters", "parameters"),
        ("size", "size"),
        ("precision", "precision"),
        ("implementation", "transform"),
        ("step_ms", "step ms"),
        ("voxels_per_s", "voxels/s"),
        ("compile_s", "compile s"),
        ("temporary_mb", "temp MB"),
        ("argument_mb", "args MB"),
        ("peak_device_mb", "peak MB"),
        ("ratio", "x torch"),
    )
    print(" ".join(f"{title:>10}" for _, title in columns))
    for row in rows:
        cells = [row[key] for key, _ in columns]
        print(" ".join(f"{in_words(cell):>10}" for cell in cells))


if __name__ == "__main__":
    main()
