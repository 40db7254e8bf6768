"""GFLOP of a prediction and of a training step per example, counted in the traced program.

    python launch/benchmarks/gflop.py configs/benchmark.py:fno-small configs/benchmark.py:vnet-small

Nothing is computed: jaxvol/ops/flops.py counts the products and FFTs of the program.  The program
is that of this machine: one CPU convolves 3 x 3 x 3 voxels with Winograd's half of the products
(jaxvol/ops/conv2d_planes.py), a GPU does not.  With
XLA_FLAGS=--xla_force_host_platform_device_count=2 the count is that of the direct convolutions of
all other machines.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp

from jaxvol.config import command_line, components
from jaxvol.ops import flops
from jaxvol.training import assemble, sharding


def measure(name: str) -> tuple[dict[str, int], float, float]:
    """(parameters per group, GFLOP per predicted example, GFLOP per trained example) of a config.

    name: as after `--config=`, with its variant.  The program is that of one device.
    """
    config, _, _ = command_line.parse(["gflop", f"--config={name}"])
    spec, mesh = components.dataset(config).spec, sharding.one_device()
    with jax.set_mesh(mesh):
        task = components.task(config, spec)
        _, state = assemble.state_template(config, spec, config.total_steps, mesh)
        optimizers = assemble.make_optimizers(config, state.params, config.total_steps)
        step, _ = assemble.compiled(config, mesh, task, optimizers, state)
        # an evaluation batch, as evaluation/metrics.json has it
        predicted = components.example(config, spec, config.evaluate.batch_size)
        trained = components.example(config, spec, config.batch_size)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        forward = flops.count(task.predict, state.params, state.extra, predicted)
        update = flops.count(step, state, trained, number)
    parameters = {
        group: sum(x.size for x in jax.tree.leaves(tree)) for group, tree in state.params.items()
    }
    return (
        parameters,
        forward / config.evaluate.batch_size / 1e9,
        update / config.batch_size / 1e9,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", help="config files, with :variant")
    names = parser.parse_args().configs
    print(f"{'config':40} {'GFLOP per prediction':>22} {'per trained example':>22}  parameters")
    for name in names:
        parameters, forward, update = measure(name)
        sizes = ", ".join(f"{group} {number:,}" for group, number in parameters.items())
        print(f"{name:40} {forward:22.3g} {update:22.3g}  {sizes}")
