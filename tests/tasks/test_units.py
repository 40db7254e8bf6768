"""Volumes in real units through the task, its baselines and its summary: the numbers do not depend
on the unit, and what is undefined stays undefined after the normaliser's round trip.
"""

import functools

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.ops import normalise
from jaxvol.tasks import regression
from jaxvol.types import Field, Spec

SHAPE = (6, 8, 8, 8, 1)
METRICS = ("vrmse", "relative_l2", "pearson", "ssim", "psnr", "mape")


def fields():
    rng = np.random.default_rng(4)
    x = rng.normal(size=SHAPE)
    return x, 2 * x + 3 + 0.5 * rng.normal(size=SHAPE)


def scored(x, y, unit_x=1.0, unit_y=1.0, steps=(("standardise", {}),), train=None):
    """{baseline: (metrics, rows)} of x -> y; the target's normaliser is fitted on `train`, or y."""
    config = ConfigDict({"precision": "f32", "task": base.task("regression")})
    config.task.metrics = METRICS
    chains = {
        "input": normalise.fit((("standardise", {}),), [unit_x * x]),
        "target": normalise.fit(steps, [unit_y * (y if train is None else train)]),
    }
    named = {name: Field((name,), normaliser=chain) for name, chain in chains.items()}
    spec = Spec(named, SHAPE[1:4], (1.0, 1.0, 1.0), periodic=(True, True, True))

    def batch(values):
        physical = {"input": unit_x * x, "target": unit_y * values}
        return {k: np.float32(normalise.forward(chains[k], v)) for k, v in physical.items()}

    baselines = regression.baselines(config.lock(), spec, [batch(y if train is None else train)])
    return {
        name: evaluate(task, params, extra, batch(y))
        for name, (task, params, extra) in baselines.items()
    }


def evaluate(task, params, extra, batch):
    rows = jax.jit(functools.partial(task.evaluate, rng=jax.random.key(0)))(params, extra, batch)
    rows = {name: np.asarray(values) for name, values in rows.items()}
    return task.summarize(rows), rows


def test_real_units_score_as_numbers_of_order_one_do():
    """g/cm^3 of 1e-29, column densities of 1e20 / cm^2, solar masses of 1e11 per Mpc^3."""
    x, y = fields()
    plain = scored(x, y)
    for unit_x, unit_y in ((1e-29, 1e20), (1e20, 1e-29), (1.0, 1e11)):
        real = scored(x, y, unit_x, unit_y)
        for name in ("mean", "wiener"):  # the identity is in the input's unit
            for key in (*METRICS, "loss", "transfer_error", "r_quarter"):
                if name == "wiener" or key != "r_quarter":
                    np.testing.assert_allclose(
                        real[name][0][key], plain[name][0][key], rtol=2e-3, atol=1e-4, err_msg=key
                    )
            for key in ("T", "r"):
                found, known = (s[name][0]["spectra"][key] for s in (real, plain))
                if name == "wiener":
                    np.testing.assert_allclose(found, known, rtol=1e-3)
        found, known = (s["wiener"][0]["spectra"]["P_true"] for s in (real, plain))
        np.testing.assert_allclose(found / known, unit_y**2, rtol=1e-3)
        assert np.isfinite(list(real["wiener"][0]["fit"]["training_vrmse"].values())).all()


@pytest.mark.parametrize("unit", [1e-29, 1.0, 1e20])
@pytest.mark.parametrize("offset", [3.0, 30.0])
def test_zeros_and_constants_are_undefined_after_the_round_trip(unit, offset):
    x, y = fields()
    train = y - 3 + offset
    y = train.copy()
    y[1] = 0
    y[2] = offset / 3
    y[3] = offset / 3 * (1 + 1e-7 * np.sign(x[3]))
    for name, (summary, rows) in scored(x, y, unit, unit, train=train).items():
        for key in METRICS:
            undefined = np.isnan(rows[key])
            zeros_only = key in ("relative_l2", "mape")
            wanted = [False, True, False, False] if zeros_only else [False, True, True, True]
            assert undefined[:4].tolist() == wanted, (name, key)
            assert not undefined[4:].any() and np.isfinite(summary[key])
            assert summary[f"{key}_count"] == len(undefined) - sum(wanted)


def test_what_a_logarithm_raised_to_its_floor_is_nothing():
    x, y = fields()
    train = np.exp(0.3 * y)
    y = train.copy()
    y[1] = 0
    steps = (("log10", {"floor": 1e-3}), ("standardise", {}))
    rows = scored(x, y, steps=steps, train=train)["wiener"][1]
    for key in ("relative_l2", "vrmse"):
        assert np.isnan(rows[key]).tolist() == [False, True, False, False, False, False]
