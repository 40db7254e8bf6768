"""What the discriminator is shown: noise, translations, intensities, missing voxels; and the ramp
of its weight.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.diagnostics.checks import adversarial as checks
from jaxvol.models.discriminator import discriminator
from jaxvol.ops import adversarial as ops
from jaxvol.tasks import views
from tests import toys
from tests.tasks import gans
from tests.tasks.gans import SPEC, N, settings, start, terms_at

quick_to_compile = gans.quick_to_compile


def test_ramp_and_decaying_instance_noise():
    config = settings(
        task__ramp__start=2,
        task__ramp__steps=4,
        task__weights__adversarial=0.8,
        task__noise__std=0.5,
        task__noise__steps=4,
    )
    task, batch, _, state = start(config)
    run = terms_at(task, state, batch)
    weights = [float(run(at)[1][0]["gen/adversarial_weight"]) for at in range(8)]
    np.testing.assert_allclose(weights, [0, 0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8], atol=1e-6)
    assert float(run(1)[0]["gen"]["adversarial"]) == 0
    image = jnp.zeros((2, N, N, N, 1))
    for at, std in ((0, 0.5), (2, 0.25), (4, 0.0), (9, 0.0)):
        view = views.make_view(config, SPEC, batch["input"], None, jnp.int32(at), jax.random.key(1))
        assert float(view(image)[..., 1].std()) == pytest.approx(std, rel=0.1)
        # one draw for real and generated images
        np.testing.assert_array_equal(view(image), view(image))


def test_views_move_the_pair_together_and_hide_missing_voxels():
    config = settings(task__augment__translation=0.25, task__augment__intensity=0.3)
    x = jnp.asarray(toys.batch(1, slice(0, 4))["input"])
    mask = jnp.ones((4, N, N, N, 1)).at[:, 2].set(0)
    shift = jnp.array([[1, 0, 0], [0, -2, 0], [0, 0, 2], [0, 0, -1]])
    moved = views.translate(x, shift, SPEC.periodic)
    np.testing.assert_array_equal(moved[0], jnp.roll(x[0], 1, 0))
    np.testing.assert_array_equal(moved[1], jnp.roll(x[1], -2, 1))
    # the third axis does not wrap
    np.testing.assert_array_equal(moved[2], jnp.roll(x[2], 2, 2).at[:, :, :2].set(0))
    np.testing.assert_array_equal(moved[3], jnp.roll(x[3], -1, 2).at[:, :, -1:].set(0))
    shifts = np.concatenate(
        [views.random_shift(jax.random.key(i), x.shape, 0.25) for i in range(20)]
    )
    assert shifts.min() == -2 and shifts.max() == 2 and len(np.unique(shifts[:4], axis=0)) > 1

    view = views.make_view(config, SPEC, x, None, jnp.int32(0), jax.random.key(1))(x)
    np.testing.assert_array_equal(view[..., 0], view[..., 1])
    assert not np.allclose(view[..., 0], x[..., 0])
    changed = views.change_intensity(x, jax.random.key(0), 0.3)
    for a, b in zip(np.asarray(x), np.asarray(changed)):
        slope, offset = np.polyfit(a.ravel(), b.ravel(), 1)
        np.testing.assert_allclose(slope * a + offset, b, atol=1e-5)
        assert 0.7 <= slope <= 1.3 and abs(b.mean() - a.mean()) <= 0.3

    task, batch, _, state = start(settings(task__weights__correlation=1.0))
    batch = {**batch, "mask": mask[:2]}
    torn = {**batch, "target": batch["target"].at[:, 2].set(jnp.nan)}
    jax.tree.map(
        np.testing.assert_array_equal,
        terms_at(task, state, batch)(0)[0],
        terms_at(task, state, torn)(0)[0],
    )


def test_the_check_shows_what_the_discriminator_itself_says():
    """Real before generated, every scale and layer, from inside the loss."""
    config = settings(task__discriminator__scales=2)
    task, batch, _, state = start(config)
    ctx = types.SimpleNamespace(task=task, config=config, state=state, batch=lambda step: batch)
    image = task.predict(state.params, state.extra, batch)
    critic = discriminator(config.task.discriminator, SPEC, config.precision)
    for found, y in zip(checks.features(ctx, state), (batch["target"], image)):
        by_hand = critic.apply(
            {"params": state.params["disc"], **state.extra["stats"]["disc"]},
            ops.pair(batch["input"], y, 0),
            train=False,
        )
        assert [len(scale) for scale in found] == [2, 2]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            tuple(map(tuple, found)),
            tuple(map(tuple, by_hand)),
        )
    assert [row["rms difference / rms real"] for row in checks.compare(found, found)] == [
        0,
        0,
        0,
        0,
    ]
