"""Chebyshev polynomials of the first kind, and the layer of a Chebyshev KAN.

    T_0 = 1      T_1 = x      T_k = 2 x T_{k-1} - T_{k-2}
    y_o = sum_i sum_k C_kio T_k(x_i)

For arrays and for Taylor operands.  The recurrence is differentiated by hand; cos(k arccos x) is
not used, whose derivatives are infinite at the ends and which takes fifty times as long.  All
degrees stand side by side on the feature axis, so that a layer is ONE matrix product.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxvol.ops.taylor import Taylor, contract
from jaxvol.types import Array


def polynomials(x: Array, degree: int) -> list[Array]:
    """T_0(x) ... T_degree(x), each of x's shape."""
    values = [jnp.ones_like(x), x]
    for _ in range(degree - 1):
        values.append(2 * x * values[-1] - values[-2])
    return values[: degree + 1]


def derivatives(x: Array, degree: int) -> tuple[list[Array], list[Array], list[Array]]:
    """(T_k, T_k', T_k'') for k = 0 ... degree.

    T_k' = 2 T_{k-1} + 2 x T_{k-1}' - T_{k-2}', and T_k'' likewise.
    """
    value, slope, curvature = (
        polynomials(x, degree),
        [jnp.zeros_like(x), jnp.ones_like(x)],
        [jnp.zeros_like(x)] * 2,
    )
    for k in range(2, degree + 1):
        curvature.append(4 * slope[k - 1] + 2 * x * curvature[k - 1] - curvature[k - 2])
        slope.append(2 * value[k - 1] + 2 * x * slope[k - 1] - slope[k - 2])
    return value, slope[: degree + 1], curvature[: degree + 1]


def layer(x: Array | Taylor, coefficients: Array) -> Array | Taylor:
    """x [N, m], coefficients [degree + 1, m, n], degree >= 1 -> [N, n].

    T_0 is a bias and takes no part in the product.
    """
    degree, inputs, outputs = coefficients.shape[0] - 1, *coefficients.shape[1:]
    kernel, bias = coefficients[1:].reshape(degree * inputs, outputs), coefficients[0].sum(0)
    if not isinstance(x, Taylor):
        return jnp.concatenate(polynomials(x, degree)[1:], -1) @ kernel + bias
    value, slope, curvature = (parts[1:] for parts in derivatives(x.value, degree))
    squares = contract(x.weights, x.first, x.first)
    first = jnp.concatenate([s * x.first for s in slope], -1)
    second = jnp.concatenate(
        [x.second, *(s * x.second + c * squares for s, c in zip(slope[1:], curvature[1:]))], -1
    )
    return Taylor(
        jnp.concatenate(value, -1) @ kernel + bias, first @ kernel, second @ kernel, x.weights
    )
