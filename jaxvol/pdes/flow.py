"""Incompressible flow in the plane."""

from __future__ import annotations

import jax.numpy as jnp

from jaxvol.pdes.problem import Problem, box, given

PI2 = 6.283185307179586

FIELDS = {"taylor_green": {"viscosity": 0.1}}  # nu


def taylor_green(p) -> Problem:
    """Navier-Stokes equations on [0, 2 pi]^2 x [0, 1], fields (u, v, p).

    The solution is the Taylor-Green vortex (1937):

        u = -cos x sin y e^(-2 nu t)
        v = sin x cos y e^(-2 nu t)
        p = -(cos 2x + cos 2y) e^(-4 nu t) / 4
    """
    low, high, nu = (0.0, 0.0, 0.0), (PI2, PI2, 1.0), p.viscosity

    def flow(x, xp):
        a, b, decay = x[..., 0], x[..., 1], xp.exp(-2 * nu * x[..., 2])
        return xp.stack(
            [
                -xp.cos(a) * xp.sin(b) * decay,
                xp.sin(a) * xp.cos(b) * decay,
                -(xp.cos(2 * a) + xp.cos(2 * b)) / 4 * decay**2,
            ],
            -1,
        )

    def residual(x, w, first, second, unknown):
        """Momentum along x and y, and mass."""
        (u_x, v_x, p_x), (u_y, v_y, p_y), (u_t, v_t, _) = (jnp.moveaxis(g, -1, 0) for g in first)
        u, v, _ = jnp.moveaxis(w, -1, 0)
        lap_u, lap_v, _ = jnp.moveaxis(second[0], -1, 0)
        return jnp.stack(
            [
                u_t + u * u_x + v * u_y + p_x - nu * lap_u,
                v_t + u * v_x + v * v_y + p_y - nu * lap_v,
                u_x + v_y,
            ],
            -1,
        )

    conditions = (
        given("initial", "initial", ((2, 0.0),), flow),
        given("boundary", "boundary", box(low, high, (0, 1)), flow),
    )
    return Problem(
        ("x", "y", "t"),
        ("u", "v", "p"),
        low,
        high,
        ((1.0, 1.0, 0.0),),
        residual,
        conditions,
        flow,
        (32, 32, 12),
    )
