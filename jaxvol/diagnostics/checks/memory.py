"""Memory, work and time of the compiled train step, from the compiler's own analysis: nothing has
to run out of memory to find out.

Temporary memory is affine in the batch: two sizes give the line, and the line gives the largest
safe batch.  The share of the roofline is the time that the products need at the device's peak, or
the least traffic at its bandwidth, over the time of a step: a low estimate.
"""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.ops import flops
from jaxvol.training import averages
from jaxvol.types import Result

RANK = 55
NEEDS = ()
REPEATS = 3
# of the memory that may be planned with: fragmentation and libraries take the rest
SAFE = 0.9
# peak of matrix products (FLOP/s, TF32 or bf16 as JAX uses them by default) and memory bandwidth
# (B/s), from the data sheets
ROOFLINE = {"H200": (494e12, 4.8e12), "H100": (494e12, 3.35e12), "A100": (156e12, 2.0e12)}
MEANING = {
    "head_room": (
        "memory of the device as a multiple of what the train step needs",
        "lower batch_size, raise micro_batches, set model.remat=True or precision=bf16, or shard "
        "over more devices",
    ),
    "host_head_room": (
        "memory of the host as a multiple of what the train step needs on this CPU",
        "lower batch_size or the size of the volumes",
    ),
    "recompiled": (
        "how often the step was compiled again for batches of the same shape",
        "shapes or types change from step to step",
    ),
}
LIMITS = {
    "head_room": (">", 1.2, 1.0),  # multiple of what the step needs
    "host_head_room": (">", 1.5, 1.0),  # multiple of what the step needs
    "recompiled": ("<", 0.0, 3.0),  # programs
}


def applies(config) -> bool:
    return True


def prepare(ctx: Context) -> None:
    """The step of twice the batch."""
    analysis(ctx, 2 * ctx.config.batch_size)


def diagnose(ctx: Context) -> Result:
    """The step of the run's batch and of twice that, compiled; the time of the run's own."""
    size = ctx.config.batch_size
    once, twice = analysis(ctx, size), analysis(ctx, 2 * size)
    capacity, owner = memory_of_device()
    per_example = max((twice["temporary"] - once["temporary"]) / size, 1.0)
    fixed = once["temporary"] - per_example * size + once["arguments"]
    largest = int((SAFE * capacity - fixed) / per_example) if capacity else 0
    seconds = measure(ctx)
    need = once["temporary"] + once["arguments"]
    metrics = {
        "head_room" if owner == "device" else "host_head_room": capacity / need,
        "largest_batch": float(largest),
        "examples_per_second": size / seconds,
        "recompiled": recompiled(ctx),
    }
    row = demand(size, once) | speed(ctx, once, seconds)
    return Result(
        metrics,
        {
            f"train step; largest safe batch about {largest}": [
                row,
                dict.fromkeys(row, "") | demand(2 * size, twice),
            ],
            "other steps": [
                {"step": "evaluation", "temporary (MB)": evaluation_memory(ctx) / 1e6},
                {
                    "step": "checkpoint (host copy)",
                    "temporary (MB)": sum(x.nbytes for x in jax.tree.leaves(ctx.state)) / 1e6,
                },
            ],
        },
    )


def demand(size: int, program: dict[str, float]) -> dict[str, float]:
    """What the step of a batch of `size` needs, as cells of a table."""
    return {
        "batch": size,
        "temporary (MB)": program["temporary"] / 1e6,
        "arguments (MB)": program["arguments"] / 1e6,
        "GFLOP": program["flops"] / 1e9,
    }


def speed(ctx: Context, program: dict[str, float], seconds: float) -> dict[str, float]:
    """What the run's own step reaches in so many seconds, as cells of a table."""
    device = jax.local_devices()[0]
    cells = {
        "time (s)": seconds,
        "examples/s": ctx.config.batch_size / seconds,
        "GFLOP/s": program["flops"] / seconds / 1e9,
    }
    for name, (flops_per_second, bytes_per_second) in ROOFLINE.items():
        if name in device.device_kind:
            products = program["flops"] / ctx.mesh.size / flops_per_second
            traffic = program["traffic"] / bytes_per_second
            cells["share of the roofline"] = max(products, traffic) / seconds
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        cells["peak measured (MB)"] = stats["peak_bytes_in_use"] / 1e6
    return cells


@functools.lru_cache(maxsize=4)
def analysis(ctx: Context, size: int) -> dict[str, float]:
    """Bytes per device, and FLOPs of all devices (products and FFTs, ops/flops.py), of the compiled
    step for a batch of `size`.

    traffic: the least that moves through memory, every argument and result once, and every
             temporary byte written and read
    XLA's own counts of operations and bytes are not used: they take the body of a loop once.
    """
    traced = ctx.trace(size)
    # The run's own program is at hand.  A CPU's code takes the same memory without optimisation,
    # and compiles in half the time.
    options = None if size == ctx.config.batch_size else probe.quick()
    memory = traced.lower().compile(compiler_options=options).memory_analysis()
    return {
        "temporary": float(memory.temp_size_in_bytes),
        "arguments": float(memory.argument_size_in_bytes),
        "flops": flops.total(traced.jaxpr),
        "traffic": float(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + 2 * memory.temp_size_in_bytes
        ),
    }


def evaluation_memory(ctx: Context) -> float:
    """Temporary bytes of the compiled evaluation."""
    batch = ctx.put(ctx.batches(probe.split(ctx), 1)[0])
    params, extra = averages.weights_of(ctx.state, "raw")
    return float(
        ctx.evaluate.lower(params, extra, batch, jax.random.key(0))
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


def memory_of_device() -> tuple[float, str]:
    """(bytes that a step may use, whose they are): the device's where it reports them, else the
    host's.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"]), "device"
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    return float(lines["MemTotal"].split()[0]) * 1024 / max(jax.local_device_count(), 1), "host"


def measure(ctx: Context) -> float:
    """Seconds of one update: the median of REPEATS, each waited for."""
    state, batch, times = probe.copy(ctx.state), ctx.batch(0), []
    for step in range(REPEATS + 1):
        began = time.perf_counter()
        state, metrics = ctx.step(state, batch, jnp.int32(step))
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))


def recompiled(ctx: Context) -> float:
    """Programs compiled for the step beyond the first, after batches of several steps."""
    probe.short_run(ctx)
    return float(max(ctx.step._cache_size() - 1, 0)) if hasattr(ctx.step, "_cache_size") else 0.0
