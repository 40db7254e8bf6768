"""Pruned transforms of volumes that are split over devices: no device gathers a field."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvol.ops import fourier


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("how", ["fft", "dft"])
def test_no_device_gathers_a_field(how):
    """Forward and backward agree with one device and move nothing but the modes of the window.

    Batch over data and fsdp, depth over space.
    """
    mesh = Mesh(
        np.asarray(jax.devices()[:8]).reshape(2, 2, 2),
        ("data", "fsdp", "space"),
        axis_types=(AxisType.Auto,) * 3,
    )
    window = fourier.window((2, 2, 2))
    rng = np.random.default_rng(16)
    x = rng.normal(size=(4, 16, 16, 16, 2))
    weight = rng.normal(size=(2, *fourier.window_size(window), 2, 2))

    def energy(x, real, imag):
        y = fourier.spectral_conv(x, (real, imag), (), window, implementation=how)
        return jnp.sum(y**2), y

    gradient = jax.value_and_grad(energy, (0, 1, 2), has_aux=True)
    expected = jax.jit(gradient)(x, *weight)
    field, whole = NamedSharding(mesh, P(("data", "fsdp"), "space")), NamedSharding(mesh, P())
    with jax.set_mesh(mesh):
        compiled = jax.jit(gradient, in_shardings=(field, whole, whole)).lower(x, *weight).compile()
        sharded = compiled(*jax.device_put((x, *weight), (field, whole, whole)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), sharded, expected)
    assert largest_gather(compiled.as_text()) < x.size / 8


def largest_gather(program: str) -> int:
    """Elements of the largest all-gather or all-to-all result in a compiled program."""
    results = re.findall(r" = (\S.*?) (?:all-gather|all-to-all)(?:-start)?\(", program)
    return max(
        (
            math.prod(int(n) for n in dims.split(",") if n)
            for result in results
            for dims in re.findall(r"\w+\[([\d,]*)\]", result)
        ),
        default=0,
    )
