"""Second-order rules: known minima, the secant equation, losses that change between updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvol.ops import quasi_newton
from jaxvol.training import optim, rules
from jaxvol.types import UserError
from tests.training.test_optim import settings


def solve(function, start, steps, name="lbfgs"):
    """A quasi-Newton method in float64: the parameters."""
    optimizer = optim.make(settings(name=name, clip_norm=0.0), "net", steps)

    @jax.jit
    def one(params, state):
        value, grad = jax.value_and_grad(function)(params)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=function
        )
        return optax.apply_updates(params, updates), state, value

    params, state = start, optimizer.init(start)
    for _ in range(steps):
        params, state, _ = one(params, state)
    assert float(optim.readings(state)["lr"]) == 1.0
    return params


@pytest.mark.parametrize("name", ["lbfgs", "broyden"])
def test_quasi_newton_solves_a_quadratic_and_rosenbrock(name):
    with jax.enable_x64(True):
        scales, target = jnp.array([1.0, 10.0, 100.0]), jnp.array([3.0, -1.0, 0.5])
        found = solve(
            lambda p: 0.5 * jnp.sum(scales * (p["x"] - target) ** 2), {"x": jnp.zeros(3)}, 20, name
        )
        np.testing.assert_allclose(found["x"], target, atol=1e-10)
        found = solve(
            lambda p: 100 * (p["x"][1] - p["x"][0] ** 2) ** 2 + (1 - p["x"][0]) ** 2,
            {"x": jnp.array([-1.2, 1.0])},
            50,
            name,
        )
        np.testing.assert_allclose(found["x"], 1.0, atol=1e-8)


def test_broyden_updates_meet_the_secant_equation_and_stay_positive():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        curvature = np.diag([1.0, 1e2, 1e4, 1e6])
        root = rng.normal(size=(4, 4))
        s, direction = rng.normal(size=4), rng.normal(size=4)
        inverse, s = root @ root.T, 0.3 * direction
        grad = -np.linalg.solve(inverse, direction)
        state = quasi_newton.State(
            *map(jnp.asarray, (inverse, 0 * s, grad, direction)), jnp.int32(2)
        )
        found, newton = quasi_newton.renewed(
            state, jnp.asarray(s), jnp.asarray(curvature @ s), jnp.ones(4), jnp.bool_(True)
        )
        np.testing.assert_allclose(found @ (curvature @ s), s, rtol=1e-6)
        np.testing.assert_allclose(found, found.T, rtol=1e-6)
        np.testing.assert_allclose(newton, -found @ np.ones(4), rtol=1e-6)
        assert np.linalg.eigvalsh(found).min() > 0
        # the model was right: plain BFGS
        tau, phi = quasi_newton.factors(jnp.float64(1.0), jnp.float64(1.0 + 1e-12), 4)
        np.testing.assert_allclose((tau, phi), 1.0, atol=1e-5)


def test_broyden_keeps_its_curvature_when_the_loss_changes():
    """A quadratic is solved, then its minimum moves, as it does when collocation points are drawn
    anew: one step leads there.
    """
    with jax.enable_x64(True):
        scales = jnp.array([1.0, 10.0, 100.0])
        optimizer = optim.make(settings(name="broyden", clip_norm=0.0), "net", 40)
        params = {"x": jnp.array([3.0, -1.0, 0.5])}
        state = optimizer.init(params)
        for target in [0.0] * 30 + [5.0, -7.0]:
            f = lambda p, target=target: 0.5 * jnp.sum(scales * (p["x"] - target) ** 2)
            grad = jax.grad(f)(params)
            updates, state = optimizer.update(
                grad, state, params, value=f(params), grad=grad, value_fn=f
            )
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["x"], -7.0, rtol=1e-3)


def test_broyden_refuses_a_network_that_is_too_large():
    optimizer = optim.make(settings(name="broyden", clip_norm=0.0), "net", 3)
    with pytest.raises(UserError, match="lbfgs"):
        jax.eval_shape(optimizer.init, {"x": jnp.zeros(rules.LARGEST + 1)})
