"""Second-order differential operators of a function of points, by five interchangeable methods.

    f: [N, d] -> [N, m], every row alone
    laplacian(f):             x -> (f, grad f, lap f)
    second_order(f, weights): x -> (f, first, second)
        first_j  = D f [v_j]
        second_q = sum_j w_qj D^2 f [v_j, v_j]          v_j = the axes, or the directions given

So u_t and u_xx of u(x, t) are first_1 and second_0 with weights ((1, 0),); u_tt - c^2 u_xx is
second_0 with ((-c^2, 1),); an operator with coefficients A(x) takes one row of weights per
coefficient; a mixed derivative u_xy = (D^2 u[a, a] - D^2 u[b, b]) / 4 with a = (1, 1), b = (1, -1).

    taylor    collapsed Taylor mode (ops/taylor.py): one forward pass with d + 2 numbers per
              neuron.  An f that has no rule for a Taylor operand is carried through by forward
              over forward differentiation
    diagonal  forward over reverse, `jax.vmap` over directions and points
    jet       jax.experimental.jet along each direction; not every primitive has a rule there
    hessian   trace of the full Hessian
    folx      the package of that name, where installed; the Laplacian alone
    auto      taylor: the quickest at d = 3 for KANs and MLPs
              (launch/benchmarks/bench_laplacian.py measures the others too)

On a CPU the points are taken in chunks that fit the cache, each recomputed in the backward pass: at
d = 3, N = 4096 the gradient of a residual loss takes half the time of the same method on all points
at once, and a thirtieth of its memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import jet as taylor_mode

from jaxvol.ops import taylor
from jaxvol.types import Array, UserError

Function = Callable[[Array], Array]
Weights = tuple[tuple[float, ...], ...]
Derivatives = tuple[Array, Array, Array]  # value [N, m], first [p, N, m], second [Q, N, m]

METHODS = ("auto", "taylor", "diagonal", "jet", "hessian", "folx")
# points at a time where cache decides; all of them elsewhere
CHUNK = {"cpu": 128}


def laplacian(f: Function, method: str = "auto", chunk: int = -1) -> Callable[[Array], Derivatives]:
    """x [N, d] -> (f(x) [N, m], gradient [d, N, m], Laplacian [N, m]).

    For d = 2, `u_x, u_y = gradient`.

    method: one of METHODS
    chunk:  points at a time; 0 = all; -1 = what suits the backend
    Raises ValueError for an unknown method, UserError for `folx` where it is not installed.
    """
    known(method)

    def operator(x: Array) -> Derivatives:
        value, first, second = second_order(f, ((1.0,) * x.shape[-1],), method, chunk)(x)
        return value, first, second[0]

    return operator


def known(method: str) -> None:
    """ValueError unless there is such a method."""
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; known are {', '.join(METHODS)}")


def second_order(
    f: Function,
    weights: Weights,
    method: str = "auto",
    chunk: int = -1,
    directions: Array | None = None,
) -> Callable[[Array], Derivatives]:
    """x [N, d] -> (f(x) [N, m], first [p, N, m], second [Q, N, m]), see the top of this file.

    weights: Q rows of p numbers.  directions: [p, d]; None = the d axes.
    """
    known(method)
    rule = RULES["taylor" if method == "auto" else method]
    size = CHUNK.get(jax.default_backend(), 0) if chunk < 0 else chunk

    def whole(x: Array) -> Derivatives:
        axes = (
            jnp.eye(x.shape[-1], dtype=x.dtype)
            if directions is None
            else jnp.asarray(directions, x.dtype)
        )
        if any(len(row) != len(axes) for row in weights):
            raise ValueError(
                f"weights {weights} have to give one number for each of the {len(axes)} directions"
            )
        return rule(f, axes, tuple(tuple(float(w) for w in row) for row in weights), x)

    def operator(x: Array) -> Derivatives:
        return in_chunks(whole, x, size) if 0 < size < len(x) else whole(x)

    return operator


def in_chunks(operator: Callable[[Array], Derivatives], x: Array, size: int) -> Derivatives:
    """`operator` on at most `size` points at a time, recomputed in the backward pass.

    The last chunk repeats the last point.
    """
    chunks = math.ceil(len(x) / size)
    rows = math.ceil(len(x) / chunks)
    padded = jnp.pad(x, ((0, chunks * rows - len(x)), (0, 0)), mode="edge").reshape(
        chunks, rows, -1
    )
    value, first, second = jax.lax.map(jax.checkpoint(operator, prevent_cse=False), padded)
    joined = (
        value.reshape(-1, value.shape[-1]),
        *(jnp.moveaxis(v, 0, 1).reshape(v.shape[1], -1, v.shape[-1]) for v in (first, second)),
    )
    return tuple(v[..., : len(x), :] for v in joined)


def by_taylor(f: Function, directions: Array, weights: Weights, x: Array) -> Derivatives:
    """Collapsed Taylor mode; what has no rule for a Taylor operand is carried through whole."""
    operand = taylor.seed(x, directions, weights)
    try:
        y = f(operand)
    except taylor.NoRule:
        y = taylor.through(f, operand)
    return y.value, y.first, y.second


def by_diagonal(f: Function, directions: Array, weights: Weights, x: Array) -> Derivatives:
    """Forward over reverse: the gradient of every output, differentiated along each direction."""

    def point(y: Array) -> tuple[Array, Array, Array]:
        gradient = jax.jacrev(lambda z: f(z[None])[0])  # [m, d]
        along = lambda v: jax.jvp(lambda z: gradient(z) @ v, (y,), (v,))  # [m], [m]
        return f(y[None])[0], *jax.vmap(along)(directions)

    value, first, curvature = jax.vmap(point, out_axes=(0, 1, 1))(x)
    return value, first, taylor.contract(weights, curvature, jnp.ones_like(curvature))


def by_jet(f: Function, directions: Array, weights: Weights, x: Array) -> Derivatives:
    """Taylor mode along each direction, not collapsed."""

    def along(v: Array) -> tuple[Array, Array, Array]:
        v = jnp.broadcast_to(v, x.shape)
        value, (first, second) = taylor_mode.jet(f, (x,), ((v, jnp.zeros_like(x)),))
        return value, first, second

    value, first, curvature = jax.vmap(along)(directions)
    return value[0], first, taylor.contract(weights, curvature, jnp.ones_like(curvature))


def by_hessian(f: Function, directions: Array, weights: Weights, x: Array) -> Derivatives:
    """The full Hessian of every output at every point."""
    single = lambda z: f(z[None])[0]
    hessian = jax.vmap(jax.hessian(single))(x)  # [N, m, d, d]
    curvature = jnp.einsum("nmij,pi,pj->pnm", hessian, directions, directions)
    first = jnp.einsum("nmi,pi->pnm", jax.vmap(jax.jacfwd(single))(x), directions)
    return f(x), first, taylor.contract(weights, curvature, jnp.ones_like(curvature))


def by_folx(f: Function, directions: Array, weights: Weights, x: Array) -> Derivatives:
    """The forward Laplacian of folx."""
    try:
        import folx
    except ImportError as error:
        raise UserError(
            "the Laplacian method is 'folx', which is not installed; use auto, or pip install folx"
        ) from error
    if weights != ((1.0,) * x.shape[-1],) or directions.shape != (x.shape[-1],) * 2:
        raise ValueError(
            "folx computes the Laplacian along the axes and no other operator; use another method"
        )
    y = jax.vmap(folx.forward_laplacian(lambda z: f(z[None])[0]))(x)
    return y.x, jnp.moveaxis(y.jacobian.dense_array, 1, 0), y.laplacian[None]


RULES = {
    "taylor": by_taylor,
    "diagonal": by_diagonal,
    "jet": by_jet,
    "hessian": by_hessian,
    "folx": by_folx,
}
