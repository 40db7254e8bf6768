"""Poisson and Helmholtz equations on boxes, with products of sines as solutions."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from jaxvol.pdes.problem import Condition, Problem, box, given
from jaxvol.types import UserError

NAMES = ("x", "y", "z")
FIELDS = {
    "helmholtz": {
        "wavenumber": 12.566370614359172,  # k; 4 pi
        "frequencies": (4,),  # a, whole numbers, one per dimension
    },
    "poisson": {"dimension": 3},  # 1 | 2 | 3
}


def sines(frequencies: tuple[float, ...]):
    """prod_i sin(pi a_i x_i), [.., d] -> [.., 1]."""

    def solution(x, xp):
        return xp.prod(
            xp.sin(math.pi * x * xp.asarray(frequencies, x.dtype)), axis=-1, keepdims=True
        )

    return solution


def poisson(p) -> Problem:
    """lap u + f = 0 on [0, 1]^d, u = 0 on the boundary; u = prod sin(pi x_i), f = d pi^2 u."""
    d = p.dimension
    low, high, u = (0.0,) * d, (1.0,) * d, sines((1.0,) * d)
    residual = lambda x, v, first, second, unknown: second[0] + d * math.pi**2 * u(x, jnp)
    return Problem(
        NAMES[:d],
        ("u",),
        low,
        high,
        ((1.0,) * d,),
        residual,
        (given("boundary", "boundary", box(low, high, tuple(range(d))), u),),
        u,
        ((401,), (101, 101), (32, 32, 32))[d - 1],
        lift=lambda x: jnp.zeros_like(x[:, :1]),
        distance=lambda x: jnp.prod(4 * x * (1 - x), -1, keepdims=True),
    )


def helmholtz(p) -> Problem:
    """lap u + k^2 u = q on [-1, 1]^d; u = prod sin(a_i pi x_i), q = (k^2 - pi^2 |a|^2) u.

    a = `frequencies`.  With k = 4 pi, a = 4 in one dimension (q = 0) k is an eigenvalue: with
    u(-1) = u(1) = 0 alone, u = 0 and every multiple of sin k x are solutions as well.  So where
    k^2 = pi^2 |a|^2 the outward slope is given on the boundary, too.  Raises UserError for
    frequencies that are no whole numbers.
    """
    d, k, a = len(p.frequencies), p.wavenumber, tuple(float(n) for n in p.frequencies)
    if not 1 <= d <= 3 or any(n != round(n) or n < 1 for n in a):
        raise UserError(
            f"config.data.problem.frequencies is {p.frequencies}; expected one to three whole "
            "numbers >= 1."
        )
    low, high, u = (-1.0,) * d, (1.0,) * d, sines(a)
    gap = k**2 - math.pi**2 * sum(n * n for n in a)
    conditions = [given("boundary", "boundary", box(low, high, tuple(range(d))), u)]
    resonant = abs(gap) < 1e-6 * k**2
    for axis in range(d) if resonant else ():
        conditions.append(
            Condition(
                f"slope_{NAMES[axis]}",
                "boundary",
                box(low, high, (axis,)),
                slope(a, axis),
                derivative=axis,
            )
        )
    residual = lambda x, v, first, second, unknown: second[0] + k**2 * v - gap * u(x, jnp)
    ansatz = (
        {}
        if resonant
        else {
            "lift": lambda x: jnp.zeros_like(x[:, :1]),
            "distance": lambda x: jnp.prod(1 - x * x, -1, keepdims=True),
        }
    )
    return Problem(
        NAMES[:d],
        ("u",),
        low,
        high,
        ((1.0,) * d,),
        residual,
        tuple(conditions),
        u,
        ((401,), (101, 101), (32, 32, 32))[d - 1],
        **ansatz,
    )


def slope(frequencies: tuple[float, ...], axis: int):
    """x [n, d] -> d/dx_axis of the product of sines, [n, 1], numpy."""

    def target(x: np.ndarray) -> np.ndarray:
        factors = np.sin(math.pi * x * frequencies)
        factors[:, axis] = (
            math.pi * frequencies[axis] * np.cos(math.pi * frequencies[axis] * x[:, axis])
        )
        return factors.prod(-1, keepdims=True)

    return target
