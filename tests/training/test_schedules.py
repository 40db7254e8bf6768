"""Learning rates over a phase: where they start, peak and end, and how a plateau lowers them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.training import optim
from tests.training.test_optim import PARAMS, grads_at, rates, settings


def test_schedules_start_peak_and_end():
    np.testing.assert_allclose(rates(10, schedule__name="constant"), 2.0)
    cosine = rates(10, schedule__name="cosine", schedule__cosine__end_factor=0.1)
    np.testing.assert_allclose(cosine[[0, 5, 10]], [2.0, 2.0 * 0.55, 0.2], rtol=1e-6)
    halved = rates(8, schedule__name="exponential", schedule__exponential__every=4)
    np.testing.assert_allclose(halved[[0, 2, 4, 8]], [2.0, 2.0 * 0.5**0.5, 1.0, 0.5], rtol=1e-6)
    stepped = rates(
        8, schedule__name="step", schedule__step__boundaries=(3, 6), schedule__warmup_steps=2
    )
    np.testing.assert_allclose(stepped, [1, 2, 2, 0.2, 0.2, 0.2, 0.02, 0.02, 0.02], rtol=1e-5)
    onecycle = rates(20, schedule__name="onecycle")
    np.testing.assert_allclose(onecycle[[0, 6, 20]], [0.08, 2.0, 8e-6], rtol=1e-5)
    assert (
        onecycle.argmax() == 6
        and (np.diff(onecycle[:7]) > 0).all()
        and (np.diff(onecycle[6:]) < 0).all()
    )
    np.testing.assert_allclose(
        rates(2, schedule__name="onecycle")[[0, 1, 2]], [0.08, 2.0, 8e-6], rtol=1e-5
    )


@pytest.mark.parametrize("period", [8, 7])
def test_cyclic_reaches_both_ends(period):
    got = rates(
        3 * period,
        schedule__name="cyclic",
        schedule__cyclic__period=period,
        schedule__cyclic__start_factor=0.1,
    )
    np.testing.assert_allclose(got[::period], 0.2, rtol=1e-6)
    np.testing.assert_allclose(got[period // 2 :: period], 2.0, rtol=1e-6)
    np.testing.assert_allclose(np.diff(got[: period // 2 + 1]), 1.8 / (period // 2), rtol=1e-5)


def test_warmup_wastes_no_step_and_the_shape_follows_it():
    np.testing.assert_allclose(rates(4, schedule__warmup_steps=0)[0], 2.0)
    got = rates(12, schedule__warmup_steps=4, schedule__cosine__end_factor=0.0)
    np.testing.assert_allclose(got[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(got[[8, 12]], [1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(rates(3, schedule__warmup_steps=1)[:2], 2.0)


def plateau_rates(values, updates_each, **fields):
    """The rate of the last update after each evaluation."""
    config = settings(
        name="sgd",
        learning_rate=1.0,
        schedule__name="plateau",
        schedule__plateau__patience=2,
        **fields,
    )
    optimizer = optim.make(config, "net", 100)
    state, update, found = optimizer.init(PARAMS), jax.jit(optimizer.update), []
    for count, value in enumerate(values, start=1):
        monitor = {"value": jnp.float32(value), "count": jnp.int32(count)}
        for _ in range(updates_each):
            _, state = update(grads_at(0), state, PARAMS, monitor=monitor)
        found.append(float(optim.readings(state)["lr"]))
    return found


def test_plateau_counts_evaluations_not_updates():
    assert plateau_rates([1.0, 0.9, 0.9, 0.9, 0.8, 0.8, np.nan], 7) == [
        1,
        1,
        1,
        0.5,
        0.5,
        0.5,
        0.25,
    ]
    # a maximised metric
    assert plateau_rates([-0.5, -0.9, -0.9, -0.9, -0.95], 2) == [1, 1, 1, 0.5, 0.5]
    assert plateau_rates([0.0] * 12, 1, schedule__plateau__min_factor=0.2)[-1] == pytest.approx(0.2)
