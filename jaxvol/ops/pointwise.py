"""Functions of each voxel's or token's features whose gradients are written out, because of how
XLA's CPU backend treats them.

Differentiated by JAX, `gelu` keeps two arrays for the backward pass and `standardise` is computed
several times over in the operations that it is fused with.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Array = jax.Array
EPSILON = 1e-5


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """x Phi(x), exact (not the tanh form), computed in at least float32, in x's dtype.  The
    backward pass keeps x alone.
    """
    return _value_and_slope(x)[0].astype(x.dtype)


def _value_and_slope(x: Array) -> tuple[Array, Array]:
    z = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    cdf = 0.5 * (1 + jax.lax.erf(z * math.sqrt(0.5)))
    return z * cdf, cdf + z * jnp.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    # else XLA would keep cdf from the forward pass
    slope = _value_and_slope(jax.lax.optimization_barrier(x))[1]
    return ((slope * dy).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def standardise(x: Array) -> Array:
    """h = (x - mean) / sqrt(var + 1e-5) over the last axis: layer normalisation without its scale
    and bias, in x's dtype.
    """
    return _standardise(x)[0]


def _standardise(x: Array) -> tuple[Array, tuple[Array, Array]]:
    x = x - x.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)
    return x * factor, (x * factor, factor)


def _standardise_backward(saved: tuple[Array, Array], dh: Array) -> tuple[Array]:
    """(dh - mean(dh) - h mean(h dh)) / sqrt(var + 1e-5)."""
    h, factor = saved
    return (factor * (dh - dh.mean(-1, keepdims=True) - h * (h * dh).mean(-1, keepdims=True)),)


standardise.defvjp(_standardise, _standardise_backward)
