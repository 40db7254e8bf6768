"""Equations of evolution in one space dimension, coordinates (x, t).

Diffusion, wave, Burgers, Allen-Cahn, reaction-diffusion.
"""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np

from jaxvol.pdes import reference
from jaxvol.pdes.problem import Condition, Problem, box, given

GRID = (401, 101)
FIELDS = {
    "diffusion": {"alpha": 0.1},  # diffusivity
    "wave": {"speed": 2.0},  # c
    "burgers": {"viscosity": 0.003183098861837907},  # nu; 0.01 / pi
    "allen_cahn": {"diffusivity": 0.001},  # D
    "reaction_diffusion": {
        "diffusivity": 1.0,  # D
        "rate": 1.0,  # rho
        "inverse": False,  # find rho from measurements (points.data of them)
        "noise": 0.01,  # of those, as a fraction of their standard deviation
    },
}


def setting(low: tuple, high: tuple, u, initial=None) -> tuple[Condition, Condition]:
    """u on both ends for all times, and at the first time."""
    return (
        given("initial", "initial", ((1, low[1]),), initial or u),
        given("boundary", "boundary", box(low, high, (0,)), u),
    )


def diffusion(p) -> Problem:
    """u_t = alpha u_xx on [-6, 6] x [0, 1], u(x, 0) = sin pi x, u(+-6, t) = 0.

    The solution is u = sin(pi x) exp(-alpha pi^2 t).
    """
    low, high, alpha = (-6.0, 0.0), (6.0, 1.0), p.alpha

    def u(x, xp):
        return xp.sin(math.pi * x[..., :1]) * xp.exp(-alpha * math.pi**2 * x[..., 1:])

    residual = lambda x, v, first, second, unknown: first[1] - alpha * second[0]
    # A flat distance: with 1 - (x / 6)^2 the network's oscillations would have to grow tenfold
    # towards the ends.
    return Problem(
        ("x", "t"),
        ("u",),
        low,
        high,
        ((1.0, 0.0),),
        residual,
        setting(low, high, u),
        u,
        GRID,
        lift=lambda x: jnp.sin(math.pi * x[:, :1]),
        distance=lambda x: x[:, 1:] * (1 - (x[:, :1] / 6) ** 12),
    )


def wave(p) -> Problem:
    """u_tt = c^2 u_xx on [0, 1]^2, u = 0 at both ends, u_t(x, 0) = 0.

    The solution is u = sin(pi x) cos(c pi t) + sin(4 pi x) cos(4 c pi t) / 2.
    """
    low, high, c = (0.0, 0.0), (1.0, 1.0), p.speed

    def u(x, xp):
        a, t = math.pi * x[..., :1], c * math.pi * x[..., 1:]
        return xp.sin(a) * xp.cos(t) + 0.5 * xp.sin(4 * a) * xp.cos(4 * t)

    start = lambda x: jnp.sin(math.pi * x[:, :1]) + 0.5 * jnp.sin(4 * math.pi * x[:, :1])
    residual = lambda x, v, first, second, unknown: second[0]
    rest = Condition(
        "velocity", "initial", ((1, 0.0),), lambda x: np.zeros((len(x), 1)), derivative=1
    )
    return Problem(
        ("x", "t"),
        ("u",),
        low,
        high,
        ((-c * c, 1.0),),
        residual,
        (*setting(low, high, u), rest),
        u,
        GRID,
        lift=start,
        distance=lambda x: 4 * x[:, 1:] ** 2 * x[:, :1] * (1 - x[:, :1]),
    )


def burgers(p) -> Problem:
    """u_t + u u_x = nu u_xx on [-1, 1] x [0, 1], u(x, 0) = -sin pi x, u(+-1, t) = 0.

    The solution comes from the Cole-Hopf transform (reference.py).
    """
    low, high, nu = (-1.0, 0.0), (1.0, 1.0), p.viscosity
    u = lambda x, xp: reference.burgers(np.asarray(x, np.float64), nu)
    residual = lambda x, v, first, second, unknown: first[1] + v * first[0] - nu * second[0]
    return Problem(
        ("x", "t"),
        ("u",),
        low,
        high,
        ((1.0, 0.0),),
        residual,
        setting(low, high, u),
        u,
        GRID,
        closed=False,
        lift=lambda x: -jnp.sin(math.pi * x[:, :1]),
        distance=lambda x: x[:, 1:] * (1 - x[:, :1] ** 2),
    )


def allen_cahn(p) -> Problem:
    """u_t = D u_xx + 5 (u - u^3) on [-1, 1] x [0, 1], u(x, 0) = x^2 cos pi x, u(+-1, t) = -1.

    The solution comes from Chebyshev collocation (reference.py).
    """
    low, high, diffusivity = (-1.0, 0.0), (1.0, 1.0), p.diffusivity
    solve = functools.lru_cache(maxsize=1)(lambda: reference.allen_cahn(diffusivity))
    start = lambda x, xp: x[..., :1] ** 2 * xp.cos(math.pi * x[..., :1])

    def u(x, xp):
        return solve()(np.asarray(x, np.float64))

    edge = Condition("boundary", "boundary", box(low, high, (0,)), lambda x: -np.ones((len(x), 1)))
    residual = lambda x, v, first, second, unknown: (
        first[1] - diffusivity * second[0] - 5 * (v - v**3)
    )
    return Problem(
        ("x", "t"),
        ("u",),
        low,
        high,
        ((1.0, 0.0),),
        residual,
        (given("initial", "initial", ((1, 0.0),), start), edge),
        u,
        GRID,
        closed=False,
        lift=lambda x: start(x, jnp),
        distance=lambda x: x[:, 1:] * (1 - x[:, :1] ** 2),
    )


def reaction_diffusion(p) -> Problem:
    """u_t = D u_xx + rho u (1 - u) on [-10, 20] x [0, 5] (Fisher-KPP).

    The solution is the travelling wave of Ablowitz and Zeppetella (1979),

        u = (1 + exp(sqrt(rho / 6 D) x - 5 rho t / 6))^-2

    With `inverse` rho is unknown, starts at half its value, and is found from noisy values of u at
    `data` points of the domain.
    """
    low, high, diffusivity, rate = (-10.0, 0.0), (20.0, 5.0), p.diffusivity, p.rate

    def u(x, xp):
        steepness = math.sqrt(rate / (6 * diffusivity))
        return (1 + xp.exp(steepness * x[..., :1] - 5 * rate / 6 * x[..., 1:])) ** -2

    def residual(x, v, first, second, unknown):
        rho = unknown["rate"] if p.inverse else rate
        return first[1] - diffusivity * second[0] - rho * v * (1 - v)

    sensors = (given("data", "data", (), u, noise=p.noise),) if p.inverse else ()
    unknown, truth = ({"rate": 0.5 * rate}, {"rate": rate}) if p.inverse else ({}, {})
    return Problem(
        ("x", "t"),
        ("u",),
        low,
        high,
        ((1.0, 0.0),),
        residual,
        (*setting(low, high, u), *sensors),
        u,
        GRID,
        unknown=unknown,
        truth=truth,
    )
