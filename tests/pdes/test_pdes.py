"""Problems: every solution meets its equation and its conditions in float64, hard constraints hold,
references converge.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol import pdes
from jaxvol.data.collocation import on_faces
from jaxvol.ops.laplacian import second_order
from jaxvol.pdes import reference
from jaxvol.types import UserError


def poisson(dimension):
    block = pdes.fields("poisson")
    block.dimension = dimension
    return block


OTHERS = {"poisson": [poisson(1), poisson(2)]}
# which has a penalty and no equation: tests/tasks/test_fringes.py
SOLVED = [name for name in pdes.PROBLEMS if name != "interferometry"]
BLOCKS = [
    b for name in SOLVED for b in [pdes.fields(name), *(OTHERS[name] if name in OTHERS else [])]
]
HELMHOLTZ = pdes.fields("helmholtz")
HELMHOLTZ.frequencies, HELMHOLTZ.wavenumber = (1, 4), 1.0
INVERSE = pdes.fields("reaction_diffusion")
INVERSE.inverse = True
BLOCKS += [HELMHOLTZ, INVERSE]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def name(block):
    return block.name


def inside(problem, n, margin=0.03, seed=0):
    low, high = np.array(problem.low), np.array(problem.high)
    return low + (
        margin + (1 - 2 * margin) * np.random.default_rng(seed).uniform(size=(n, len(low)))
    ) * (high - low)


def residual(problem, u, x, unknown):
    return problem.residual(x, *jax.jit(second_order(u, problem.weights, "diagonal"))(x), unknown)


@pytest.mark.parametrize("block", BLOCKS, ids=name)
def test_the_solution_meets_the_equation(block):
    """Closed forms by automatic differentiation; numerical references by differences of fourth
    order, to their own accuracy.
    """
    problem = pdes.make(block)
    x = inside(problem, 40)
    if problem.closed:
        r = residual(problem, lambda p: problem.solution(p, jnp), jnp.asarray(x), problem.truth)
        wrong = residual(
            problem,
            lambda p: 1.1 * problem.solution(p, jnp) + 0.1 * p[:, :1] ** 2,
            jnp.asarray(x),
            problem.truth,
        )
        assert np.abs(r).max() < 1e-9 < 1e-3 < np.abs(wrong).max()
        return
    u = problem.solution(x, np)
    first, second = differences(problem, x)
    r = problem.residual(x, u, first, second, problem.truth)
    scale = np.abs(first[1]) + 1
    assert np.abs(r / scale).max() < 2e-4


def differences(problem, x):
    """First derivatives [2, N, 1] and u_xx [1, N, 1] from the solution at neighbours."""
    u, derivatives = lambda p: problem.solution(p, np), []
    for axis, h in ((0, 2e-4), (1, 1e-4)):
        e = h * np.eye(2)[axis]
        derivatives.append((8 * (u(x + e) - u(x - e)) - (u(x + 2 * e) - u(x - 2 * e))) / (12 * h))
        if axis == 0:
            second = (16 * (u(x + e) + u(x - e)) - (u(x + 2 * e) + u(x - 2 * e)) - 30 * u(x)) / (
                12 * h * h
            )
    return np.stack(derivatives), second[None]


@pytest.mark.parametrize("block", BLOCKS, ids=name)
def test_the_solution_meets_every_condition_and_zero_does_not_meet_all(block):
    """u = 0 would be learned where equation and conditions admit it: one of the conditions, or the
    equation, has to refuse it.
    """
    problem, refused = pdes.make(block), False
    rng = np.random.default_rng(1)
    for c in problem.conditions:
        x = on_faces(rng, 50, problem, c.faces, "uniform")
        target = c.target(x)
        assert all(np.isclose(x[:, axis], bound).any() for axis, bound in c.faces)
        if c.derivative is None:
            measured = problem.solution(x, np)
            np.testing.assert_allclose(measured, target, atol=2e-5 if not problem.closed else 1e-9)
        else:
            axis = jnp.zeros_like(x).at[:, c.derivative].set(1)
            measured = jax.jvp(lambda p: problem.solution(p, jnp), (jnp.asarray(x),), (axis,))[1]
            np.testing.assert_allclose(measured, target, atol=1e-9)
        refused |= np.abs(target).max() > 0.1
    x = jnp.asarray(inside(problem, 40))
    m = len(problem.fields)
    zero = problem.residual(
        x,
        jnp.zeros((40, m)),
        jnp.zeros((x.shape[1], 40, m)),
        jnp.zeros((len(problem.weights), 40, m)),
        problem.truth,
    )
    assert refused or np.abs(zero).max() > 0.1


@pytest.mark.parametrize("block", [b for b in BLOCKS if pdes.make(b).lift is not None], ids=name)
def test_hard_constraints_hold_for_any_network(block):
    problem = pdes.make(block)
    network = lambda x: jnp.cos(3 * x.sum(-1, keepdims=True)) + 2
    u = lambda x: problem.lift(x) + problem.distance(x) * network(x)
    for c in problem.conditions:
        x = jnp.asarray(on_faces(np.random.default_rng(2), 30, problem, c.faces, "uniform"))
        axis = jnp.zeros_like(x).at[:, c.derivative or 0].set(1)
        measured = u(x) if c.derivative is None else jax.jvp(u, (x,), (axis,))[1]
        np.testing.assert_allclose(measured, c.target(np.asarray(x)), atol=2e-9)
    # and it can be anything inside
    assert np.abs(problem.distance(jnp.asarray(inside(problem, 50, 0.1)))).min() > 1e-4


def test_resonant_helmholtz_asks_for_the_slope():
    """k = 4 pi is an eigenvalue of [-1, 1]: the multiples of sin k x meet the equation and u(+-1) =
    0; the slope tells them apart.
    """
    resonant, plain = pdes.make(pdes.fields("helmholtz")), pdes.make(HELMHOLTZ)
    assert [c.name for c in resonant.conditions] == [
        "boundary",
        "slope_x",
    ] and resonant.lift is None
    assert [c.name for c in plain.conditions] == ["boundary"]
    double = lambda x: 2 * resonant.solution(x, jnp)
    assert np.abs(residual(resonant, double, jnp.asarray(inside(resonant, 20)), {})).max() < 1e-9
    with pytest.raises(UserError, match="whole numbers"):
        block = pdes.fields("helmholtz")
        block.frequencies = (1.5,)
        pdes.make(block)


def test_burgers_reference_converges_and_has_its_published_gradient():
    """Errors fall by orders of magnitude with the nodes; steepest slope at the origin 152.00516 at
    pi t = 1.6037 (Basdevant 1986).
    """
    nu = pdes.fields("burgers").viscosity
    x = inside(pdes.make(pdes.fields("burgers")), 200)
    exact = reference.burgers(x, nu, 220)
    errors = [np.abs(reference.burgers(x, nu, n) - exact).max() for n in (20, 40, 100)]
    assert errors[0] > 10 * errors[2] and errors[2] < 1e-6
    h, t = 1e-5, 1.6037 / np.pi
    at = np.array([[h, t], [-h, t]])
    slope = -np.diff(reference.burgers(at, nu, 220)[:, 0])[0] / (2 * h)
    assert abs(slope) == pytest.approx(152.00516, rel=1e-3)


def test_allen_cahn_reference_converges():
    x = inside(pdes.make(pdes.fields("allen_cahn")), 300)
    fine = reference.allen_cahn(0.001, 385, 101)(x)
    errors = [np.abs(reference.allen_cahn(0.001, n, 101)(x) - fine).max() for n in (65, 129, 257)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] and errors[2] < 1e-3, errors


def test_unknown_problem():
    block = pdes.fields("poisson")
    block.name = "laplace"
    with pytest.raises(UserError, match="is 'laplace'; jaxvol/pdes/ has poisson, helmholtz"):
        pdes.make(block)
