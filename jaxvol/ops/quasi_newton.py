"""Self-scaled Broyden updates of the whole inverse Hessian, for some thousand parameters.

    H' = (H - H y y^T H / y^T H y + phi v v^T) / tau + s s^T / y^T s
    v  = sqrt(y^T H y) (s / y^T s - H y / y^T H y)

H' y = s for every phi and tau (phi = tau = 1 is BFGS).  These two are chosen anew at every step so
that large eigenvalues of H, which ill-conditioned losses such as those of differential equations
leave behind, are corrected: Al-Baali and Khalfan (2005), on physics-informed networks Urban,
Stefanou and Pons (2025, arXiv:2405.04230), there SSBroyden.  Memory: n^2 numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvol.types import Array

# rules that choose their own step length: no rate, no schedule
SEARCHED = ("lbfgs", "broyden")


class State(NamedTuple):
    """Of the last step; `inverse` is H, `grad` the gradient where the step started."""

    inverse: Array
    params: Array
    grad: Array
    direction: Array
    count: Array


def start(params: Array) -> State:
    """The state before the first step, for parameters [n]."""
    zero = jnp.zeros_like(params)
    return State(jnp.eye(params.size, dtype=params.dtype), params, zero, zero, jnp.int32(0))


def descend(state: State, params: Array, grad: Array, reached: Array) -> tuple[Array, State]:
    """(-H grad, a direction of descent whose natural length is 1, and the state of the next step).

    reached: the gradient at `params` of the LAST step's loss.  It differs from `grad` where points
    or weights of the loss have changed since; the difference of gradients of two losses says
    nothing about the curvature of either.
    """
    s, y, tiny = params - state.params, reached - state.grad, jnp.finfo(grad.dtype).tiny
    # A pair without curvature (the first, or a search that failed) would make H indefinite.
    usable = (state.count > 0) & (y @ s > jnp.finfo(grad.dtype).eps * jnp.sqrt((s @ s) * (y @ y)))
    inverse, newton = renewed(state, s, y, grad, usable)
    steepest = -grad * jnp.minimum(1.0, 1 / jnp.maximum(jnp.linalg.norm(grad), tiny))
    # Rounding may turn the direction uphill; H starts again then, as it does at first.
    fresh = ~(newton @ grad < 0) | (state.count == 0)
    direction = jnp.where(fresh, steepest, newton)
    return direction, State(inverse, params, grad, direction, jnp.where(fresh, 0, state.count) + 1)


def renewed(state: State, s: Array, y: Array, grad: Array, usable: Array) -> tuple[Array, Array]:
    """(H', -H' grad) for the pair s, y; (H, -H grad) if it is not usable.

    s is the change of the parameters, y that of the gradient.  H is read once and written once: it
    is larger than any cache.
    """
    ys, yy = (jnp.where(usable, v, 1.0) for v in (y @ s, y @ y))
    # The first pair tells the scale of the problem: H is that multiple of one before it.
    first, scale = state.count == 1, ys / yy
    product = state.inverse @ jnp.stack([y, grad], 1)
    hy, hg = (jnp.where(first, scale * v, product[:, i]) for i, v in enumerate((y, grad)))
    # length of the last step
    along = (s @ state.direction) / jnp.maximum(
        state.direction @ state.direction, jnp.finfo(s.dtype).tiny
    )
    # s^T B s, B the inverse of H
    before = jnp.where(first, (s @ s) / scale, -along * (s @ state.grad))
    yhy = jnp.where(usable, y @ hy, 1.0)
    tau, phi = factors(jnp.where(usable, before / ys, 1.0), yhy / ys, len(s))
    v = s / ys - hy / yhy
    keep, on = jnp.where(usable, 1 / tau, 1.0), usable.astype(s.dtype)
    rank = ((-on / (tau * yhy), hy), (on * phi * yhy / tau, v), (on / ys, s))
    one = jax.lax.broadcasted_iota(jnp.int32, state.inverse.shape, 0) == jax.lax.broadcasted_iota(
        jnp.int32, state.inverse.shape, 1
    )
    inverse = keep * jnp.where(first, scale * one, state.inverse) + sum(
        c * u[:, None] * u[None, :] for c, u in rank
    )
    return inverse, -(keep * hg + sum(c * u * (u @ grad) for c, u in rank))


def factors(b: Array, h: Array, n: int) -> tuple[Array, Array]:
    """(tau, phi) for b = s^T B s / y^T s and h = y^T H y / y^T s; b h >= 1."""
    tiny = jnp.finfo(b.dtype).eps
    a = jnp.maximum(b * h - 1, tiny)
    low = jnp.minimum(1.0, h * (1 - jnp.sqrt(a / (a + 1))))
    theta = jnp.clip((1 - b) / b, (low - 1) / a, 1 / jnp.maximum(low, tiny))
    sigma = jnp.maximum(1 + a * theta, tiny)
    top, root = jnp.minimum(1.0, 1 / b), sigma ** (-1 / (n - 1)) if n > 1 else jnp.ones_like(b)
    tau = jnp.where(
        theta <= 0,
        jnp.minimum(top * root, sigma),
        top * jnp.minimum(root, 1 / jnp.where(theta > 0, theta, 1.0)),
    )
    return tau, (1 - theta) / sigma
