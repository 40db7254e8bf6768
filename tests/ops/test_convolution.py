"""Convolutions made of 2D ones against XLA's 3D convolution, to the second derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.ops import convolution

# the way of jaxvol/ops/conv2d_planes.py: voxels, kernel, stride, channels in, channels out
CASES = {
    "winograd": ((8, 6, 5), 3, 1, 8, 8),
    "direct": ((7, 6, 5), 3, 1, 8, 9),
    "direct, few inputs": ((9, 8, 7), 5, 1, 1, 8),
    "direct, stride": ((9, 8, 7), 4, 2, 3, 5),
    "late sum, one output": ((8, 9, 7), 7, 1, 6, 1),
    "late sum, three outputs": ((6, 5, 7), 3, 1, 6, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_planes_equal_xla_to_the_second_derivative(case):
    """In float64; the relative bound is for the largest entry of each array."""
    grid, size, stride, c, k = CASES[case]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, w, along = (
            jnp.asarray(rng.normal(size=shape))
            for shape in ((2, *grid, c), (size,) * 3 + (c, k), (2, *grid, c))
        )

        def measured(how):
            def total(x, w):
                return jnp.sum(
                    jnp.sin(convolution.conv(x, w, stride, ((1, 1),) * 3, "periodic", how))
                )

            def slope(x, w):
                return jnp.vdot(jax.grad(total)(x, w), along)

            return (
                convolution.conv(x, w, stride, ((1, 1),) * 3, "periodic", how),
                jax.grad(total, (0, 1))(x, w),
                jax.grad(slope, (0, 1))(x, w),
            )

        ours, theirs = (
            jax.tree.leaves(jax.jit(measured, static_argnums=0)(how)) for how in ("planes", "lax")
        )
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-10 * np.abs(other).max())
