"""Height from fringe images: terms by hand, and both networks through the train loop."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol import main
from jaxvol.config import base, components, experiments, validate
from jaxvol.ops import fringes, laplacian, surfaces
from jaxvol.training import loop
from jaxvol.types import Fixed, UserError
from tests.ops.test_fringes import BACKGROUND, CENTRE, MODULATION, WAVES, points
from tests.training.test_kills import checksums

interferometry = experiments.load("interferometry")

TINY = {
    "pinn": {
        "data.problem.size": 24,
        "data.points.interior": 16,
        "data.points.data": 128,
        "model.widths": (6, 6),
        "batch_size": 8,
        "evaluate.batch_size": 8,
        "precision": "f32",
    },
    "unet": {
        "data.optics.size": 16,
        "data.surfaces.train": 8,
        "data.surfaces.val": 8,
        "data.surfaces.test": 2,
        "model.widths": (4, 8),
        "batch_size": 8,
        "evaluate.batch_size": 8,
    },
}


def config(variant, **overrides):
    chosen = interferometry.get_config(variant)
    chosen.phases, chosen.total_steps, chosen.log_every = (), 12, 1
    chosen.evaluate.every = chosen.checkpoint.every = 4
    chosen.optimizer.schedule.warmup_steps = 0
    chosen.preflight.run = chosen.evaluate.figures = False
    chosen.update_from_flattened_dict(
        {**TINY[variant], **{k.replace("__", "."): v for k, v in overrides.items()}}
    )
    validate.validate(chosen)
    return chosen.lock()


def test_points_are_pixels_drawn_anew_and_a_function_of_seed_and_step():
    chosen = config("pinn", data__problem__noise=4.0)
    a, b = components.dataset(chosen), components.dataset(chosen)
    first, again, later = a.batch(3, slice(0, 8)), b.batch(3, slice(0, 8)), a.batch(4, slice(0, 8))
    assert all(np.array_equal(first[k], again[k]) for k in first) and not np.array_equal(
        first["images"], later["images"]
    )
    assert not np.array_equal(first["images"][0], first["images"][1])
    np.testing.assert_array_equal(a.batch(3, slice(2, 4))["images"], first["images"][2:4])
    h = surfaces.published(points(24))
    seen = fringes.expose(np.random.default_rng([0, 0]), h, WAVES, BACKGROUND, MODULATION, 4.0, 8)
    column, row = np.rint((first["images"][0].T + 1) / 2 * 23).astype(int)
    np.testing.assert_allclose(first["images_target"][0] * 4, seen[row, column], rtol=1e-6)
    target = next(a.batches("test", 8, slice(0, 8), 0))["target"][0, 0, ..., 0]
    # x comes first on the evaluation grid
    np.testing.assert_allclose(target, h.T, rtol=1e-6)
    phase = components.dataset(
        config("pinn", data__problem__noise=4.0, data__problem__match=interferometry.LONG)
    )
    # what is compared of the data is no part of it
    assert phase.hash == a.hash != components.dataset(config("pinn")).hash


def test_terms_of_the_coordinate_network_are_the_published_ones():
    chosen = config("pinn", task__weights__data=1.0, task__weights__pde=1e-7, precision="f64")
    with jax.enable_x64(True):
        dataset = components.dataset(chosen)
        learned = components.task(chosen, dataset.spec)
        batch = {k: jnp.asarray(v) for k, v in dataset.batch(0, slice(0, 1)).items()}
        params, extra = jax.jit(learned.init)(jax.random.key(0), batch)
        terms = jax.jit(
            lambda p: learned.loss(
                p, Fixed(jnp.int32(0), jnp.int32(0), extra, None), batch, jax.random.key(1)
            )[0]["net"]
        )(params)
        model = components.model(chosen, dataset.spec)

        @jax.jit
        def expected(params):
            h = lambda x: CENTRE + 15 * model.apply({"params": params["net"]}, x)
            gap = (
                fringes.render(h(batch["images"][0])[:, 0], WAVES, BACKGROUND, MODULATION)
                - 4 * batch["images_target"][0]
            )
            return jnp.mean(gap**2), 1e-7 * jnp.mean(
                laplacian.laplacian(h, "hessian")(batch["points"][0])[2] ** 2
            )

        np.testing.assert_allclose((terms["images"], terms["pde"]), expected(params), rtol=1e-6)


def test_the_residual_network_starts_at_the_classical_solution():
    chosen = config("unet", task__weights__smooth=2.0)
    dataset = components.dataset(chosen)
    learned = components.task(chosen, dataset.spec)
    batch = {k: jnp.asarray(v) for k, v in next(dataset.batches("test", 8, slice(0, 8), 0)).items()}
    params, extra = jax.jit(learned.init)(jax.random.key(0), batch)
    params = jax.tree.map(jnp.zeros_like, params)
    rows = jax.jit(learned.evaluate)(params, extra, batch, jax.random.key(0))
    task, p, e = components.baselines(
        chosen, dataset.spec, dataset.batches("train", 8, slice(0, 8), 0)
    )["unwrapping"]
    classical = jax.jit(task.evaluate)(p, e, batch, jax.random.key(0))
    np.testing.assert_allclose(rows["rmse"], classical["rmse"], rtol=1e-3)
    h = fringes.unwrap(np.asarray((batch["input"][0, 0] + 1) * 127.5, np.float64), WAVES, CENTRE)
    assert float(rows["loss_smooth"][0]) == pytest.approx(
        2 * np.mean(fringes.stencil(h) ** 2), rel=1e-2
    )
    assert float(rows["rmse"][0]) < 0.02 and dataset.names("test")[0] == "published"


RUNS = {
    "pinn": {"optimizer__learning_rate": 2e-2},
    "unet": {
        "optimizer__learning_rate": 2e-2,
        "task__start": "constant",
        "task__scale": 15.0,
        "task__weights__smooth": 1e-6,
        "ema_decay": 0.0,
        "task__match": interferometry.BEATS,
        "total_steps": 40,
        "log_every": 8,
        "evaluate__every": 20,
        "checkpoint__every": 20,
    },
}


@pytest.mark.slow  # the same loop is resumed bitwise in tests/training and tests/models
@pytest.mark.parametrize("variant, bound", [("pinn", 0.02), ("unet", 0.15)])
def test_resume_is_bitwise_and_the_loss_falls(variant, bound, tmp_path, monkeypatch):
    """The images' term of the last update, below its bound and below half of the first that is
    logged.
    """
    chosen = config(variant, **RUNS[variant])
    if variant == "pinn":
        with chosen.unlocked():
            match = {"data.problem.match": interferometry.LONG}
            chosen.phases = (("long", 8, match), ("again", 4, match))
    assert main.do_train(chosen, tmp_path / "straight") == 0
    stop_at, real = chosen.total_steps // 2 + 1, loop.out_of_time
    stopping = lambda run, step: (
        "asked to" if run.state is not None and int(run.state.step) == stop_at else real(run, step)
    )
    monkeypatch.setattr(loop, "out_of_time", stopping)
    assert main.do_train(chosen, tmp_path / "stopped") == main.UNFINISHED
    monkeypatch.setattr(loop, "out_of_time", real)
    assert main.do_train(chosen, tmp_path / "stopped") == 0
    assert checksums(tmp_path / "stopped") == checksums(tmp_path / "straight")
    assert (tmp_path / "stopped/metrics.csv").read_bytes() == (
        tmp_path / "straight/metrics.csv"
    ).read_bytes()
    rows = [
        line.split(",") for line in (tmp_path / "straight/metrics.csv").read_text().splitlines()
    ]
    losses = [float(value) for _, tag, value in rows[1:] if tag == "train/net/images"]
    assert losses[-1] < min(bound, losses[0] / 2), losses
    scores = json.loads((tmp_path / "straight/evaluation/metrics.json").read_text())
    assert set(scores["baselines"]) >= {"mean", "unwrapping", "unwrapping, smoothed"}
    assert {"relative_l2", "rmse", "mae", "mape"} <= set(scores["model"])
    assert scores["baselines"]["unwrapping"]["rmse"] < 0.02


def test_wrong_configs_are_explained():
    with pytest.raises(UserError) as error:
        config(
            "unet",
            task__start="guess",
            task__scale=0.0,
            model__norm="layer",
            checkpoint__best_metric="height",
        )
    for text in (
        "task.start is 'guess'; it has to be one of unwrapping, constant",
        "task.scale is 0.0",
        "model.norm is 'layer'",
        "'height'",
    ):
        assert text in str(error.value)
    with pytest.raises(UserError, match="needs data.name='fringes'"):
        wrong = interferometry.get_config("unet")
        wrong.data = base.data("collocation")
        validate.validate(wrong)
    with pytest.raises(UserError, match="wavelengths is .5.0,."):
        components.dataset(config("unet", data__optics__wavelengths=(5.0,)))
    with pytest.raises(UserError, match="has 2 entries"):
        components.dataset(config("pinn", data__problem__match=((1, -1),)))
