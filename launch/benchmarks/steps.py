"""One train step of one of the four models, or of its PyTorch counterpart, timed in this process.

A case is a dict with the keys model, by (jaxvol or torch), size (voxels per axis), precision (f32,
bf16), implementation (of the FNO's transform: auto, fft, dft), batch, steps and one_thread.
launch/benchmarks/bench.py makes the cases.  n_modes = 16 of neuraloperator 2 is modes = 8 with the
one-sided window here.
"""

from __future__ import annotations

import os
import time

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


def pin(case: dict) -> None:
    """One thread means one core."""
    if case["one_thread"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def timed(step, clock, count: int) -> list[float]:
    """Milliseconds of each of `count` steps, after two that warm up."""
    times = []
    for _ in range(count + 2):
        start = clock()
        step()
        times.append(1e3 * (clock() - start))
    return times[2:]


def model_of(case: dict):
    """The linen module of a case, on a periodic box of size^3 voxels."""
    from ml_collections import ConfigDict

    from jaxvol.config import base, components
    from jaxvol.types import Field, Spec

    config = ConfigDict({"precision": case["precision"], "model": base.model(case["model"])})
    config.model.update(FIELDS[case["model"]])
    if case["model"] == "fno":
        config.model.implementation = case["implementation"]
    fields = {"input": Field(("x",)), "target": Field(("y",))}
    shape = (case["size"],) * 3
    spec = Spec(fields=fields, shape=shape, spacing=(1.0,) * 3, periodic=(True,) * 3)
    return components.model(config, spec)


def measure_jax(case: dict) -> dict:
    """Times and memory of one of this project's models."""
    pin(case)
    import jax
    import jax.numpy as jnp
    import optax

    n, model = case["size"], model_of(case)
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
    by_processor = device.platform == "cpu" and case["one_thread"]
    clock = time.process_time if by_processor else time.perf_counter
    times = timed(advance, clock, case["steps"])
    memory, device_memory = compiled.memory_analysis(), device.memory_stats() or {}
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
        "peak_device_mb": device_memory.get("peak_bytes_in_use", 0) / 1e6 or None,
    }


def transform(model, implementation: str, n: int) -> str:
    """How the FNO transforms; the others do not."""
    from jaxvol.ops import fourier

    if not hasattr(model, "frequencies"):
        return "-"
    return fourier.choose(implementation, (n,) * 3, model.frequencies)


def counterpart(case: dict):
    """The PyTorch module of a case."""
    from launch.benchmarks import rivals

    fields, n = FIELDS[case["model"]], case["size"]
    if case["model"] == "fno":
        from neuralop.models import FNO

        return FNO(
            n_modes=(2 * MODES,) * 3,
            in_channels=1,
            out_channels=1,
            hidden_channels=fields["width"],
            n_layers=fields["layers"],
        )
    if case["model"] == "vnet":
        return rivals.vnet(fields["widths"])
    if case["model"] == "vit3d":
        return rivals.vit3d(
            n,
            fields["patch"][0],
            fields["width"],
            fields["layers"],
            fields["heads"],
            fields["head_features"],
            2 * fields["width"],
        )
    return rivals.pix2pixcc(fields["width"], fields["downs"], fields["blocks"])


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
