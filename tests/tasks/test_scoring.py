"""What the volume tasks share: losses at several resolutions, and who is scored."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.ops import adversarial as ops
from jaxvol.scores import losses
from jaxvol.tasks import adversarial, scoring
from jaxvol.types import Field, Spec, UserError
from tests.tasks import gans
from tests.tasks.gans import SPEC, Generator, settings, start

quick_to_compile = gans.quick_to_compile


def test_validation_scores_the_generator_by_reconstruction_alone():
    config = settings(
        task__weights__correlation=2.0, task__correlation__scope="batch", task__resolutions=(1, 2)
    )
    task, batch, _, state = start(config, Generator(norm=True))
    rows = jax.jit(task.evaluate)(state.params, state.extra, batch, jax.random.key(0))
    assert set(rows) == {"loss", "loss_l1", "loss_correlation", "vrmse"}
    pred = Generator(norm=True).apply(
        {"params": state.params["gen"], **state.extra["stats"]["gen"]}, batch["input"]
    )
    np.testing.assert_allclose(
        task.predict(state.params, state.extra, batch), pred, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        rows["loss_correlation"],
        2 * ops.correlation(pred, batch["target"], scope="sample"),
        rtol=1e-4,
    )
    baselines = adversarial.baselines(config, SPEC, [jax.device_get(batch)])
    assert "loss_correlation" in jax.eval_shape(
        baselines["mean"][0].evaluate, *baselines["mean"][1:], batch, jax.random.key(0)
    )


def flat(shape, **task):
    """The regression config and a spec of volumes of `shape`."""
    config = ConfigDict({"precision": "f32", "task": base.task("regression")})
    config.task.update(task)
    return config.lock(), Spec(
        {"input": Field(("x",)), "target": Field(("y",))},
        shape,
        (1.0, 2.0, 3.0),
        periodic=(True,) * 3,
    )


def blocks(x, factor):
    """Means over cubes, by a loop."""
    shape = [max(n // factor, 1) for n in x.shape[1:4]]
    cut = [factor if n > 1 else 1 for n in x.shape[1:4]]
    pooled = np.zeros((x.shape[0], *shape, x.shape[-1]))
    for i, j, k in np.ndindex(*shape):
        corner = [slice(a * c, (a + 1) * c) for a, c in zip((i, j, k), cut)]
        pooled[:, i, j, k] = np.nanmean(x[(slice(None), *corner)], axis=(1, 2, 3))
    return pooled


@pytest.mark.parametrize("shape", [(8, 4, 8), (1, 8, 4)])
def test_a_loss_at_several_resolutions_is_the_mean_over_pooled_volumes(shape):
    config, spec = flat(shape, losses=(("mse", 2.0), ("h1", 0.5)), resolutions=(1, 2, 4))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, *shape, 1)).astype(np.float32)
    rows = jax.jit(scoring.terms(config, spec))(x, {"target": y})
    parts = [(x, y)] + [(blocks(x, r), blocks(y, r)) for r in (2, 4)]
    np.testing.assert_allclose(
        rows["mse"],
        2 * np.mean([np.mean((a - b) ** 2, (1, 2, 3, 4)) for a, b in parts], 0),
        rtol=1e-5,
    )
    slopes = [
        losses.h1(
            jnp.asarray(a, jnp.float32),
            jnp.asarray(b, jnp.float32),
            spacing=tuple(r * s for s in spec.spacing),
            # voxels are r times as large
            periodic=spec.periodic,
        )
        for r, (a, b) in zip((1, 2, 4), parts)
    ]
    np.testing.assert_allclose(rows["h1"], 0.5 * np.mean(slopes, 0), rtol=1e-5)


def test_pooling_reads_observed_voxels_only():
    config, spec = flat((4, 4, 4), resolutions=(2,))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 2, 4, 4, 4, 1)).astype(np.float32)
    mask = (rng.random((2, 4, 4, 4, 1)) > 0.5).astype(np.float32)
    mask[:, :2, :2, :2] = 0  # a cube without any
    torn = np.where(mask > 0, y, np.nan)
    rows = scoring.terms(config, spec)(
        jnp.asarray(x), {"target": jnp.asarray(torn), "mask": jnp.asarray(mask)}
    )["mse"]
    with warnings.catch_warnings(action="ignore"):  # of the cube without any
        wanted = np.nanmean(
            (blocks(np.where(mask > 0, x, np.nan), 2) - blocks(torn, 2)) ** 2, axis=(1, 2, 3, 4)
        )
    np.testing.assert_allclose(rows, wanted, rtol=1e-5)


def test_sides_that_do_not_divide_are_refused():
    config, spec = flat((6, 6, 6), resolutions=(1, 4))
    x = jnp.zeros((1, 6, 6, 6, 1))
    with pytest.raises(
        UserError, match=r"resolutions has 4, but volumes of \(6, 6, 6\) voxels do not divide"
    ):
        scoring.terms(config, spec)(x, {"target": x})
