"""Metrics against scikit-image, SciPy and closed forms."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from jaxvol.scores import metrics
from tests import FIXTURES

DATA = FIXTURES


def pair(shape=(2, 13, 12, 14, 1), offset=0.0):
    rng = np.random.default_rng(1)
    target = ndimage.gaussian_filter(rng.normal(size=shape), (0, 1, 1, 1, 0)[: len(shape)]) + offset
    return (target + 0.3 * rng.normal(size=shape)).astype(np.float32), target.astype(np.float32)


@pytest.mark.parametrize("case", [0, 1])
def test_scikit_image(case):
    z = np.load(DATA / "skimage_ssim_psnr.npz", allow_pickle=False)
    span = json.loads(str(z["config"]))["cases"][case]["data_range"]
    with jax.enable_x64(True):
        target, pred = (
            jnp.asarray(z[f"input/{name}_{case}"], jnp.float64)[None, ..., None] for name in "ab"
        )
        values = {
            "ssim_gaussian": metrics.ssim(pred, target, data_range=span),
            "psnr": metrics.psnr(pred, target, data_range=span),
            "mse": metrics.rmse(pred, target) ** 2,
            "nrmse_euclidean": metrics.relative_l2(pred, target),
        }
        for name, value in values.items():
            np.testing.assert_allclose(
                value[0], z[f"output/{name}_{case}"], rtol=1e-6, err_msg=name
            )


def brute_ssim(p, t, radius, span, mask=1.0):
    """SSIM by SciPy's filters: local moments of observed voxels under the same Gaussian, mean where
    the window fits.
    """
    mask = np.broadcast_to(mask, t.shape).astype(float)
    share = ndimage.gaussian_filter(mask, 1.5, radius=radius)

    def local(x):
        return ndimage.gaussian_filter(x * mask, 1.5, radius=radius) / np.where(share > 0, share, 1)

    p, t = p.astype(float), t.astype(float)
    mp, mt = local(p), local(t)
    vp, vt, c = local(p * p) - mp**2, local(t * t) - mt**2, local(p * t) - mp * mt
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    s = (2 * mp * mt + c1) * (2 * c + c2) / ((mp**2 + mt**2 + c1) * (vp + vt + c2))
    inside = tuple(slice(radius, n - radius) for n in s.shape)
    return s[inside][mask[inside] > 0].mean()


@pytest.mark.parametrize(
    "shape,radius", [((1, 24, 20), 5), ((9, 16, 12), 4), ((1, 6, 12), 2), ((12, 2, 12), 0)]
)
def test_ssim_of_planes_and_small_volumes(shape, radius):
    pred, target = (x[..., 0] for x in pair((2, *shape, 1)))
    value = metrics.ssim(pred[..., None], target[..., None])
    for i in range(2):
        expected = brute_ssim(pred[i].squeeze(), target[i].squeeze(), radius, np.ptp(target[i]))
        np.testing.assert_allclose(value[i], expected, rtol=1e-4)


def test_ssim_keeps_its_digits_far_from_zero():
    pred, target = pair((1, 12, 12, 12, 1), offset=300.0)
    expected = brute_ssim(pred.squeeze(), target.squeeze(), 5, np.ptp(target))
    np.testing.assert_allclose(metrics.ssim(pred, target)[0], expected, rtol=1e-4)


def test_closed_forms():
    target = pair()[1]
    std = target.std(axis=(1, 2, 3, 4))
    mean = np.broadcast_to(target.mean((1, 2, 3), keepdims=True), target.shape)
    np.testing.assert_allclose(metrics.vrmse(mean, target), 1, rtol=1e-5)
    np.testing.assert_allclose(metrics.vrmse(target + 2, target), 2 / std, rtol=1e-5)
    np.testing.assert_allclose(metrics.rmse(target + 2, target), 2, rtol=1e-5)
    np.testing.assert_allclose(metrics.mae(target - 2, target), 2, rtol=1e-5)
    np.testing.assert_allclose(metrics.relative_l2(0 * target, target), 1, rtol=1e-6)
    np.testing.assert_allclose(metrics.pearson(3 - 2 * target, target), -1, rtol=1e-5)
    np.testing.assert_allclose(
        metrics.psnr(target + 2, target),
        20 * np.log10(np.ptp(target, axis=(1, 2, 3, 4)) / 2),
        rtol=1e-5,
    )
    np.testing.assert_allclose(metrics.ssim(target, target), 1, rtol=1e-5)
    np.testing.assert_allclose(metrics.pdf_distance(target[:, ::-1] + 2, target), 2, rtol=1e-5)


def test_pdf_distance_is_wasserstein():
    pred, target = pair()
    expected = [stats.wasserstein_distance(p.ravel(), t.ravel()) for p, t in zip(pred, target)]
    np.testing.assert_allclose(metrics.pdf_distance(pred, target), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["rmse", "mae", "relative_l2", "vrmse", "pearson", "psnr", "pdf_distance", "ssim"]
)
def test_missing_voxels_count_for_nothing(name):
    """A masked slab full of NaN is as good as absent (SSIM: see the windows that reach over its
    edge below).
    """
    pred, target = pair((2, 16, 13, 12, 2))
    metric = jax.jit(getattr(metrics, name))
    mask = np.ones((2, 16, 13, 12, 1), np.float32)
    np.testing.assert_allclose(metric(pred, target, mask), metric(pred, target), rtol=1e-5)
    mask[:, 12:] = 0
    holes = np.where(mask > 0, target, np.nan)
    found, without = metric(pred, holes, mask), metric(pred[:, :12], target[:, :12])
    if name != "ssim":
        np.testing.assert_allclose(found, without, rtol=1e-5)
    assert np.isnan(metric(pred, holes, 0 * mask)).all()


def test_ssim_of_observed_voxels():
    pred, target = pair((1, 16, 14, 13, 1))
    mask = np.random.default_rng(2).random(target.shape) > 0.3
    mask[:, 12:] = False
    expected = brute_ssim(pred.squeeze(), target.squeeze(), 5, np.ptp(target[mask]), mask.squeeze())
    np.testing.assert_allclose(
        metrics.ssim(pred, np.where(mask, target, np.nan), mask)[0], expected, rtol=1e-4
    )


def test_undefined_is_nan_and_constant_predictions_correlate_with_nothing():
    pred, target = pair()
    flat = np.full_like(target, 0.1)
    for name in ("vrmse", "pearson", "ssim", "psnr"):
        assert np.isnan(getattr(metrics, name)(pred, flat)).all(), name
    assert np.isnan(metrics.relative_l2(pred, 0 * flat)).all()
    np.testing.assert_array_equal(metrics.pearson(flat, target), 0)


def test_mape_counts_small_heights_against_a_hundredth_of_the_largest():
    target, pred = (
        jnp.array([100.0, -50.0, 0.0, 0.5]).reshape(1, 1, 2, 2, 1),
        jnp.array([101.0, -50.0, 0.2, 0.5]).reshape(1, 1, 2, 2, 1),
    )
    assert float(metrics.mape(pred, target)[0]) == pytest.approx(
        100 * (0.01 + 0 + 0.2 + 0) / 4, rel=1e-5
    )
    assert float(
        metrics.mape(pred, target, jnp.array([1.0, 1, 0, 1]).reshape(1, 1, 2, 2, 1))[0]
    ) == pytest.approx(1 / 3, rel=1e-5)
    assert np.isnan(metrics.mape(pred, jnp.zeros_like(target))[0])
