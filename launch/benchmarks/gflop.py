"""Work of a prediction and of a training step per example, counted in the traced program
(jaxvol/ops/flops.py); nothing is computed.

    python launch/benchmarks/gflop.py configs/benchmark.py:fno-small configs/benchmark.py:vnet-small

The program is that of this machine: one CPU convolves 3 x 3 x 3 voxels with Winograd's half of the
products (jaxvol/ops/conv2d_planes.py), a GPU does not.
XLA_FLAGS=--xla_force_host_platform_device_count=2 shows the direct convolutions of all other
machines.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from jaxvol.config import command_line, components
from jaxvol.ops import flops  # noqa: E402
from jaxvol.training import (
    assemble,
    sharding,  # noqa: E402
)


def measure(name: str) -> tuple[dict[str, int], float, float]:
    """(parameters per group, GFLOP of a prediction, GFLOP of a training step per example) of a
    config on one device.
    """
    config, _, _ = command_line.parse(["gflop", f"--config={name}"])
    spec, mesh = components.dataset(config).spec, sharding.one_device()
    with jax.set_mesh(mesh):
        task = components.task(config, spec)
        _, state = assemble.state_template(config, spec, config.total_steps, mesh)
        step, _ = assemble.compiled(
            config,
            mesh,
            task,
            assemble.make_optimizers(config, state.params, config.total_steps),
            state,
        )
        # an evaluation batch, as evaluation/metrics.json has it
        sizes = config.evaluate.batch_size, config.batch_size
        scored, trained = (components.example(config, spec, size) for size in sizes)
        work = (
            flops.count(task.predict, state.params, state.extra, scored),
            flops.count(step, state, trained, jax.ShapeDtypeStruct((), jnp.int32)),
        )
    parameters = {
        group: sum(x.size for x in jax.tree.leaves(tree)) for group, tree in state.params.items()
    }
    return parameters, *(n / size / 1e9 for n, size in zip(work, sizes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", help="config files, with :variant")
    print(f"{'config':40} {'GFLOP per prediction':>22} {'per trained example':>22}  parameters")
    for given in parser.parse_args().configs:
        parameters, forward, whole = measure(given)
        print(
            f"{given:40} {forward:22.3g} {whole:22.3g}  "
            f"{', '.join(f'{group} {n:,}' for group, n in parameters.items())}"
        )
