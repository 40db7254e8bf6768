"""Normalisers invert, agree on numpy and jax, ignore missing voxels, refuse what cannot work."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.ops import normalise
from jaxvol.types import UserError

# log-normal, > 0.001
POSITIVE = np.exp(np.random.default_rng(0).normal(size=(4, 6, 5, 3, 2)) * [1.0, 2.0] + [0.0, 3.0])
CHAINS = {
    "standardise": [("standardise", {})],
    "zscore_mask": [("zscore_mask", {})],
    "log10": [("log10", {"floor": 1e-6})],
    "log1p": [("log1p", {"floor": -0.5})],
    "asinh": [("asinh", {"scale": [0.5, 30.0]})],
    "linear": [("linear", {"low": -3, "high": [4, 400]})],
    "percentile": [("percentile", {"low": 1, "high": 99})],
    "percentile_signed": [("percentile", {"low": 5, "high": 90, "signed": True})],
    "chain": [
        ("log10", {"floor": 1e-6}),
        ("standardise", {}),
        ("asinh", {"scale": 2}),
        ("percentile", {"low": 0, "high": 100}),
    ],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_round_trip_in_both_precisions_and_jax_equals_numpy(chain):
    # as a checkpoint keeps it
    fitted = json.loads(json.dumps(normalise.fit(CHAINS[chain], list(POSITIVE))))
    y = normalise.forward(fitted, POSITIVE)
    assert y.dtype == np.float64
    np.testing.assert_allclose(normalise.inverse(fitted, y), POSITIVE, rtol=1e-11)
    single = POSITIVE.astype(np.float32)
    y32 = normalise.forward(fitted, single)
    assert y32.dtype == np.float32
    scale = np.abs(POSITIVE).max((0, 1, 2, 3))
    np.testing.assert_allclose(y32, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        normalise.inverse(fitted, y32) / scale, single / scale, rtol=2e-5, atol=1e-6
    )
    jit = jax.jit(
        lambda x: (
            normalise.forward(fitted, x),
            normalise.inverse(fitted, normalise.forward(fitted, x)),
        )
    )
    y_jax, x_jax = jit(jnp.asarray(single))
    np.testing.assert_allclose(y_jax, y32, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(x_jax / scale, single / scale, rtol=2e-5, atol=1e-6)
    # never below float32
    assert normalise.forward(fitted, jnp.asarray(single, jnp.bfloat16)).dtype == jnp.float32


def test_fitted_numbers_are_those_of_the_definition():
    voxels = POSITIVE.reshape(-1, 2)
    (step,) = normalise.fit(CHAINS["standardise"], list(POSITIVE))
    np.testing.assert_allclose(
        (step["mean"], step["std"]), (voxels.mean(0), voxels.std(0)), rtol=1e-12
    )
    y = normalise.forward(normalise.fit(CHAINS["percentile"], list(POSITIVE)), POSITIVE).reshape(
        -1, 2
    )
    np.testing.assert_allclose(np.percentile(y, [1, 99], axis=0), [[0, 0], [1, 1]], atol=1e-12)
    y = normalise.forward(normalise.fit(CHAINS["chain"][:2], list(POSITIVE)), POSITIVE).reshape(
        -1, 2
    )
    # fitted after the log
    np.testing.assert_allclose((y.mean(0), y.std(0)), [[0, 0], [1, 1]], atol=1e-12)
    np.testing.assert_allclose(
        normalise.forward(
            normalise.fit([("linear", {"low": 2, "high": 6})], [voxels]),
            np.array([[2.0, 6.0], [4.0, 5.0]]),
        ),
        [[-1, 1], [0, 0.5]],
    )


def test_clipping_returns_the_bound():
    x = np.array([[-1.0], [0.0], [0.5], [9.0]])
    for step, bounds in [
        (("log10", {"floor": 0.25}), (0.25, 9)),
        (("log1p", {"floor": 0.25}), (0.25, 9)),
        (("linear", {"low": 0, "high": 1, "clip": True}), (0, 1)),
        (("percentile", {"low": 25, "high": 75, "clip": True}), np.percentile(x, [25, 75])),
    ]:
        fitted = normalise.fit([step], [x])
        np.testing.assert_allclose(
            normalise.inverse(fitted, normalise.forward(fitted, x)), np.clip(x, *bounds), atol=1e-12
        )


def test_missing_voxels_neither_fit_nor_pass():
    mask = (np.random.default_rng(1).random((*POSITIVE.shape[:-1], 1)) > 0.3).astype(np.float32)
    spoilt = np.where(mask > 0, POSITIVE, np.nan)
    for chain in ("standardise", "zscore_mask", "percentile", "chain"):
        fitted = normalise.fit(CHAINS[chain], list(spoilt), list(mask))
        assert fitted == normalise.fit(
            CHAINS[chain], [POSITIVE[mask[..., 0] > 0]], [np.ones((int(mask.sum()), 1))]
        )
        for x in (spoilt, jnp.asarray(spoilt)):
            y = np.asarray(normalise.forward(fitted, x, mask))
            assert (y[mask[..., 0] == 0] == 0).all() and np.isfinite(y).all()
    # no mask: z-score over voxels > 0
    background = np.concatenate([POSITIVE, np.zeros_like(POSITIVE)])
    assert normalise.fit(CHAINS["zscore_mask"], [background]) == normalise.fit(
        CHAINS["zscore_mask"], [POSITIVE]
    )


def test_vector_standardise_commutes_with_permutation_and_reflection():
    x = np.random.default_rng(2).normal(size=(50, 6)) * [1, 2, 3, 40, 50, 60] + 1
    fitted = normalise.fit([("standardise", {})], [x], vector=True)
    turned = x[:, [2, 0, 1, 5, 3, 4]] * [-1, 1, 1, -1, 1, 1]
    np.testing.assert_allclose(
        normalise.forward(fitted, turned),
        normalise.forward(fitted, x)[:, [2, 0, 1, 5, 3, 4]] * [-1, 1, 1, -1, 1, 1],
    )
    np.testing.assert_allclose(
        np.mean(normalise.forward(fitted, x).reshape(-1, 2, 3) ** 2, (0, 2)), 1
    )


@pytest.mark.parametrize(
    "steps, message",
    [
        (
            [("standardize", {})],
            "standardise, zscore_mask, log10, log1p, asinh, linear, percentile",
        ),
        ([("log10", {"flor": 1})], "no argument flor: it takes floor"),
        ([("log10", {})], "needs the argument floor"),
        ([("log10", {"floor": 0})], "more than 0"),
        ([("log1p", {"floor": -1})], "more than -1"),
        ([("linear", {"low": 1, "high": 1})], "low < high"),
        ([("percentile", {"low": 1, "high": 101})], "0 ... 100"),
        ([("asinh", {"scale": [1, 2, 3]})], "each of the 2 channels"),
        (["standardise"], "name, {argument: value}"),
    ],
)
def test_wrong_chains_say_what_is_known(steps, message):
    with pytest.raises(UserError, match=message):
        normalise.fit(steps, list(POSITIVE))


@pytest.mark.parametrize("chain", ["standardise", "zscore_mask", "percentile"])
def test_constant_channel_is_refused_by_index(chain):
    x = POSITIVE.astype(np.float32).copy()
    x[..., 1] = 0.1
    with pytest.raises(UserError, match="channel 1"):
        normalise.fit(CHAINS[chain], list(x))
    with pytest.raises(UserError, match="no observed voxel"):
        normalise.fit(CHAINS[chain], [x], [np.zeros((*x.shape[:-1], 1))])
