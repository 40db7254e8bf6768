"""Activations and normalisation of each voxel's or token's features, with hand-written gradients.

Differentiated by JAX, they would keep several arrays for the backward pass, and XLA's CPU backend
would compute `standardise` several times over in the operations that it is fused with.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Array = jax.Array
EPSILON = 1e-5


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """x Phi(x), exact (not the tanh form), computed in at least float32, in x's dtype.

    The derivative shares the error function with the value and is kept for the backward pass: for
    what is computed again there anyway, slab by slab in the cache (`jaxvol.ops.chunked`).
    """
    return _gelu_and_slope(x)[0].astype(x.dtype)


@gelu.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value, slope = (v.astype(primals[0].dtype) for v in _gelu_and_slope(primals[0]))
    return value, slope * tangents[0]


@jax.custom_vjp
def lean_gelu(x: Array) -> Array:
    """`gelu` whose backward pass keeps x alone and computes the error function once more."""
    return _gelu_and_slope(x)[0].astype(x.dtype)


def _lean_gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    # else XLA would keep the error function from the forward pass
    slope = _gelu_and_slope(jax.lax.optimization_barrier(x))[1]
    return ((slope * dy).astype(x.dtype),)


lean_gelu.defvjp(lambda x: (lean_gelu(x), x), _lean_gelu_backward)


def _gelu_and_slope(x: Array) -> tuple[Array, Array]:
    """x Phi(x) and its derivative Phi(x) + x phi(x), in at least float32."""
    z = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    cdf = 0.5 * (1 + jax.lax.erf(z * math.sqrt(0.5)))
    slope = cdf + z * jnp.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    return z * cdf, slope


@jax.custom_jvp
def mish(x: Array) -> Array:
    """x tanh(log(1 + e^x)), in at least float32, in x's dtype (Misra 2019, arXiv:1908.08681)."""
    return _mish_and_slope(x)[0]


@mish.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value, slope = _mish_and_slope(primals[0])
    return value, slope * tangents[0]


def _mish_and_slope(x: Array) -> tuple[Array, Array]:
    """mish(x) and its derivative.

    With n = e^x and m = n (n + 2), tanh(log(1 + n)) = m / (m + 2), which is 1 in float32 beyond
    x = 20.
    """
    z = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    n = jnp.exp(jnp.minimum(z, 20))
    m = n * (n + 2)
    tanh = m / (m + 2)
    slope = tanh + jnp.where(z < 20, z * 4 * n * (n + 1) / jnp.square(m + 2), 0)
    return (z * tanh).astype(x.dtype), slope.astype(x.dtype)


@jax.custom_vjp
def standardise(x: Array) -> Array:
    """(x - mean) / sqrt(var + 1e-5) over the last axis, in x's dtype.

    That is layer normalisation without its scale and bias.
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
