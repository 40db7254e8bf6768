"""Loss balances as published and as defined; refinement puts points where the residual is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.ops import balance, refine
from tests import FIXTURES

FIXTURE = FIXTURES / "cpikan_dynamic_weighted_loss.npz"


def test_loss_ratio_reproduces_the_published_trajectory():
    """Thirty calls of DynamicWeightedLoss; the last five, in evaluation mode, update nothing."""
    with np.load(FIXTURE, allow_pickle=False) as file:
        config, losses = json.loads(str(file["config"])), file["input/losses"]
        used, after, total = (
            file[f"output/{name}"]
            for name in ("weights_used", "weights_after_call", "weighted_total")
        )
    state = balance.start(jnp.ones(3))
    for i, values in enumerate(losses):
        np.testing.assert_allclose(state["weights"], used[i], rtol=1e-5)
        assert float(state["weights"] @ values) == pytest.approx(float(total[i]), rel=1e-5)
        if i < len(losses) - 5:
            state = balance.loss_ratio(
                state, jnp.asarray(values), config["alpha"], config["learning_rate"]
            )
        np.testing.assert_allclose(state["weights"], after[i], rtol=1e-5)


def test_gradnorm_equalises_gradients_of_terms_that_fall_alike():
    """With constant losses and norms 1, 4, 0.5 the weighted norms meet; a term that falls slower
    ends with a larger one.
    """
    norms = jnp.array([1.0, 4.0, 0.5])
    step = jax.jit(lambda s, losses: balance.gradnorm(s, losses, norms, 1.0, 0.02))
    state = balance.start(jnp.ones(3))
    for _ in range(600):
        state = step(state, jnp.ones(3))
    weighted = state["weights"] * norms
    assert float(weighted.max() / weighted.min()) < 1.15 and float(
        state["weights"].sum()
    ) == pytest.approx(3, rel=1e-5)
    for _ in range(600):
        state = step(state, jnp.array([1.0, 1.0, 2.0]))
    weighted = state["weights"] * norms
    assert float(weighted[2] / weighted[0]) > 1.5


def test_ntk_weights_are_inverse_to_the_traces():
    state = balance.ntk(balance.start(jnp.ones(3)), jnp.ones(3), jnp.array([1.0, 3.0, 4.0]))
    np.testing.assert_allclose(state["weights"], [8, 8 / 3, 2], rtol=1e-6)


def test_relobralo_follows_its_equations():
    losses = jnp.array([[1.0, 2.0, 4.0], [0.5, 2.0, 1.0], [0.4, 1.0, 1.0]])
    soft = lambda now, before: 3 * jax.nn.softmax(now / (0.5 * before + balance.EPS))
    state = balance.start(jnp.ones(3))
    for values in losses[:2]:
        state = balance.relobralo(state, values, jax.random.key(0), 0.5, 1.0, 1.0)
    # all memory
    np.testing.assert_allclose(state["weights"], 1, rtol=1e-6)
    last = balance.relobralo(state, losses[2], jax.random.key(0), 0.5, 0.0, 1.0)["weights"]
    # no memory
    np.testing.assert_allclose(last, soft(losses[2], losses[1]), rtol=1e-5)
    first = balance.relobralo(state, losses[2], jax.random.key(0), 0.5, 1.0, 0.0)["weights"]
    # looks back to the start
    np.testing.assert_allclose(first, soft(losses[2], losses[0]), rtol=1e-5)
    assert float(first.sum()) == pytest.approx(3, rel=1e-5)


LOW, HIGH = jnp.zeros(2), jnp.array([1.0, 4.0])


def test_rar_adds_the_published_number_near_large_residuals_up_to_its_cap():
    """50 points, ratio 0.2, at most 200: 10, 12, 14, ... are added, and nearly all of them where
    the residual is.
    """
    rng = np.random.default_rng(0)
    base = jnp.asarray(rng.uniform(size=(50, 2)) * np.array([1, 4]), jnp.float32)
    buffer, count = jnp.zeros((150, 2)), jnp.int32(0)
    run, sizes = jax.jit(lambda *a: refine.rar(*a, LOW, HIGH, 75.0, 0.2)), [50]
    for i in range(12):
        points = jnp.concatenate([base, buffer])
        used = jnp.concatenate([jnp.ones(50), (jnp.arange(150) < count).astype(float)])
        # what is not used must not count
        residual = points[:, 0] ** 4 * jnp.where(used > 0, 1.0, 1e6)
        before, held = buffer, int(count)
        buffer, count = run(jax.random.key(i), points, residual, used, buffer, count)
        np.testing.assert_array_equal(before[:held], buffer[:held])
        sizes.append(50 + int(count))
    assert sizes[:5] == [50, 60, 72, 86, 103] and sizes[-1] == 200
    assert (np.asarray(buffer) >= 0).all() and (np.asarray(buffer) <= [1, 4]).all()
    added = np.asarray(buffer[:, 0])
    assert np.mean(added > 0.6) > 0.8


def test_rad_draws_with_the_density_of_the_residual():
    rng = np.random.default_rng(1)
    candidates = jnp.asarray(rng.uniform(size=(4000, 2)), jnp.float32)
    residual = jnp.where(candidates[:, 0] > 0.5, 3.0, 1.0)
    share = lambda power, floor: float(
        jnp.mean(refine.rad(jax.random.key(0), candidates, residual, 400, power, floor)[:, 0] > 0.5)
    )
    assert share(1.0, 0.0) == pytest.approx(0.75, abs=0.06) and share(1.0, 100.0) == pytest.approx(
        0.5, abs=0.06
    )
    drawn = np.asarray(refine.rad(jax.random.key(1), candidates, residual, 400, 2.0, 0.0))
    assert len(np.unique(drawn, axis=0)) == 400
