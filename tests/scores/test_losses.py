"""Losses against published values, closed forms, masks and finite gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.scores import entries, losses
from jaxvol.types import Field, Spec
from tests import FIXTURES

DATA = FIXTURES
SPEC = Spec(
    {"input": Field(("x",)), "target": Field(("y",))},
    (8, 8, 8),
    (0.5, 1.0, 2.0),
    periodic=(True, True, False),
)
NAMES = (
    "mse",
    "l1",
    "huber",
    "log_cosh",
    "relative_l2",
    "h1",
    "spectral_amplitude",
    "correlation",
    "ccc",
)


def named(name):
    return entries.bound(losses, entries.loss((name, 1.0)), SPEC)


def pair(shape=(2, 6, 5, 7, 2)):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)]


def test_published_spectral_and_hybrid_loss():
    z = np.load(DATA / "dm2ics_losses.npz", allow_pickle=False)
    alpha = json.loads(str(z["config"]))["alpha"]
    pred, target = (
        jnp.moveaxis(jnp.asarray(z[f"input/{name}"]), 1, -1) for name in ("pred", "target")
    )

    def hybrid(p):
        return jnp.mean(losses.mse(p, target) + alpha * losses.spectral_amplitude(p, target))

    value, gradient = jax.jit(jax.value_and_grad(hybrid))(pred)
    np.testing.assert_allclose(np.mean(losses.mse(pred, target)), z["output/mse"], rtol=1e-5)
    np.testing.assert_allclose(
        np.mean(losses.spectral_amplitude(pred, target)), z["output/spectral"], rtol=1e-5
    )
    np.testing.assert_allclose(value, z["output/hybrid_alpha0.05"], rtol=1e-5)
    expected = np.moveaxis(z["output/grad_hybrid_pred"], 1, -1)
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * expected.std())


def test_closed_forms():
    target = pair()[1]
    ones = np.ones(2)
    np.testing.assert_allclose(losses.mse(target + 3, target), 9 * ones, rtol=1e-5)
    np.testing.assert_allclose(losses.l1(target - 3, target), 3 * ones, rtol=1e-5)
    np.testing.assert_allclose(losses.huber(target + 3, target), 2.5 * ones, rtol=1e-5)
    np.testing.assert_allclose(
        losses.log_cosh(target + 30, target), (30 - np.log(2)) * ones, rtol=1e-5
    )
    np.testing.assert_allclose(losses.relative_l2(1.5 * target, target), 0.5 * ones, rtol=1e-5)
    np.testing.assert_allclose(losses.correlation(2 * target + 1, target), 0 * ones, atol=1e-6)
    np.testing.assert_allclose(losses.correlation(-target, target), 2 * ones, rtol=1e-6)
    # Lin's coefficient under a shift of 1
    variance = np.var(target, axis=(1, 2, 3))
    np.testing.assert_allclose(
        losses.ccc(target + 1, target),
        np.mean(1 - 2 * variance / (2 * variance + 1), -1),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        losses.spectral_amplitude(jnp.roll(target, 2, 2), target), 0 * ones, atol=1e-10
    )
    # cells^2 is more than 32 bits hold
    wide = pair((1, 64, 64, 64, 1))[1]
    # Parseval
    np.testing.assert_allclose(
        losses.spectral_amplitude(2 * wide, wide), losses.mse(wide, 0 * wide), rtol=1e-5
    )


@pytest.mark.parametrize("wraps", [True, False])
def test_h1_is_the_sobolev_norm(wraps):
    n, step = 64, 0.25
    x = (step * np.arange(n)).astype(np.float32)
    if wraps:
        field, slope = (
            np.sin(2 * np.pi * x / (n * step)),
            2 * np.pi / (n * step) * np.cos(2 * np.pi * x / (n * step)),
        )
        # what central differences make of a plane wave
        slope *= np.sinc(2 / n)
    else:
        # exact for straight lines, ends included
        field, slope = 3 * x + 1, 3 * np.ones(n)
    target = jnp.asarray(np.cos(0.3 * x)[None, :, None, None, None])
    pred = target + jnp.asarray(field[None, :, None, None, None], jnp.float32)

    def norm(loss):
        return loss * np.sqrt(np.mean(np.cos(0.3 * x) ** 2) + np.mean(derivative**2))

    derivative = np.gradient(np.cos(0.3 * x), step)
    if wraps:
        derivative = (np.roll(np.cos(0.3 * x), -1) - np.roll(np.cos(0.3 * x), 1)) / (2 * step)
    value = losses.h1(pred, target, spacing=(step, 1.0, 1.0), periodic=(wraps,) * 3)
    np.testing.assert_allclose(
        norm(value[0]), np.sqrt(np.mean(field**2) + np.mean(slope**2)), rtol=1e-4
    )


@pytest.mark.parametrize("name", [n for n in NAMES if n != "spectral_amplitude"])
def test_missing_voxels_count_for_nothing(name):
    """Masking away a slab, full of NaN, is the same as never having had it; gradients
    stay finite.
    """
    pred, target = pair((1, 7, 5, 6, 1))
    loss = jax.jit(getattr(losses, name))
    mask = jnp.ones((1, 7, 5, 6, 1)).at[:, 5:].set(0)
    holes = jnp.where(mask > 0, target, jnp.nan)
    # the derivative across the edge of the mask needs a voxel that is missing
    if name == "h1":
        tall = loss(pred[:, :5], target[:, :5])
        assert abs(float(loss(pred, holes, mask)[0] / tall[0]) - 1) < 0.2
    else:
        np.testing.assert_allclose(
            loss(pred, holes, mask), loss(pred[:, :5], target[:, :5]), rtol=1e-5
        )
    gradient = jax.jit(jax.grad(lambda p: loss(p, holes, mask)[0]))(pred)
    assert np.isfinite(gradient).all() and not np.any(gradient[:, 5:])
    assert np.any(gradient[:, :5])
    # nothing observed: no gradient, no NaN
    assert float(loss(pred, holes, 0 * mask)[0]) in (0.0, 1.0)


def test_mask_of_the_spectral_loss():
    pred, target = pair((1, 6, 6, 6, 1))
    mask = jnp.ones((1, 6, 6, 6, 1)).at[:, :, 3:].set(0)
    np.testing.assert_allclose(
        losses.spectral_amplitude(pred, jnp.where(mask > 0, target, jnp.nan), mask),
        losses.spectral_amplitude(pred * mask, target * mask),
        rtol=1e-5,
    )


@pytest.mark.parametrize("start", ["perfect", "zero"])
def test_gradients_are_finite_where_roots_vanish(start):
    target = pair((1, 4, 4, 4, 1))[1]
    pred = target if start == "perfect" else jnp.zeros_like(target)

    functions = {name: named(name) for name in NAMES}

    @jax.jit
    def gradients(p):
        return {
            name: jax.grad(lambda q, f=f: f(q, target, None)[0])(p) for name, f in functions.items()
        }

    for name, gradient in gradients(pred).items():
        assert np.isfinite(gradient).all(), name


def test_half_precision_input_is_scored_in_single():
    pred, target = (x.astype(jnp.bfloat16) for x in pair())
    for name in NAMES:
        assert named(name)(pred, target, None).dtype == jnp.float32, name
    big, small = (
        jnp.full((1, 4, 4, 4, 1), 256, jnp.bfloat16),
        jnp.full((1, 4, 4, 4, 1), 1 + 2**-7, jnp.bfloat16),
    )
    np.testing.assert_allclose(losses.mse(big, small), (255 - 2**-7) ** 2, rtol=1e-5)
