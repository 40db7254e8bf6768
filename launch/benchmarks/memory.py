"""Memory of one training step per device when the depth of a volume is split over several.

    python launch/benchmarks/memory.py [--size=128] [--models=fno,vit3d,vnet]
                                       [--devices=1,2,4,8,0] [--out=FILE.json]

The numbers are the compiler's own and nothing is run: the whole step (loss, gradients, AdamW,
average) is lowered and compiled for that many CPU devices, on the mesh space=n, at batch 1.
Printed per device: temporary bytes, their ratio to an equal share of one device's (1 = perfect),
the collectives, and the largest all-gather, which must not have a field's voxels (keys of
attention are less).  One device of several runs the program that GPUs run; "alone" is what a CPU
without others runs, which works slab by slab and head by head and needs less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
# of DESIGN: temporary bytes per device times n, over those of one device
LIMITS = {"fno": 1.25, "vit3d": 1.25, "vnet": 1.6}
COLLECTIVE = re.compile(
    r"= (\S.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def config_of(model: str, size: int):
    """The config that is measured: a width that a GPU would train at 128^3, no data on disk."""
    from ml_collections import ConfigDict

    from jaxvol.config import base

    config = base.common()
    config.model, config.task = base.model(model), base.task("regression")
    config.data = ConfigDict({"name": "none"})
    config.batch_size, config.total_steps = 1, 1000
    config.mesh.space, config.mesh.data = -1, 1
    if model == "fno":
        config.model.width, config.model.modes = 20, (16, 16, 16)
        config.model.factorization, config.model.rank = "tucker", 0.02
    if model == "vit3d":
        config.model.patch = (size // 16,) * 3  # 4096 tokens whatever the size
    return config.lock()


def compile_step(model: str, size: int, devices: int):
    """The compiled train step, mesh space = `devices`, 0 for all there are."""
    import jax
    import jax.numpy as jnp

    from jaxvol.config import components
    from jaxvol.training import assemble, sharding
    from jaxvol.types import Field, Spec

    config = config_of(model, size)
    spec = Spec(
        fields={"input": Field(("x",)), "target": Field(("y",))},
        shape=(size,) * 3,
        spacing=(4.0,) * 3,
        unit="Mpc/h",
        periodic=(True,) * 3,
        wrap=(True,) * 3,
    )
    mesh = sharding.make_mesh(config.mesh, jax.devices()[: devices or None])
    with jax.set_mesh(mesh):
        task = components.task(config, spec)
        _, state = assemble.state_template(config, spec, config.total_steps, mesh)
        optimizers = assemble.make_optimizers(config, state.params, config.total_steps)
        step, _ = assemble.compiled(config, mesh, task, optimizers, state)
        batch = {
            name: jax.ShapeDtypeStruct(
                s.shape, s.dtype, sharding=sharding.batch_sharding(mesh, s.ndim)
            )
            for name, s in components.example(config, spec, 1).items()
        }
        return step.lower(state, batch, jax.ShapeDtypeStruct((), jnp.int32)).compile()


def collectives(text: str) -> dict[str, list[int]]:
    """{name: elements of its results on one device, one entry per result} in a compiled program."""
    elements: dict[str, list[int]] = {}
    for types, name in COLLECTIVE.findall(text):
        for shape in re.findall(r"\w+\[([\d,]*)\]", types):
            sizes = [int(n or 1) for n in shape.split(",")]
            elements.setdefault(name, []).append(math.prod(sizes))
    return elements


def measure(model: str, size: int, devices: int) -> dict:
    """One compilation: a row of the table."""
    began = time.monotonic()
    compiled = compile_step(model, size, devices)
    memory, results = compiled.memory_analysis(), collectives(compiled.as_text())
    gathers = results.pop("all-gather", [])
    return {
        "model": model,
        "devices": devices,
        "size": size,
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "gathered_fields": [n for n in gathers if n >= size**3],
        "largest_gather": max(gathers, default=0),
        "collectives": {name: [len(n), max(n)] for name, n in results.items()},
        "seconds": time.monotonic() - began,
    }


def one(model: str, size: int, devices: int) -> dict:
    """`measure` in a process of its own, which sees `devices` CPU devices; 0 = one CPU alone."""
    visible = 1 if devices == 0 else max(devices, 2)  # models ask how many devices there are
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_TRACEBACK_FILTERING": "off",  # the last line of an error is the error
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={visible}",
        "PYTHONPATH": str(ROOT),
    }
    flags = ["--inside", f"--models={model}", f"--size={size}", f"--devices={devices}"]
    done = subprocess.run(
        [sys.executable, __file__, *flags], env=environment, capture_output=True, text=True
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    output = [line for line in done.stderr.splitlines() if line.strip()]
    error = output[-1] if output else f"exit {done.returncode}"
    return {"model": model, "devices": devices, "size": size, "error": error}


def line(row: dict, single: dict) -> str:
    """One row of the table; `single` is the same model on one device."""
    head = f"{row['model']:7s} {row['devices'] or 'alone':>5}"
    if "error" in row:
        return f"{head}  {row['error']}"
    if "error" in single:
        return f"{head}  {row['temporary'] / 2**20:9.1f} MiB  nothing to compare it with"
    ratio = row["temporary"] * max(row["devices"], 1) / single["temporary"]
    limit = LIMITS[row["model"]]
    verdict = "ok" if ratio <= limit and not row["gathered_fields"] else "NO"
    moved = ", ".join(
        f"{n} {name} (<= {most})" for name, (n, most) in sorted(row["collectives"].items())
    )
    return (
        f"{head}  {row['temporary'] / 2**20:9.1f} MiB  {ratio:5.2f} <= {limit} {verdict}  "
        f"largest gather {row['largest_gather']} of {row['size'] ** 3} voxels  {moved}"
    )


def main() -> None:
    """Print the table; with --out, write its rows as JSON as well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--models", default="fno,vit3d,vnet")
    parser.add_argument("--devices", default="1,2,4,8,0", help="0 = one CPU alone")
    parser.add_argument("--out", default="")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    models = args.models.split(",")
    if args.inside:
        print(json.dumps(measure(models[0], args.size, int(args.devices))))
        return
    rows = []
    for model in models:
        of_model = []
        for devices in args.devices.split(","):
            of_model.append(one(model, args.size, int(devices)))
            print(line(of_model[-1], of_model[0]), flush=True)
        rows += of_model
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
