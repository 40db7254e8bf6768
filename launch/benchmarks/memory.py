"""Memory of one training step per device when the depth of a volume is split over several: the
compiler's own numbers.

    python launch/benchmarks/memory.py [--size=128] [--models=fno,vit3d,vnet] [--devices=1,2,4,8,0]
    [--out=FILE.json]

Nothing is run: the whole step (loss, gradients, AdamW, average) is lowered and compiled for that
many CPU devices, on the mesh space=n, at batch 1.  Printed per device: temporary bytes, their ratio
to an equal share of one device's (1 = perfect), the collectives, and the largest all-gather, which
must not have a field's voxels (keys of attention are less).  One device of several runs the program
that GPUs run; "alone" is what a CPU without others runs, which works slab by slab and head by head
and needs less.
"""

from __future__ import annotations

import argparse
import json
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
    """The config that is measured: a width that a GPU would train at 128^3, no pre-flight, nothing
    read from disk.
    """
    from ml_collections import ConfigDict

    from jaxvol.config import base

    config = base.common()
    config.model, config.task, config.data = (
        base.model(model),
        base.task("regression"),
        ConfigDict({"name": "none"}),
    )
    config.batch_size, config.mesh.space = 1, -1
    config.mesh.data = 1
    config.total_steps = 1000
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

    pass
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
        optimizers = assemble.optimizers(config, state.params, config.total_steps)
        step, _ = assemble.compiled(config, mesh, task, optimizers, state)
        batch = {
            name: jax.ShapeDtypeStruct(
                s.shape, s.dtype, sharding=sharding.batch_sharding(mesh, s.ndim)
            )
            for name, s in components.example(config, spec, 1).items()
        }
        return step.lower(state, batch, jax.ShapeDtypeStruct((), jnp.int32)).compile()


def collectives(text: str) -> dict[str, list[int]]:
    """{kind: elements of its results on one device, one entry per result} in a compiled program."""
    found: dict[str, list[int]] = {}
    for types, kind in COLLECTIVE.findall(text):
        for shape in re.findall(r"\w+\[([\d,]*)\]", types):
            elements = 1
            for n in shape.split(","):
                elements *= int(n or 1)
            found.setdefault(kind, []).append(elements)
    return found


def measure(model: str, size: int, devices: int) -> dict:
    """One compilation."""
    began = time.monotonic()
    compiled = compile_step(model, size, devices)
    memory, found = compiled.memory_analysis(), collectives(compiled.as_text())
    gathers = found.pop("all-gather", [])
    return {
        "model": model,
        "devices": devices,
        "size": size,
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "gathered_fields": [n for n in gathers if n >= size**3],
        "largest_gather": max(gathers, default=0),
        "collectives": {kind: [len(n), max(n)] for kind, n in found.items()},
        "seconds": time.monotonic() - began,
    }


def one(model: str, size: int, devices: int) -> dict:
    """`measure` in a process of its own, which sees `devices` CPU devices."""
    seen = 1 if devices == 0 else max(devices, 2)  # models ask how many devices there are
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={seen}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            "--inside",
            f"--models={model}",
            f"--size={size}",
            f"--devices={devices}",
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {
            "model": model,
            "devices": devices,
            "size": size,
            "error": said[-1] if said else f"exit {done.returncode}",
        }
    return json.loads(done.stdout.splitlines()[-1])


def line(found: dict, single: dict) -> str:
    """One row of the table; `single` is the same model on one device."""
    head = f"{found['model']:7s} {found['devices'] or 'alone':>5}"
    if "error" in found:
        return f"{head}  {found['error']}"
    ratio = found["temporary"] * max(found["devices"], 1) / single["temporary"]
    verdict = "ok" if ratio <= LIMITS[found["model"]] and not found["gathered_fields"] else "NO"
    moved = ", ".join(
        f"{n} {kind} (<= {most})" for kind, (n, most) in sorted(found["collectives"].items())
    )
    return (
        f"{head}  {found['temporary'] / 2**20:9.1f} MiB  {ratio:5.2f} <= {LIMITS[found['model']]} "
        f"{verdict}  "
        f"largest gather {found['largest_gather']} of {found['size'] ** 3} voxels  {moved}"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--size", type=int, default=128)
    arguments.add_argument("--models", default="fno,vit3d,vnet")
    arguments.add_argument("--devices", default="1,2,4,8,0", help="0 = one CPU alone")
    arguments.add_argument("--out", default="")
    arguments.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    models = chosen.models.split(",")
    if chosen.inside:
        print(json.dumps(measure(models[0], chosen.size, int(chosen.devices))))
        return
    rows = []
    for model in models:
        found = [one(model, chosen.size, int(n)) for n in chosen.devices.split(",")]
        for row in found:
            print(line(row, found[0]), flush=True)
        rows += found
    if chosen.out:
        Path(chosen.out).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
