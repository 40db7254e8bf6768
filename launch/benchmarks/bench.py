"""Step time, throughput, compile time and peak memory of the four models, next to PyTorch
counterparts where those are installed.

    python launch/benchmarks/bench.py                                    # 32, 64 and 128 cubed,
    float32 and bfloat16 python launch/benchmarks/bench.py --sizes 32 64 --precisions f32 --output
    bench.json
    python launch/benchmarks/bench.py --rival                            # also PyTorch
    (neuraloperator), in turn, one thread, process time python launch/benchmarks/bench.py --models
    fno vnet vit3d pix2pixcc --sizes 32 --precisions f32 --rival

One step is MSE, gradient, clipping by the global norm and Adam.  Each number is measured in a
process of its own.  On a CPU one step is timed by the processor time of one thread, so that a busy
machine does not decide, and rivals take turns; on an accelerator by the clock.  Rivals have the
same layers and parameters (launch/benchmarks/rivals.py): n_modes = 16 of neuraloperator 2 is modes
= 8 with the one-sided window here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEARNING_RATE, CLIP, MODES = 1e-3, 1.0, 8
FIELDS = {  # of config.model
    "fno": {
        "width": 20,
        "layers": 4,
        "modes": (MODES,) * 3,
        "window": "one_sided",
        "coordinates": "all",
    },
    "vnet": {"widths": (16, 32, 64, 80)},
    "vit3d": {
        "patch": (4, 4, 4),
        "width": 128,
        "layers": 4,
        "heads": 4,
        "head_features": 32,
        "embed": "linear",
        "head": "linear",
        "position": "learned",
    },
    "pix2pixcc": {
        "width": 16,
        "downs": 2,
        "blocks": 4,
        "norm": "instance",
        "skips": "none",
        "bias_before_norm": True,
        "down_padding": "zero",
        "padding": "replicate",
    },
}


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["fno"], choices=list(FIELDS))
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


def main() -> None:
    """Measure every case and print a table and JSON."""
    args = arguments()
    if args.worker:
        case = json.loads(args.worker)
        print(json.dumps((measure_torch if case["by"] == "torch" else measure_jax)(case)))
        return
    rival = bool(find_spec("torch") and find_spec("neuralop")) if args.rival is None else args.rival
    cases = [
        {
            "model": m,
            "by": "jaxvol",
            "size": n,
            "precision": p,
            "implementation": i,
            "batch": args.batch,
            "steps": args.steps,
            "one_thread": rival,
        }
        for m in args.models
        for n in args.sizes
        for p in args.precisions
        for i in (args.implementations if m == "fno" else ["auto"])
    ]
    if rival:
        cases += [
            {
                **cases[0],
                "model": m,
                "by": "torch",
                "size": n,
                "precision": "f32",
                "implementation": "fft",
            }
            for m in args.models
            for n in args.sizes
        ]
    turns = {i: [] for i in range(len(cases))}
    for _ in range(args.turns):
        for i, case in enumerate(cases):
            turns[i].append(run(case))
    rows = [merge(turn) for turn in turns.values()]
    for row in rows:
        reference = next(
            (
                r
                for r in rows
                if r["by"] == "torch" and (r["size"], r["model"]) == (row["size"], row["model"])
            ),
            None,
        )
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


def pin(case: dict) -> None:
    """One thread means one core."""
    if case["one_thread"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def timed(step, clock, count: int) -> list[float]:
    """Milliseconds of each of `count` steps, after two that warm up."""
    times = []
    for i in range(count + 2):
        start = clock()
        step()
        times.append(1e3 * (clock() - start))
    return times[2:]


def measure_jax(case: dict) -> dict:
    """One of this project's models."""
    pin(case)
    import jax
    import jax.numpy as jnp
    import optax
    from ml_collections import ConfigDict

    from jaxvol.config import base, components
    from jaxvol.types import Field, Spec

    n = case["size"]
    config = ConfigDict({"precision": case["precision"], "model": base.model(case["model"])})
    config.model.update(
        FIELDS[case["model"]]
        | ({"implementation": case["implementation"]} if case["model"] == "fno" else {})
    )
    fields = {"input": Field(("x",)), "target": Field(("y",))}
    model = components.model(
        config, Spec(fields=fields, shape=(n,) * 3, spacing=(1.0,) * 3, periodic=(True,) * 3)
    )
    x, y = (jax.random.normal(jax.random.key(i), (case["batch"], n, n, n, 1)) for i in (0, 1))
    variables = jax.jit(model.init)(jax.random.key(2), x)
    params = {"params": variables["params"]}
    optimizer = optax.adam(LEARNING_RATE)

    def step(params, opt, x, y):
        grads = jax.grad(lambda p: jnp.mean((model.apply(p, x) - y) ** 2))(params)
        scale = jnp.minimum(1.0, CLIP / optax.global_norm(grads))
        updates, opt = optimizer.update(jax.tree.map(lambda g: g * scale, grads), opt, params)
        return optax.apply_updates(params, updates), opt

    state = [params, jax.jit(optimizer.init)(params)]
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*state, x, y).compile()
    seconds = time.perf_counter() - start

    def advance():
        state[:] = jax.block_until_ready(compiled(*state, x, y))

    device = jax.devices()[0]
    cpu = device.platform == "cpu"
    times = timed(
        advance,
        time.process_time if cpu and case["one_thread"] else time.perf_counter,
        case["steps"],
    )
    memory, held = compiled.memory_analysis(), device.memory_stats() or {}
    return {
        **case,
        "times_ms": times,
        "compile_s": seconds,
        "parameters": sum(p.size for p in jax.tree.leaves(state[0])),
        "implementation": transform(model, case["implementation"], n),
        "device": device.device_kind,
        "version": f"jax {jax.__version__}",
        "temporary_mb": memory.temp_size_in_bytes / 1e6,
        "argument_mb": memory.argument_size_in_bytes / 1e6,
        "peak_device_mb": held.get("peak_bytes_in_use", 0) / 1e6 or None,
    }


