"""Weights that change and points that are refined, against what they are defined to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.config import components
from jaxvol.tasks import balancing, equations
from jaxvol.training.gradients import pull_back
from jaxvol.types import Fixed
from tests.tasks.test_physics import config, loss_of, parts


@pytest.mark.parametrize("rule", ["loss_ratio", "gradnorm", "ntk", "relobralo"])
def test_balances_move_their_weights_and_use_those_of_before(rule):
    _, learned, batch, params, extra = parts(config(task__balance__name=rule))
    old = extra["balance"]["weights"]
    fixed, _ = loss_of(parts(config())[1], params, {"stats": extra["stats"]}, batch)
    terms, (readings, changed) = jax.jit(lambda p: loss_of(learned, p, extra, batch))(params)
    for i, name in enumerate(("pde", "initial", "boundary")):
        assert float(readings[f"net/weight_{name}"]) == float(old[i])
        # the config's weights at the start
        assert float(terms["net"][name]) == pytest.approx(float(fixed["net"][name]), rel=1e-5)
    extra = {**extra, **changed}
    again = jax.jit(lambda p: loss_of(learned, p, extra, batch, at=1)[1][1])(
        jax.tree.map(lambda v: 1.1 * v, params)
    )
    assert float(jnp.abs(again["balance"]["weights"] - old).max()) > 1e-4


def test_ntk_traces_are_those_of_the_kernel():
    """Mean over random signs of the estimate against sum |grad r_n|^2 / n, residual by residual."""
    chosen = config()
    dataset, _, batch, params, _ = parts(chosen)
    setup = equations.make_setup(chosen, components.model(chosen, dataset.spec))
    f = jax.jit(lambda net: equations.residuals(setup, net, batch))
    jacobian = jax.jit(jax.jacrev(f))(params["net"])
    exact = [
        sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(jacobian[t])) / f(params["net"])[t].size
        for t in setup.terms
    ]
    estimate = jax.jit(
        jax.vmap(
            lambda k: balancing.pulled(
                lambda n: balancing.signed(f(n), k), params["net"], setup.terms
            )
        )
    )
    estimated = estimate(jax.random.split(jax.random.key(0), 400)).mean(0)
    np.testing.assert_allclose(estimated, exact, rtol=0.2)


def test_self_adaptive_weights_ascend():
    chosen = config(task__balance__name="self_adaptive")
    dataset, learned, batch, params, extra = parts(chosen)
    pull = lambda task, p: jax.jit(
        lambda p: pull_back(
            task, p, Fixed(jnp.int32(0), jnp.int32(0), extra, None), batch, jax.random.key(0)
        )[1]
    )(p)
    gradients = pull(learned, params)
    assert (np.asarray(gradients["weights"]) < 0).all()  # descent raises them
    plain = parts(config())[1]
    expected = pull(plain, {"net": params["net"]})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6),
        gradients["net"],
        expected["net"],
    )


def test_causal_weights_are_one_at_the_start_and_fall_with_what_is_unsolved_before():
    chosen = config(task__causal__epsilon=2.0, task__causal__bins=4)
    dataset, _, _, _, _ = parts(chosen)
    setup = equations.make_setup(chosen, components.model(chosen, dataset.spec))
    points = jnp.stack([jnp.zeros(8), jnp.repeat(jnp.array([0.1, 0.3, 0.6, 0.9]), 2)], -1)[None]
    square = jnp.repeat(jnp.array([1.0, 3.0, 0.5, 2.0]), 2)[None]
    mean = np.array([1.0, 3.0, 0.5, 2.0])
    expected = np.mean(np.exp(-2 * np.array([0, 1, 4, 4.5])) * mean)
    assert float(equations.causal(setup, points, square)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["rar", "rad"])
def test_refinement_adds_points_to_the_loss_at_its_steps_only(kind):
    chosen = config(task__refine__name=kind, task__refine__every=3, task__refine__cap=12)
    _, learned, batch, params, extra = parts(chosen)
    run = jax.jit(lambda extra, at: loss_of(learned, params, extra, batch, at))
    plain, _ = loss_of(parts(config())[1], params, {"stats": {}}, batch)
    counts = []
    for at in range(9):
        terms, (readings, changed) = run(extra, at)
        if at == 0:
            assert float(terms["net"]["pde"]) == pytest.approx(float(plain["net"]["pde"]), rel=1e-4)
        counts.append(int(readings["net/points"]))
        extra = {**extra, **changed}
    assert counts == ([24] * 3 + [28] * 3 + [33] * 3 if kind == "rar" else [24] * 3 + [12] * 6)
    assert float(readings["net/residual_p99"]) >= float(readings["net/residual_p75"]) > 0
