"""The seam: gradients per player, micro-batches, EMA, refusal of non-finite steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.training import assemble, averages, gradients, step
from jaxvol.types import Fixed
from tests import compiler, toys


def start(task, config, batch):
    groups = jax.eval_shape(task.init, jax.random.key(0), batch)[0]
    optimizers = assemble.make_optimizers(config, groups, config.total_steps)
    return optimizers, step.init(task, optimizers, config.seed, batch)


def device_batch(i=0):
    return jax.tree.map(jnp.asarray, toys.batch(i, slice(None)))


def test_each_player_descends_the_gradient_of_its_own_terms_at_the_same_weights():
    task, batch = toys.game_task(), device_batch()
    params, extra = task.init(jax.random.key(0), batch)
    fixed = Fixed(jnp.int32(0), jnp.int32(0), extra, None)
    for parts in (1, 4):
        grads = gradients.accumulate(task, params, fixed, batch, jax.random.key(1), parts).grads
        g, d = 2.0, 3.0
        assert set(grads) == {"gen", "disc"}
        # not + dL_disc/dg
        np.testing.assert_allclose(grads["gen"], 2 * (g * d - 1) * d + g, rtol=1e-6)
        # not + dL_gen/dd
        np.testing.assert_allclose(grads["disc"], 2 * (d - g), rtol=1e-6)


def test_both_players_move_from_theta_t_and_the_unnamed_group_stays():
    config = toys.config(
        optimizer__name="sgd",
        optimizer__learning_rate=0.1,
        optimizer__clip_norm=0.0,
        optimizer__schedule__name="constant",
    )
    task, batch = toys.game_task(), device_batch()
    optimizers, state = start(task, config, batch)
    new, metrics = jax.jit(step.make(task, optimizers, 0, 0.0, 1))(state, batch, 0)
    np.testing.assert_allclose(new.params["gen"], 2 - 0.1 * (2 * 5 * 3 + 2), rtol=1e-6)
    # at the OLD gen
    np.testing.assert_allclose(new.params["disc"], 3 - 0.1 * 2 * (3 - 2), rtol=1e-6)
    assert new.params["frozen"] == 5.0 and "frozen/lr" not in metrics
    assert metrics["gen/grad_norm"] == pytest.approx(32.0) and metrics["gen/loss"] == pytest.approx(
        25 + 2
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_equal_the_full_batch(parts):
    task, batch = toys.regression_task(), device_batch()
    params, extra = task.init(jax.random.key(0), batch)
    fixed = Fixed(jnp.int32(0), jnp.int32(0), extra, None)
    whole = gradients.accumulate(task, params, fixed, batch, jax.random.key(1), 1)
    cut = gradients.accumulate(task, params, fixed, batch, jax.random.key(1), parts)
    for a, b in zip(jax.tree.leaves(whole[:2]), jax.tree.leaves(cut[:2])):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    # running statistics follow one another: each part goes on from what the one before it left
    seen = 0.0
    for part in np.asarray(gradients.split(batch, parts)["input"]):
        seen = 0.5 * seen + 0.5 * part.mean()
    np.testing.assert_allclose(cut.extra["stats"]["net"]["seen"], seen, rtol=1e-5)
    keys = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(1), i), ()))(
        jnp.arange(parts)
    )
    # every part has a key of its own
    np.testing.assert_allclose(cut.metrics["noise"], keys.mean(), rtol=1e-5)


def test_ema_follows_its_recursion_over_parameters_and_statistics():
    config, task = toys.config(), toys.regression_task()
    optimizers, state = start(task, config, device_batch())
    run = jax.jit(step.make(task, optimizers, 0, 0.9, 1))
    expected = jax.tree.map(np.asarray, state.averages["ema"])
    for i in range(30):
        state, _ = run(state, device_batch(i), i)
        decay = min(0.9, (1 + i) / (10 + i))
        now = averages.averaged(state.params, state.extra)
        follow = lambda e, n, d=decay: d * e + (1 - d) * np.asarray(n)
        expected = jax.tree.map(follow, expected, now)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        state.averages["ema"],
        expected,
    )


def test_without_averaging_the_ema_is_the_weights():
    config, task = toys.config(), toys.regression_task()
    optimizers, state = start(task, config, device_batch())
    run = jax.jit(step.make(task, optimizers, 0, 0.0, 1), compiler_options=compiler.usual())
    state, _ = run(state, device_batch(), 0)
    jax.tree.map(
        np.testing.assert_array_equal,
        state.averages["ema"],
        averages.averaged(state.params, state.extra),
    )


def test_a_non_finite_step_changes_nothing_and_every_later_step_is_refused():
    config, task = toys.config(), toys.regression_task()
    optimizers, state = start(task, config, device_batch())
    run = jax.jit(step.make(task, optimizers, 0, 0.9, 1))
    state, _ = run(state, device_batch(0), 0)
    bad = device_batch(1)
    bad["target"] = bad["target"].at[3, 0, 0, 0, 0].set(jnp.nan)
    before = jax.tree.map(np.asarray, state)
    for i, batch in ((1, bad), (2, device_batch(2)), (3, device_batch(3))):
        state, _ = run(state, batch, i)
        jax.tree.map(np.testing.assert_array_equal, state, before)
    assert int(state.step) == 1
    names = step.name_nonfinite(task, state, bad, 0, 1)
    assert names[0].startswith("batch['target']: 1 of") and any(
        n.startswith("gradient['net']['b']") for n in names
    )


def test_wrong_groups_and_foreign_extra_are_refused():
    task, batch = toys.regression_task(), device_batch()
    params, extra = task.init(jax.random.key(0), batch)

    def misnamed(p, f, b, k):
        return {"other": {"mse": jnp.float32(0)}}, ({}, {})

    def refused(message, **changes):
        changed = dataclasses.replace(task, **changes)
        with pytest.raises(ValueError, match=message):
            fixed = Fixed(0, 0, extra, None)
            gradients.pull_back(changed, params, fixed, batch, jax.random.key(0))

    refused("names the objectives .'other'.", loss=misnamed)
    refused("names the groups .'encoder'.", objectives={"fit": ("net", "encoder")})
    refused("descend two objectives", objectives={"a": ("net",), "b": ("net",)})
    with pytest.raises(ValueError, match="monitor"):
        gradients.merge({"stats": {}, "monitor": {}}, {"monitor": {}})
    with pytest.raises(ValueError, match="shapes or types of extra.'queue'."):
        gradients.merge({"queue": jnp.zeros(3)}, {"queue": jnp.zeros(4)})
    fixed = Fixed(0, 0, extra, None)
    with pytest.raises(ValueError, match="micro_batches=1"):
        summed = dataclasses.replace(task, example_mean=False)
        gradients.accumulate(summed, params, fixed, batch, jax.random.key(0), 2)


def test_lbfgs_gets_the_same_objective_and_solves_least_squares():
    config = toys.config(
        optimizer__name="lbfgs",
        optimizer__clip_norm=0.0,
        optimizer__schedule__name="constant",
        ema_decay=0.0,
    )
    task, batch = toys.regression_task(), device_batch()
    optimizers, state = start(task, config, batch)
    run = jax.jit(step.make(task, optimizers, 0, 0.0, 2))
    for i in range(12):
        state, metrics = run(state, batch, i)
    assert float(metrics["net/mse"]) < 1e-10
    np.testing.assert_allclose(
        [state.params["net"]["a"].mean(), state.params["net"]["b"][0]], [2.0, 0.5], atol=1e-4
    )


def test_keys_are_functions_of_seed_and_step():
    draws = {
        float(jax.random.normal(step.key_at(seed, s), ())) for seed in range(3) for s in range(3)
    }
    assert len(draws) == 9
    assert dataclasses.is_dataclass(
        step.init(toys.game_task(), start(toys.game_task(), toys.config(), {})[0], 0, {})
    )


def test_statistics_and_average_of_a_waiting_group_wait_with_it():
    """Every second step: the EMA of parameters and statistics is the recursion over the group's own
    updates.
    """
    config, task = toys.config(optimizer__every=2), toys.regression_task()
    optimizers, state = start(task, config, device_batch())
    run = jax.jit(step.make(task, optimizers, 0, 0.9, 1))
    expected, moved = jax.tree.map(np.asarray, state.averages["ema"]), 0
    for i in range(12):
        before = averages.averaged(state.params, state.extra)
        state, _ = run(state, device_batch(i), i)
        now = averages.averaged(state.params, state.extra)
        if i % 2:
            jax.tree.map(np.testing.assert_array_equal, now, before)
        else:
            decay, moved = min(0.9, (1 + moved) / (10 + moved)), moved + 1
            follow = lambda e, n, d=decay: d * e + (1 - d) * np.asarray(n)
            expected = jax.tree.map(follow, expected, now)
            assert now["stats"]["net"]["seen"] != before["stats"]["net"]["seen"]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
            state.averages["ema"],
            expected,
        )
