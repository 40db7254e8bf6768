"""Adversarial terms against published values, closed forms, masks and finite gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.convert import pix2pixcc as convert
from jaxvol.ops import adversarial
from jaxvol.scores import losses
from jaxvol.types import UserError
from tests import FIXTURES, compiler

DATA = FIXTURES


def fixture(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        return json.loads(str(file["config"])), {k: file[k] for k in file.files if k != "config"}


def features(arrays, which, scales, layer="block"):
    """[scale][layer] of a fixture, channels last."""
    return [
        [
            np.moveaxis(arrays[f"output/{which}_features/scale{s}/{layer}{i}"], 1, -1)
            for i in range(5)
        ]
        for s in range(scales)
    ]


def volume(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def terms(original, real, fake, target, pred, kind):
    """(loss of the discriminator, adversarial, feature matching and correlation terms of the
    generator), published weights 1.
    """
    disc = adversarial.discriminator_loss(
        "lsgan", adversarial.logits(real), adversarial.logits(fake)
    )
    correlation = adversarial.correlation(
        pred, target, original["n_CC"], kind, "batch", count_padding=True
    )
    return [
        jnp.mean(v)
        for v in (
            disc["real"] + disc["fake"],
            adversarial.generator_loss("lsgan", adversarial.logits(fake)),
            adversarial.feature_matching(fake, real),
            correlation,
        )
    ]


@pytest.mark.parametrize("name", ["gan_discriminator_losses", "gan_balanced_losses"])
def test_published_pix2pixcc_losses(name):
    """Every term, and the gradient of the generator's loss with respect to the image, through
    pairing and discriminator.
    """
    original, arrays = fixture(name)
    x, target, fake = (
        jnp.moveaxis(arrays[f"input/{k}"], 1, -1) for k in ("input", "target", "fake")
    )
    module, variables = convert.discriminator(
        {k[6:]: v for k, v in arrays.items() if k.startswith("param/")}, original
    )
    kind = "ccc" if original["ccc"] else "pcc"
    weights = [original[f"lambda_{k}"] for k in ("LSGAN", "FM", "CC")]

    @jax.jit
    def total(fake):
        judged = [
            module.apply(variables, adversarial.pair(x, y, original["ch_balance"]))
            for y in (target, fake)
        ]
        values = terms(original, *judged, target, fake, kind)
        return sum(w * v for w, v in zip(weights, values[1:])), values

    (loss, values), gradient = jax.value_and_grad(total, has_aux=True)(fake)
    known = ["loss_D", *(f"loss_G_{term}_lambda1" for term in ("LSGAN", "FM", kind.upper()))]
    np.testing.assert_allclose(values, [arrays[f"output/{k}"] for k in known], rtol=1e-5)
    assert float(loss) == pytest.approx(float(arrays["output/loss_G_total"]), rel=1e-5)
    expected = np.moveaxis(arrays["output/grad_loss_G_wrt_fake__stride2"], 1, -1)
    np.testing.assert_allclose(gradient[:, ::2, ::2, ::2], expected, atol=2e-4 * expected.std())
    for one in ("PCC", "CCC"):
        mean = jax.jit(
            lambda p, t, n, name=one: adversarial.correlation(
                p, t, n, name.lower(), "batch", count_padding=True
            )[0],
            static_argnums=2,
            compiler_options=compiler.usual(),
        )
        pyramid = [float(mean(fake, target, n)) * n for n in (1, 2, 3)]
        single = [pyramid[0], *np.diff(pyramid)]
        np.testing.assert_allclose(
            single, [arrays[f"output/cc_loss_{one}_scale{i}"] for i in range(3)], rtol=1e-5
        )


def test_published_pix2pixhd_losses():
    """The two-dimensional original writes LSGAN without the factor 1/2, and matches features by the
    mean over layers.
    """
    _, arrays = fixture("n2c_discriminator")
    real, fake = (features(arrays, which, 3, "layer") for which in ("real", "fake"))
    d = jax.jit(adversarial.discriminator_loss, static_argnums=(0, 3))
    g = jax.jit(adversarial.generator_loss, static_argnums=0)
    judged = adversarial.logits(real), adversarial.logits(fake)
    found = {
        "lsgan_D_real": 2 * d("lsgan", *judged)["real"],
        "lsgan_D_fake": 2 * d("lsgan", *judged)["fake"],
        "lsgan_D_real_smooth0.9": 2 * d("lsgan", *judged, 0.1)["real"],
        "lsgan_G": 2 * g("lsgan", judged[1]),
        "hinge_D_real": d("hinge", *judged)["real"],
        "hinge_D_fake": d("hinge", *judged)["fake"],
        "hinge_G": g("hinge", judged[1]),
        "feature_matching": adversarial.feature_matching(fake, real, with_logits=False) / 4,
    }
    for name, rows in found.items():
        assert rows.shape == (2,) and float(np.mean(rows)) == pytest.approx(
            float(arrays[f"output/{name}"]), rel=1e-5
        ), name


def test_optimal_values_of_a_constant_discriminator():
    """LSGAN at 1/2 with zero gradient, hinge at 0; smoothing moves the optimum to (1 - s) / 2."""

    def loss(c, kind, smoothing):
        judged = (jnp.full((2, 3, 3, 3, 1), c), jnp.full((2, 2, 2, 2, 1), c))
        return jnp.mean(
            sum(adversarial.discriminator_loss(kind, judged, judged, smoothing).values())
        )

    loss = jax.jit(loss, static_argnums=(1, 2))
    for smoothing in (0.0, 0.2):
        best = (1 - smoothing) / 2
        assert float(jax.grad(loss)(best, "lsgan", smoothing)) == pytest.approx(0, abs=1e-6)
    # two scales, 1/2 (1/4 + 1/4) each
    assert float(loss(0.5, "lsgan", 0.0)) == pytest.approx(0.5)
    assert float(loss(0.3, "hinge", 0.0)) == pytest.approx(4)  # flat between -1 and 1


def test_feature_matching_gives_no_gradient_to_the_real_features():
    real, fake = (
        [[volume(0, 2, 3, 3, 3, 4), volume(1, 2, 2, 2, 2, 1)]],
        [[volume(2, 2, 3, 3, 3, 4), volume(3, 2, 2, 2, 2, 1)]],
    )
    to_fake, to_real = jax.jit(
        jax.grad(lambda f, r: adversarial.feature_matching(f, r).sum(), (0, 1))
    )(fake, real)
    assert all(np.any(g) for g in jax.tree.leaves(to_fake)) and not any(
        np.any(g) for g in jax.tree.leaves(to_real)
    )


@pytest.mark.parametrize("kind", ["pcc", "ccc"])
def test_correlation_at_one_scale_per_sample_is_the_voxel_loss(kind):
    """The loss of jaxvol/scores/losses.py for each example and channel (its concordance divides by
    N, this one by N - 1).
    """
    pred, target = volume(0, 3, 6, 5, 7, 2), volume(1, 3, 6, 5, 7, 2)
    pred[1] = 3 * pred[1] + 1
    reference = losses.correlation if kind == "pcc" else losses.ccc
    np.testing.assert_allclose(
        adversarial.correlation(pred, target, 1, kind), reference(pred, target), rtol=2e-3
    )
    one = adversarial.correlation(pred[:1, ..., :1], target[:1, ..., :1], 1, kind)
    np.testing.assert_allclose(
        adversarial.correlation(pred[:1, ..., :1], target[:1, ..., :1], 1, kind, "batch"),
        one,
        rtol=1e-5,
    )


def test_scope_decides_what_a_difference_between_examples_counts():
    """Pearson's coefficient per sample does not see an offset of each example.

    Over the batch the offset decorrelates.
    """
    target = volume(0, 2, 6, 6, 6, 1)
    pred = target + np.array([5.0, -5.0], np.float32)[:, None, None, None, None]
    np.testing.assert_allclose(adversarial.correlation(pred, target, 2), 0, atol=1e-5)
    batch = adversarial.correlation(pred, target, 1, scope="batch")
    assert batch.shape == (2,) and batch[0] == batch[1] > 0.5


def test_coarse_scales_do_not_see_fine_noise():
    loss = jax.jit(adversarial.correlation, static_argnums=2)
    j = 2 * np.pi * np.arange(32) / 32
    target = (np.cos(j)[:, None, None] + np.sin(j)[:, None] + np.cos(j)).astype(np.float32)[
        None, ..., None
    ]
    checkers = ((-1.0) ** np.indices((32,) * 3).sum(0)).astype(np.float32)[None, ..., None]
    scales = [float(loss(target + checkers, target, n)[0]) * n for n in (1, 2, 3)]
    assert scales[0] > 0.1 and scales[1] - scales[0] < 0.01 and scales[2] - scales[1] < 0.01
    # averages are over what there is: a constant stays constant
    flat = np.ones((1, 8, 8, 8, 1), np.float32)
    np.testing.assert_allclose(adversarial._pool(flat, flat, None, False)[0], 1, rtol=1e-6)
    assert float(adversarial._pool(flat, flat, None, True)[0].min()) == pytest.approx(8 / 27)


@pytest.mark.parametrize("kind, scope", [("pcc", "sample"), ("ccc", "batch")])
def test_missing_voxels_count_for_nothing(kind, scope):
    pred, target = volume(0, 2, 8, 6, 6, 1), volume(1, 2, 8, 6, 6, 1)
    mask = np.ones((2, 8, 6, 6, 1), np.float32)
    mask[:, 5:] = 0
    holes = np.where(mask > 0, target, np.nan)
    loss = jax.jit(
        lambda p, t, m, n: adversarial.correlation(p, t, n, kind, scope, m), static_argnums=3
    )
    np.testing.assert_allclose(
        loss(pred, holes, mask, 1), loss(pred[:, :5], target[:, :5], mask[:, :5], 1), rtol=1e-5
    )
    np.testing.assert_allclose(
        loss(pred, target, np.ones_like(mask), 3),
        adversarial.correlation(pred, target, 3, kind, scope),
        rtol=1e-5,
    )
    gradient = jax.jit(jax.grad(lambda p: loss(p, holes, mask, 2).sum()))(pred)
    assert np.isfinite(gradient).all() and not np.any(gradient[:, 5:]) and np.any(gradient[:, :5])


@pytest.mark.parametrize("kind", ["pcc", "ccc"])
def test_gradients_are_finite_for_a_constant_prediction(kind):
    target = volume(0, 1, 6, 6, 6, 1)
    for pred in (jnp.zeros_like(target), jnp.asarray(target)):
        value, gradient = jax.jit(
            jax.value_and_grad(lambda p: adversarial.correlation(p, target, 2, kind).sum())
        )(pred)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_pairs_follow_the_published_order():
    original, _ = fixture("gan_balanced_losses")
    x, y = np.array([[10.0, 11.0]]), np.array([[20.0]])
    names = {"input0": 10.0, "input1": 11.0, "target0": 20.0}
    np.testing.assert_array_equal(
        adversarial.pair(x, y, 1.0)[0], [names[c] for c in original["pair_channels"]]
    )
    np.testing.assert_array_equal(adversarial.pair(x, y, 0.0)[0], [10, 11, 20])
    # fewer inputs: they are repeated
    np.testing.assert_array_equal(adversarial.pair(y, x, 1.0)[0], [20, 20, 10, 11])
    np.testing.assert_array_equal(adversarial.pair(x, y, 0.25)[0], [10, 11, 10, 11, 20])
    # 2.9 counts as 2
    np.testing.assert_array_equal(adversarial.pair(x, y, 1.45)[0], [10, 11, 20, 20])
    assert adversarial.pair(np.zeros((1, 3)), np.zeros((1, 49))).shape == (1, 52)
    assert adversarial.pair(np.zeros((1, 1)), np.zeros((1, 49)), 1.0).shape == (1, 98)


def test_half_precision_is_scored_in_single():
    real, fake = ([[jnp.asarray(volume(s, 2, 4, 4, 4, 1), jnp.bfloat16)] * 2] for s in (0, 1))
    judged = adversarial.logits(real), adversarial.logits(fake)
    rows = [
        *adversarial.discriminator_loss("hinge", *judged).values(),
        adversarial.generator_loss("lsgan", judged[1]),
        adversarial.feature_matching(fake, real),
        adversarial.correlation(fake[0][0], real[0][0], 2, "ccc"),
    ]
    assert all(r.dtype == jnp.float32 and r.shape == (2,) for r in rows)


def test_unknown_names():
    one = (jnp.zeros((1, 2, 2, 2, 1)),)
    with pytest.raises(UserError, match="'wgan' as the adversarial loss.*lsgan, hinge"):
        adversarial.generator_loss("wgan", one)
    with pytest.raises(UserError, match="'wgan'"):
        adversarial.discriminator_loss("wgan", one, one)
    with pytest.raises(UserError, match="'rank' as the correlation.*pcc, ccc"):
        adversarial.correlation(one[0], one[0], kind="rank")
    with pytest.raises(UserError, match="scope.*sample, batch"):
        adversarial.correlation(one[0], one[0], scope="voxel")
