"""Time and memory of every method of jaxvol/ops/laplacian.py, next to folx and PyTorch.

    python launch/benchmarks/bench_laplacian.py          # d = 1 ... 4, KAN and MLP, 4,096 points
    python launch/benchmarks/bench_laplacian.py --dimensions 3 --networks kan --output lap.json

folx, torch.autograd and torch.func are measured where they are installed.  Two programs: the
Laplacian alone, and the gradient of mean (lap u + 1)^2 with respect to the weights, which is what a
training step pays.  Networks have four hidden layers of 64 neurons (KAN: degree 4), float32.
Processor time of one thread pinned to one core, all methods in turn in one process, median; ratios
are times over that of `auto`.  On an accelerator: the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp

from jaxvol.models.cheb_kan import ChebKAN
from jaxvol.models.mlp import MLP
from jaxvol.ops.laplacian import laplacian

WIDTH, DEPTH, DEGREE = 64, 4, 4
METHODS = {
    "auto": ("auto", -1),
    "taylor, all points": ("taylor", 0),
    "diagonal": ("diagonal", 0),
    "jet": ("jet", 0),
    "hessian": ("hessian", 0),
    **({"folx": ("folx", 0)} if find_spec("folx") else {}),
}
RIVALS = (
    {"torch double backward": "double_backward", "torch.func hessian": "functional"}
    if find_spec("torch")
    else {}
)


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--networks", nargs="+", default=["mlp", "kan"], choices=["mlp", "kan"])
    parser.add_argument("--points", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=4, help="the first is not counted")
    parser.add_argument("--output", default="", help="write JSON here as well")
    return parser.parse_args()


def network(name: str, d: int):
    """The module [N, d] -> [N, 1] of a name, kan or mlp."""
    common = {"channels": 1, "widths": (WIDTH,) * DEPTH, "factor": (1.0,) * d, "shift": (0.0,) * d}
    if name == "kan":
        return ChebKAN(degree=DEGREE, form="tanh", initial="xavier", **common)
    return MLP(kind="tanh", omega=1.0, fourier_features=1, fourier_scale=1.0, **common)


def compiled(f, variables) -> tuple[Callable[[], None], float]:
    """(a function that runs f(variables) once, its temporary memory in MB)."""
    program = jax.jit(f).lower(variables).compile()
    memory = program.memory_analysis().temp_size_in_bytes / 1e6
    return lambda: jax.block_until_ready(program(variables)), memory


def programs(name: str, d: int, points: int) -> dict[str, dict]:
    """The two programs of every method, on random points of [-1, 1]^d.

    {method: {"forward", "gradient": a function that runs once,
              "forward_mb", "gradient_mb": temporary memory}}
    """
    model, x = network(name, d), jax.random.uniform(jax.random.key(0), (points, d), minval=-1.0)
    variables, rows = model.init(jax.random.key(1), x), {}

    def of_method(method: str, chunk: int) -> dict:
        lap = lambda v: laplacian(lambda p: model.apply(v, p), method, chunk)(x)[2]
        loss = lambda v: jnp.mean((lap(v) + 1) ** 2)
        forward, forward_mb = compiled(lap, variables)
        gradient, gradient_mb = compiled(jax.grad(loss), variables)
        return {
            "forward": forward,
            "forward_mb": forward_mb,
            "gradient": gradient,
            "gradient_mb": gradient_mb,
        }

    for title, (method, chunk) in METHODS.items():
        rows[title] = of_method(method, chunk)
    return rows | torch_programs(name, d, points)


def torch_programs(name: str, d: int, points: int) -> dict[str, dict]:
    """The same for the rivals."""
    if not RIVALS:
        return {}
    from launch.benchmarks import rivals

    widths = (d, *[WIDTH] * DEPTH, 1)
    return {
        title: {**both, "forward_mb": None, "gradient_mb": None}
        for title, both in rivals.laplacians(name, widths, DEGREE, points, RIVALS).items()
    }


def measure(name: str, d: int, args: argparse.Namespace) -> list[dict]:
    """One row per method."""
    methods = programs(name, d, args.points)
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    times = {(title, what): [] for title in methods for what in ("forward", "gradient")}
    for _ in range(args.turns):
        for (title, what), milliseconds in times.items():
            start = clock()
            methods[title][what]()
            milliseconds.append(1e3 * (clock() - start))
    median = {key: statistics.median(turns[1:]) for key, turns in times.items()}
    rows = []
    for title, method in methods.items():
        row = {"network": name, "d": d, "method": title}
        for what in ("forward", "gradient"):
            row[f"{what}_ms"] = median[title, what]
            row[f"{what}_ratio"] = median[title, what] / median["auto", what]
            row[f"{what}_mb"] = method[f"{what}_mb"]
        rows.append(row)
    return rows


def line(row: dict) -> str:
    """One line of the table."""
    cells = [f"{row['network']:>4} {row['d']:>2} {row['method']:>24}"]
    for what, width in (("forward", 9), ("gradient", 13)):
        memory = row[f"{what}_mb"]
        cells.append(f"{row[f'{what}_ms']:{width}.1f} {row[f'{what}_ratio']:7.2f}")
        cells.append(f"{'-' if memory is None else f'{memory:.0f}':>7}")
    return " ".join(cells)


def main() -> None:
    """Measure every case, print a table."""
    args, rows = arguments(), []
    if hasattr(os, "sched_setaffinity") and jax.default_backend() == "cpu":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    device = jax.devices()[0].device_kind
    print(f"{device}, {args.points} points, jax {jax.__version__}", flush=True)
    print(
        f"{'':>4} {'d':>2} {'method':>24} {'lap ms':>9} {'x auto':>7} {'MB':>7} "
        f"{'loss-grad ms':>13} {'x auto':>7} {'MB':>7}"
    )
    for name in args.networks:
        for d in args.dimensions:
            for row in measure(name, d, args):
                rows.append(row)
                print(line(row), flush=True)
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