def transform(model, asked: str, n: int) -> str:
    """How the FNO transforms; the others do not."""
    from jaxvol.ops import fourier

    return fourier.choose(asked, (n,) * 3, model.kept) if hasattr(model, "kept") else "-"


def counterpart(case: dict):
    """The PyTorch module of a case."""
    import rivals

    own, n = FIELDS[case["model"]], case["size"]
    if case["model"] == "fno":
        from neuralop.models import FNO

        return FNO(
            n_modes=(2 * MODES,) * 3,
            in_channels=1,
            out_channels=1,
            hidden_channels=own["width"],
            n_layers=own["layers"],
        )
    if case["model"] == "vnet":
        return rivals.vnet(own["widths"])
    if case["model"] == "vit3d":
        return rivals.vit3d(
            n,
            own["patch"][0],
            own["width"],
            own["layers"],
            own["heads"],
            own["head_features"],
            2 * own["width"],
        )
    return rivals.pix2pixcc(own["width"], own["downs"], own["blocks"])


def measure_torch(case: dict) -> dict:
    """The counterpart with default options, on a CPU."""
    pin(case)
    import torch

    torch.set_num_threads(1 if case["one_thread"] else torch.get_num_threads())
    torch.manual_seed(0)
    n = case["size"]
    model = counterpart(case)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    x, y = torch.randn(2, case["batch"], 1, n, n, n)

    def advance():
        optimizer.zero_grad(set_to_none=True)
        ((model(x) - y) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    times = timed(
        advance, time.process_time if case["one_thread"] else time.perf_counter, case["steps"]
    )
    count = sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters())
    return {
        **case,
        "times_ms": times,
        "compile_s": None,
        "parameters": count,
        "device": "cpu",
        "version": f"torch {torch.__version__}",
        "temporary_mb": None,
        "argument_mb": None,
        "peak_device_mb": None,
    }


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
