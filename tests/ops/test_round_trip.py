"""What a normaliser and its inverse leave of physical values, against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.ops import normalise, round_trip

STD, LOG = ("standardise", {}), ("log10", {"floor": 1e-3})
CHAINS = {
    "standardise": ((STD,), 10.0),
    "narrow": ((STD,), 1e3),
    "log10": ((LOG, STD), 5.0),
    "log1p": ((("log1p", {"floor": -0.99}), STD), 5.0),
    "asinh": ((("asinh", {"scale": 0.1}), STD), 5.0),
    "linear": ((("linear", {"low": -1000.0, "high": 2000.0}),), 10.0),
    "clipped": ((("linear", {"low": 5.0, "high": 20.0, "clip": True}),), 10.0),
    "percentile": ((("percentile", {"low": 1.0, "high": 99.0, "signed": True}),), 10.0),
}


def chain(name):
    steps, mean = CHAINS[name]
    data = np.abs(mean + np.random.default_rng(0).normal(size=(4000, 1)))
    return normalise.fit(steps, [data]), data


def round_tripped(fitted, x):
    return normalise.inverse(fitted, normalise.forward(fitted, jnp.asarray(x, jnp.float32)))


@pytest.mark.parametrize("name", CHAINS)
def test_the_bound_holds_and_is_not_idle(name):
    fitted, data = chain(name)
    x = data * np.random.default_rng(3).uniform(0.1, 1, data.shape)
    x = np.float32(np.clip(x, 5, 20) if name == "clipped" else x).reshape(1, 10, 20, 20, 1)
    error = np.abs(np.asarray(round_tripped(fitted, x), np.float64) - x)
    bound = np.asarray(round_trip.rounding(fitted, jnp.asarray(x)))
    assert (error <= bound).all()
    assert bound.max() < 200 * error.max()


@pytest.mark.parametrize("name", [n for n in CHAINS if n != "clipped"])
def test_zeros_and_constants_come_back_as_such(name):
    fitted, _ = chain(name)
    shape = (2, 6, 5, 4, 1)
    rng = np.random.default_rng(1)
    zeros = round_tripped(fitted, np.zeros(shape))
    settled = round_trip.settle(fitted, zeros, None)
    np.testing.assert_array_equal(settled, 0)
    # to one unit in the last place of what the normaliser computes with
    shaken = np.float32(7.0) * (1 + np.float32(1e-7) * rng.integers(-1, 2, shape))
    flat = np.asarray(round_trip.settle(fitted, round_tripped(fitted, shaken), None))
    assert np.ptp(flat, axis=(1, 2, 3)).max() == 0
    np.testing.assert_allclose(flat, 7.0, rtol=1e-3 if name == "narrow" else 1e-5)


@pytest.mark.parametrize("name", CHAINS)
def test_fields_that_vary_keep_every_bit_and_the_mask_decides_what_counts(name):
    fitted, data = chain(name)
    x = round_tripped(fitted, data[:240].reshape(2, 6, 5, 4, 1))
    np.testing.assert_array_equal(round_trip.settle(fitted, x, None), x)
    mask = np.ones((2, 6, 5, 4, 1), np.float32)
    mask[1, 3:] = 0
    # the second example is constant where it is observed, NaN elsewhere
    holes = jnp.where(mask > 0, x, jnp.nan).at[1, :3].set(x[1, 0, 0, 0])
    settled = np.asarray(round_trip.settle(fitted, holes, mask))
    np.testing.assert_array_equal(settled[0], x[0])
    assert np.ptp(settled[1][mask[1] > 0]) == 0
    empty = round_trip.settle(fitted, x, 0 * mask)
    np.testing.assert_array_equal(empty, x)


def test_a_bound_of_a_clip_is_a_value_like_others():
    fitted, _ = chain("clipped")
    five = round_tripped(fitted, np.zeros((1, 4, 4, 4, 1)))
    np.testing.assert_array_equal(round_trip.settle(fitted, five, None), 5)


@pytest.mark.parametrize("size", [1e-29, 1.0, 1e20])
def test_the_unit_is_near_the_size_of_the_data(size):
    rng = np.random.default_rng(2)
    fitted = normalise.fit((STD,), [size * rng.normal(size=(500, 2)) * [1, 100]])
    unit = round_trip.unit(fitted, 2)
    assert (np.log2(unit) % 1 == 0).all()
    np.testing.assert_array_less(unit / (size * np.array([1, 100])), 1.2)
    np.testing.assert_array_less(0.4, unit / (size * np.array([1, 100])))
    np.testing.assert_array_equal(round_trip.unit((), 3), 1)
