"""Time and memory of every method of jaxvol/ops/laplacian.py, next to folx, torch autograd and
torch.func where installed.

    python launch/benchmarks/bench_laplacian.py                                # d = 1 ... 4, KAN
    and MLP, 4,096 points python launch/benchmarks/bench_laplacian.py --dimensions 3 --networks kan
    --output laplacian.json

Two programs: the Laplacian alone, and the gradient of mean (lap u + 1)^2 with respect to the
              weights, which is what a training
step pays.  Networks have four hidden layers of 64 neurons (KAN: degree 4), float32.  Processor time
of one thread pinned to one core, all methods in turn in one process, median; ratios are times over
that of `auto`.  On an accelerator: the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
os.environ["OMP_NUM_THREADS"] = "1"
sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from jaxvol.models.cheb_kan import ChebKAN  # noqa: E402
from jaxvol.models.mlp import MLP  # noqa: E402
from jaxvol.ops.laplacian import laplacian  # noqa: E402

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


def network(kind: str, d: int):
    """The module: [N, d] -> [N, 1]."""
    common = {"channels": 1, "widths": (WIDTH,) * DEPTH, "factor": (1.0,) * d, "shift": (0.0,) * d}
    if kind == "kan":
        return ChebKAN(degree=DEGREE, form="tanh", initial="xavier", **common)
    return MLP(kind="tanh", omega=1.0, fourier_features=1, fourier_scale=1.0, **common)


def programs(kind: str, d: int, points: int) -> dict[str, dict]:
    """{method: {"forward", "gradient": a function that runs once, "forward_mb", "gradient_mb":
    temporary memory}}.
    """
    model, x = network(kind, d), jax.random.uniform(jax.random.key(0), (points, d), minval=-1.0)
    variables, found = model.init(jax.random.key(1), x), {}
    for name, (method, chunk) in METHODS.items():
        lap = lambda v, m=method, c=chunk: laplacian(lambda p: model.apply(v, p), m, c)(x)[2]
        row = {}
        for what, f in (
            ("forward", lap),
            ("gradient", jax.grad(lambda v: jnp.mean((lap(v) + 1) ** 2))),
        ):
            compiled = jax.jit(f).lower(variables).compile()
            row[what] = lambda c=compiled: jax.block_until_ready(c(variables))
            row[f"{what}_mb"] = compiled.memory_analysis().temp_size_in_bytes / 1e6
        found[name] = row
    return found | torch_programs(kind, d, points)


def torch_programs(kind: str, d: int, points: int) -> dict[str, dict]:
    """The same for the rivals."""
    if not RIVALS:
        return {}
    import rivals

    return {
        name: {**found, "forward_mb": None, "gradient_mb": None}
        for name, found in rivals.laplacians(
            kind, (d, *[WIDTH] * DEPTH, 1), DEGREE, points, RIVALS
        ).items()
    }


def measure(kind: str, d: int, args: argparse.Namespace) -> list[dict]:
    """One row per method."""
    rows, clock = (
        programs(kind, d, args.points),
        time.process_time if jax.default_backend() == "cpu" else time.perf_counter,
    )
    times = {(name, what): [] for name in rows for what in ("forward", "gradient")}
    for _ in range(args.turns):
        for (name, what), found in times.items():
            start = clock()
            rows[name][what]()
            found.append(1e3 * (clock() - start))
    median = {key: statistics.median(found[1:]) for key, found in times.items()}
    return [
        {
            "network": kind,
            "d": d,
            "method": name,
            **{f"{what}_ms": median[name, what] for what in ("forward", "gradient")},
            **{
                f"{what}_ratio": median[name, what] / median["auto", what]
                for what in ("forward", "gradient")
            },
            **{key: rows[name][key] for key in ("forward_mb", "gradient_mb")},
        }
        for name in rows
    ]


def main() -> None:
    """Measure every case, print a table."""
    args, rows = arguments(), []
    if hasattr(os, "sched_setaffinity") and jax.default_backend() == "cpu":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(
        f"{jax.devices()[0].device_kind}, {args.points} points, jax {jax.__version__}", flush=True
    )
    print(
        f"{'':>4} {'d':>2} {'method':>24} {'lap ms':>9} {'x auto':>7} {'MB':>7} "
        f"{'loss-grad ms':>13} {'x auto':>7} {'MB':>7}"
    )
    for kind in args.networks:
        for d in args.dimensions:
            for row in measure(kind, d, args):
                rows.append(row)
                memory = {
                    key: "-" if row[key] is None else f"{row[key]:.0f}"
                    for key in ("forward_mb", "gradient_mb")
                }
                print(
                    f"{kind:>4} {d:>2} {row['method']:>24} {row['forward_ms']:9.1f} "
                    f"{row['forward_ratio']:7.2f} {memory['forward_mb']:>7} "
                    f"{row['gradient_ms']:13.1f} {row['gradient_ratio']:7.2f} "
                    f"{memory['gradient_mb']:>7}",
                    flush=True,
                )
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
