"""Solutions of equations without a simple closed form, float64 on the host.

tests/pdes/test_pdes.py shows that they converge.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import interpolate
from scipy.integrate import solve_ivp

QUADRATURE = 100  # nodes of the Gauss-Hermite rule
NODES = 513  # of the Chebyshev collocation
UNIFORM = 2049  # points of the spline


def burgers(x: np.ndarray, viscosity: float, nodes: int = QUADRATURE) -> np.ndarray:
    """u(x, t) with u(x, 0) = -sin pi x, x [.., 2] -> [.., 1], by the Cole-Hopf transform.

        u = - int sin pi(x - y) w dy / int w dy
        w = exp(-cos(pi (x - y)) / 2 pi nu) exp(-y^2 / 4 nu t)

    (Basdevant et al. 1986).
    """
    eta, weight = np.polynomial.hermite.hermgauss(nodes)
    where, t = x[..., :1], np.maximum(x[..., 1:], 0.0)
    angle = math.pi * (where - 2 * np.sqrt(viscosity * t) * eta)
    exponent = -np.cos(angle) / (2 * math.pi * viscosity)
    density = weight * np.exp(exponent - exponent.max(-1, keepdims=True))
    return -(np.sin(angle) * density).sum(-1, keepdims=True) / density.sum(-1, keepdims=True)


def differentiation(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """(Chebyshev points from 1 down to -1, differentiation matrix).

    Trefethen (2000), Spectral Methods in MATLAB, chapter 6.
    """
    i, n = np.arange(nodes), nodes - 1
    x = np.cos(math.pi * i / n)
    c = np.where((i == 0) | (i == n), 2.0, 1.0) * (-1.0) ** i
    gaps = x[:, None] - x[None]
    d = np.outer(c, 1 / c) / (gaps + np.eye(nodes))
    return x, d - np.diag(d.sum(1))


def allen_cahn(
    diffusivity: float, nodes: int = NODES, times: int = 201
) -> Callable[[np.ndarray], np.ndarray]:
    """x [.., 2] -> u [.., 1] of the Allen-Cahn equation, for t in [0, 1].

        u_t = D u_xx + 5 (u - u^3),   u(x, 0) = x^2 cos pi x,   u(+-1) = -1

    Chebyshev collocation in space, BDF in time, a spline on a finer grid between.  Layers are
    tanh(x / w), w = sqrt(2 D / 5), and the error falls like exp(-pi w nodes / 2): 1e-7 for the
    default nodes at D = 1e-3.
    """
    x, d = differentiation(nodes)
    second = diffusivity * (d @ d)
    start = x**2 * np.cos(math.pi * x)
    inside = slice(1, -1)

    def rate(_, v):
        u = np.concatenate([[-1.0], v, [-1.0]])
        return (second @ u)[inside] + 5 * (v - v**3)

    def jacobian(_, v):
        return second[inside, inside] + np.diag(5 * (1 - 3 * v**2))

    at = np.linspace(0, 1, times)
    solved = solve_ivp(rate, (0, 1), start[inside], "BDF", at, jac=jacobian, rtol=1e-8, atol=1e-10)
    edge = -np.ones((1, times))
    fine = np.linspace(-1, 1, UNIFORM)
    series = np.polynomial.chebyshev.chebvander(x, nodes - 1)
    values = np.polynomial.chebyshev.chebvander(fine, nodes - 1) @ np.linalg.solve(
        series, np.concatenate([edge, solved.y, edge])
    )
    spline = interpolate.RectBivariateSpline(fine, at, values, kx=5, ky=3)
    return lambda points: spline(points[..., 0], points[..., 1], grid=False)[..., None]
