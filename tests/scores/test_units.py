"""Scores of fields in any unit, 1e-27 to 1e27: each follows its known scaling, none overflows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.ops import masked
from jaxvol.scores import entries, losses, metrics

METRICS = {  # metric(c pred, c target) = c^power metric(pred, target)
    "vrmse": 0,
    "relative_l2": 0,
    "rmse": 1,
    "mae": 1,
    "mape": 0,
    "pearson": 0,
    "ssim": 0,
    "psnr": 0,
    "pdf_distance": 1,
}
LOSSES = {"mse": 2, "l1": 1, "spectral_amplitude": 2}
RATIOS = ("relative_l2", "h1", "correlation", "ccc")  # of fields that are not small beside EPS
OTHERS = ("huber", "log_cosh")  # their scale is 1


def pair(seed=0, shape=(1, 11, 6, 7, 2)):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=shape) + 0.5
    return (target + 0.3 * rng.normal(size=shape)).astype(np.float32), target.astype(np.float32)


def scaled(low, high, seed=0):
    """(2^k, pred, target) for k = low ... high, one example each."""
    factors = np.exp2(np.arange(low, high + 1)).astype(np.float32)
    return factors, *(factors[:, None, None, None, None] * x for x in pair(seed))


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", entries.functions(metrics))
def test_a_metric_follows_its_scaling_from_2_to_the_minus_90_to_2_to_the_90(name, holes):
    factors, pred, target = scaled(-90, 90)
    mask = None
    if holes:
        mask = (np.random.default_rng(1).random((*target.shape[:4], 1)) > 0.3).astype(np.float32)
        mask[:] = mask[:1]
    values = np.asarray(jax.jit(getattr(metrics, name))(pred, target, mask))
    middle = values[90]
    assert np.isfinite(middle) and middle != 0
    np.testing.assert_allclose(values / factors ** METRICS[name], middle, rtol=2e-6)


@pytest.mark.parametrize("name", ["ssim", "psnr"])
def test_a_data_range_in_the_same_unit_gives_the_same_value(name):
    for seed in (0, 1):
        pred, target = pair(seed)
        metric = getattr(metrics, name)
        plain = metric(pred, target, data_range=3.0)
        for k in (-90, -40, 40, 90):
            c = np.float32(2.0**k)
            value = metric(c * pred, c * target, data_range=float(3 * c))
            np.testing.assert_allclose(value, plain, rtol=2e-6)


@pytest.mark.parametrize("name", entries.functions(losses))
def test_a_loss_follows_its_scaling_as_far_as_float32_holds_it(name):
    loss = jax.jit(jax.value_and_grad(lambda p, t: jnp.sum(getattr(losses, name)(p, t))))
    if name in RATIOS:
        factors, pred, target = scaled(0, 90)
        values = np.asarray(jax.jit(getattr(losses, name))(pred, target))
        np.testing.assert_allclose(values, values[0], rtol=1e-5)
        gradient = np.asarray(loss(pred, target)[1])
        assert np.isfinite(gradient).all()
        spread = np.abs(gradient).max((1, 2, 3, 4)) * factors
        np.testing.assert_allclose(spread, spread[0], rtol=1e-4)
    elif name in LOSSES:
        reach = 90 // LOSSES[name]
        factors, pred, target = scaled(-reach, reach)
        values = np.asarray(jax.jit(getattr(losses, name))(pred, target))
        np.testing.assert_allclose(values / factors ** LOSSES[name], values[reach], rtol=2e-6)
    else:
        assert name in OTHERS  # a loss that is new says here how it scales


@pytest.mark.parametrize("unit", [1e-29, 1e-19, 1e-10, 1e10, 1e11, 1e17, 1e20])
def test_a_prediction_that_is_30_per_cent_off_is_30_per_cent_off_in_every_unit(unit):
    target = pair()[1] * np.float32(unit)
    pred = np.float32(1.3) * target
    np.testing.assert_allclose(metrics.relative_l2(pred, target), 0.3, rtol=1e-5)
    one = pair()[1]
    for name in ("psnr", "ssim", "vrmse", "pearson"):
        expected = getattr(metrics, name)(np.float32(1.3) * one, one)
        np.testing.assert_allclose(
            getattr(metrics, name)(pred, target), expected, rtol=1e-4, err_msg=name
        )


def test_predictions_that_are_far_larger_than_the_target_are_scored_by_their_size():
    target = pair()[1]
    for k in (20, 60, 90):
        pred = np.float32(2.0**k) * pair(3)[1]
        size = np.sqrt(np.mean(np.square(pred.astype(float))))
        np.testing.assert_allclose(metrics.rmse(pred, target), size, rtol=1e-4)
        np.testing.assert_allclose(
            metrics.relative_l2(pred, target),
            size / np.sqrt(np.mean(np.square(target.astype(float)))),
            rtol=1e-4,
        )
        assert abs(metrics.ssim(pred, target)[0]) < 1e-3
        assert metrics.psnr(pred, target)[0] < -80
        assert np.isfinite([getattr(metrics, name)(pred, target)[0] for name in METRICS]).all()


@pytest.mark.parametrize("unit", [1e-29, 1.0, 1e20])
@pytest.mark.parametrize("name", entries.functions(metrics))
def test_what_cannot_be_computed_is_nan_and_never_infinite(name, unit):
    """Against zeros, a constant, a constant up to rounding, and itself."""
    metric = getattr(metrics, name)
    pred, target = (np.float32(unit) * x for x in pair())
    flat = np.full_like(target, 0.1 * unit)
    shaken = flat * (1 + np.float32(1e-7) * np.sign(target))
    values = [metric(pred, x)[0] for x in (0 * target, flat, shaken)]
    undefined = {
        "relative_l2": [True, False, False],
        "mape": [True, False, False],
        "rmse": [False] * 3,
        "mae": [False] * 3,
        "pdf_distance": [False] * 3,
    }
    wanted = undefined[name] if name in undefined else [True] * 3
    assert np.isnan(values).tolist() == wanted
    assert not np.isinf(values).any() and not np.any(np.asarray(values) == 0)
    itself = metric(target, target)[0]
    assert np.isnan(itself) if name == "psnr" else np.isfinite(itself)


@pytest.mark.parametrize("module", [losses, metrics], ids=["losses", "metrics"])
def test_what_lies_under_the_mask_changes_nothing(module):
    """Other numbers and NaN in missing voxels leave every bit; the mask itself does matter."""
    pred, target = pair(2)
    mask = (np.random.default_rng(3).random((1, 11, 6, 7, 1)) > 0.3).astype(np.float32)
    mask[:, :, :2] = 0
    for name, score in entries.functions(module).items():
        score = jax.jit(score)
        value = np.asarray(score(pred, target, mask))
        assert np.isfinite(value).all() and not np.allclose(value, score(pred, target)), name
        for other in (7.0, -1e6, 1e30, np.nan):
            p, t = (np.where(mask > 0, x, np.float32(other)) for x in (pred, target))
            for changed in ((p, target), (pred, t), (p, t)):
                np.testing.assert_array_equal(score(*changed, mask), value, err_msg=name)


def test_unit_is_the_power_of_two_below_the_largest_value():
    x = np.array([1e-29, 0.75, 1.0, 3.0, -5e20, 0.0, np.inf, np.nan], np.float32)
    expected = [2.0**-97, 0.5, 1.0, 2.0, 2.0**68, 1, 1, 1]
    np.testing.assert_array_equal(masked.unit(x.reshape(8, 1, 1, 1, 1)).ravel(), expected)
