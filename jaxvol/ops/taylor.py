"""Collapsed Taylor mode: a value, its derivatives, and weighted sums of second derivatives at once.

For a point x, directions v_1 ... v_p and weights w_qj an operand u holds

    value     u                                   first_j   D u [v_j]
    second_q  sum_j w_qj D^2 u [v_j, v_j]

and a function g of it is carried by

    (g u)_j = g'(u) u_j          (g u)_q = g'(u) u_q + sum_j w_qj g''(u) [u_j, u_j]

so that a Laplacian costs d + 2 numbers per neuron instead of the d (d + 1) / 2 of a Hessian, all of
them in one forward pass (forward Laplacian: Li et al. 2024, doi:10.1038/s42256-024-00794-x;
collapsed Taylor mode: Dangel et al. 2025, arXiv:2505.13644).  Every function here takes an array
[N, m] or a `Taylor` and returns the same kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvol.types import Array


class NoRule(TypeError, AttributeError):
    """A Taylor operand was given to a function that has no rule for it.

    `through` carries one through any function.
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Taylor:
    """value [N, m], first [p, N, m], second [Q, N, m].

    weights[q][j] are numbers, known when the function is traced.
    """

    value: Array
    first: Array
    second: Array
    weights: tuple[tuple[float, ...], ...] = dataclasses.field(metadata={"static": True})

    def __add__(self, other: Taylor | Array | float) -> Taylor:
        if isinstance(other, Taylor):
            return Taylor(
                self.value + other.value,
                self.first + other.first,
                self.second + other.second,
                self.weights,
            )
        value = self.value + other
        return Taylor(
            value,
            *(jnp.broadcast_to(x, (len(x), *value.shape)) for x in (self.first, self.second)),
            self.weights,
        )

    def __mul__(self, other: Taylor | Array | float) -> Taylor:
        """The product with another operand, or with what does not depend on x."""
        if not isinstance(other, Taylor):
            return Taylor(self.value * other, self.first * other, self.second * other, self.weights)
        u, v = self, other
        return Taylor(
            u.value * v.value,
            u.first * v.value + u.value * v.first,
            u.second * v.value + u.value * v.second + 2 * contract(self.weights, u.first, v.first),
            self.weights,
        )

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Taylor:
        return self * -1.0

    def __sub__(self, other: Taylor | Array | float) -> Taylor:
        return self + (-other)

    def __rsub__(self, other: Array | float) -> Taylor:
        return -self + other

    def __jax_array__(self):
        raise NoRule(
            "this function has no rule for a Taylor operand: write it with jaxvol/ops/taylor.py, "
            "or use `through`"
        )

    def __getattr__(self, name: str):
        raise NoRule(
            f"a Taylor operand has no {name!r}; jaxvol/ops/taylor.py has the functions that carry "
            "one"
        )

    def __getitem__(self, index):
        raise NoRule(
            "a Taylor operand is not indexed; `linear(lambda v: v[..., i], x)` takes one of its "
            "columns"
        )


def seed(x: Array, directions: Array, weights: tuple[tuple[float, ...], ...]) -> Taylor:
    """The coordinates x [N, d] themselves, along directions [p, d]."""
    first = jnp.broadcast_to(jnp.asarray(directions, x.dtype)[:, None], (len(directions), *x.shape))
    return Taylor(x, first, jnp.zeros((len(weights), *x.shape), x.dtype), weights)


def contract(weights: tuple[tuple[float, ...], ...], a: Array, b: Array) -> Array:
    """[Q, N, m]: sum_j w_qj a_j b_j of a, b [p, N, m]."""
    products = a * b
    return jnp.stack(
        [
            sum((w * products[j] for j, w in enumerate(row) if w), jnp.zeros_like(products[0]))
            for row in weights
        ]
    )


def linear(f: Callable[[Array], Array], x: Array | Taylor) -> Array | Taylor:
    """A function that is linear in its argument and acts on the last axis.

    Whatever axes stand before it.
    """
    return Taylor(f(x.value), f(x.first), f(x.second), x.weights) if isinstance(x, Taylor) else f(x)


def dense(x: Array | Taylor, kernel: Array, bias: Array | float = 0.0) -> Array | Taylor:
    """x [.., m] kernel [m, n] + bias [n]."""
    return linear(lambda v: v @ kernel, x) + bias


def concatenate(parts: list[Any]) -> Array | Taylor:
    """Operands side by side along the last axis."""
    if not isinstance(parts[0], Taylor):
        return jnp.concatenate(parts, -1)
    joined = (
        jnp.concatenate([getattr(part, name) for part in parts], -1)
        for name in ("value", "first", "second")
    )
    return Taylor(*joined, parts[0].weights)


def elementwise(
    x: Array | Taylor, jet: Callable[[Array], tuple[Array, Array, Array]]
) -> Array | Taylor:
    """g(x) for `jet`: u -> (g(u), g'(u), g''(u))."""
    if not isinstance(x, Taylor):
        return jet(x)[0]
    g, slope, curvature = jet(x.value)
    return Taylor(
        g,
        slope * x.first,
        slope * x.second + curvature * contract(x.weights, x.first, x.first),
        x.weights,
    )


def tanh(x: Array | Taylor) -> Array | Taylor:
    """Hyperbolic tangent: g' = 1 - g^2, g'' = -2 g g'."""

    def jet(u: Array) -> tuple[Array, Array, Array]:
        g = jnp.tanh(u)
        return g, 1 - g * g, -2 * g * (1 - g * g)

    return elementwise(x, jet)


def sin(x: Array | Taylor) -> Array | Taylor:
    """Sine."""
    return elementwise(x, lambda u: (jnp.sin(u), jnp.cos(u), -jnp.sin(u)))


def cos(x: Array | Taylor) -> Array | Taylor:
    """Cosine."""
    return elementwise(x, lambda u: (jnp.cos(u), -jnp.sin(u), -jnp.cos(u)))


def layer_norm(x: Array | Taylor, scale: Array, bias: Array, epsilon: float) -> Array | Taylor:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, mean and variance over the last axis."""

    def inverse_root(v: Array) -> tuple[Array, Array, Array]:
        r = (v + epsilon) ** -0.5
        return r, -0.5 * r**3, 0.75 * r**5

    centred = linear(lambda v: v - jnp.mean(v, -1, keepdims=True), x)
    variance = linear(lambda v: jnp.mean(v, -1, keepdims=True), centred * centred)
    return centred * elementwise(variance, inverse_root) * scale + bias


def through(f: Callable[[Array], Array], x: Array | Taylor) -> Array | Taylor:
    """Any twice differentiable f: [N, m] -> [N, n] that treats every row alone.

    By forward over forward differentiation.
    """
    if not isinstance(x, Taylor):
        return f(x)

    def along(direction: Array) -> tuple[Array, Array]:
        slope = lambda u: jax.jvp(f, (u,), (direction,))[1]
        return jax.jvp(slope, (x.value,), (direction,))

    first, curvature = jax.vmap(along)(x.first)
    value, pushed = jax.linearize(f, x.value)
    second = jax.vmap(pushed)(x.second) + contract(x.weights, curvature, jnp.ones_like(curvature))
    return Taylor(value, first, second, x.weights)
