"""Fringe images: rendering and phases by hand, unwrapping exact where it can be, and both networks
through the train loop.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol import main
from jaxvol.config import base, components, experiments, validate
from jaxvol.ops import fringes, laplacian
from jaxvol.scores import metrics
from jaxvol.training import loop
from jaxvol.types import Fixed, UserError
from tests.training.test_kills import checksums

interferometry = experiments.load("interferometry")

WAVES = (5.0, 5.5, 6.05, 6.655)
BACKGROUND, MODULATION, CENTRE = 128.0, 100.0, 12.0


def points(n):
    axis = np.linspace(-1, 1, n)
    return np.stack(np.meshgrid(axis, axis), -1)


def wrapped(angle):
    return (angle + np.pi) % (2 * np.pi) - np.pi


@pytest.mark.parametrize("module, tolerance", [(np, 1e-9), (jnp, 2e-5)])
def test_phases_are_those_that_were_rendered(module, tolerance):
    h = module.asarray(
        np.linspace(-4, 27, 200).reshape(10, 20), module.float64 if module is np else module.float32
    )
    images = fringes.render(h, WAVES, BACKGROUND, MODULATION)
    assert images.shape == (10, 20, 16)
    assert float(images[3, 4, 9]) == pytest.approx(
        128 + 100 * np.cos(4 * np.pi * float(h[3, 4]) / 6.05 + np.pi / 2), abs=0.01
    )
    gap = wrapped(
        np.asarray(fringes.phases(images), np.float64)
        - 4 * np.pi * np.asarray(h, np.float64)[..., None] / np.array(WAVES)
    )
    assert np.abs(gap).max() < tolerance
    # neither background nor modulation is needed
    other = fringes.phases(0.4 * images + 11)
    assert np.abs(wrapped(np.asarray(other - fringes.phases(images), np.float64))).max() < tolerance


def test_ranges_of_beats():
    ranges = [
        fringes.reach(WAVES, n)
        for n in ((1, -1, 0, 0), (0, 1, -1, 0), (0, 0, 1, -1), (1, -2, 1, 0), (1, 0, 0, 0))
    ]
    np.testing.assert_allclose(ranges, [27.5, 30.25, 33.275, 302.5, 2.5])
    chain = [fringes.reach(WAVES, n) for n in fringes.beats(WAVES)]
    assert (
        chain == sorted(chain, reverse=True)
        and chain[0] == pytest.approx(33.275)
        and chain[-1] > 6.655 / 2
    )
    with pytest.raises(UserError, match="has 2 entries, but there are 4 wavelengths"):
        fringes.equivalent(WAVES, (1, -1))
    with pytest.raises(UserError, match="cancel"):
        fringes.equivalent((5.0, 10.0), (1, -2))


def test_unwrapping_is_exact_without_noise_and_to_quantisation_with_eight_bits():
    h = fringes.published(points(96))
    assert h.min() > CENTRE - 33.275 / 2 and h.max() < CENTRE + 33.275 / 2
    assert h[(points(96) == -1).all(-1)][0] == pytest.approx(
        -7.5 + 10 * np.hypot(0.5, 1.4) + 15 * np.exp(-(1.44 + 0.49) / 0.2)
    )
    np.testing.assert_allclose(
        fringes.unwrap(fringes.render(h, WAVES, BACKGROUND, MODULATION), WAVES, CENTRE),
        h,
        atol=1e-9,
    )
    camera = fringes.expose(np.random.default_rng(0), h, WAVES, BACKGROUND, MODULATION, 0.0, 8)
    np.testing.assert_array_equal(camera, np.round(camera))
    # half a grey level in each of the four images
    worst = 0.5 * np.sqrt(2) / MODULATION * 6.655 / (4 * np.pi)
    assert 1e-5 < np.abs(fringes.unwrap(camera, WAVES, CENTRE) - h).max() < worst
    under_jit = jax.jit(lambda i: fringes.unwrap(i, WAVES, CENTRE))(
        jnp.asarray(camera, jnp.float32)
    )
    np.testing.assert_allclose(under_jit, h, atol=worst)


def test_heights_a_whole_beat_apart_look_alike_and_the_centre_decides():
    """27.5 um are 11 fringes of 5 um and 10 of 5.5 um: two wavelengths cannot tell, four can, until
    3327.5 um.
    """
    h = np.random.default_rng(0).uniform(CENTRE - 13, CENTRE + 13, (6, 7))
    two, images = WAVES[:2], fringes.render(h, WAVES, BACKGROUND, MODULATION)
    moved = fringes.render(h + 27.5, two, BACKGROUND, MODULATION)
    np.testing.assert_allclose(moved, images[..., :8], atol=1e-9)
    np.testing.assert_allclose(fringes.unwrap(moved, two, CENTRE), h, atol=1e-9)
    np.testing.assert_allclose(fringes.unwrap(moved, two, CENTRE + 27.5), h + 27.5, atol=1e-9)
    assert np.abs(fringes.render(h + 27.5, WAVES, BACKGROUND, MODULATION) - images).max() > 10
    np.testing.assert_allclose(
        fringes.render(h + 3327.5, WAVES, BACKGROUND, MODULATION), images, atol=1e-6
    )
    outside = fringes.unwrap(
        fringes.render(h + 33.275, WAVES, BACKGROUND, MODULATION), WAVES, CENTRE
    )
    # out of range: wrong by the whole range, give or take a fringe
    assert np.abs(outside - (h + 33.275)).min() > 30
    long = ((1, -2, 1, 0), *fringes.beats(WAVES))
    lifted = fringes.render(h + 100, WAVES, BACKGROUND, MODULATION)
    np.testing.assert_allclose(fringes.unwrap(lifted, WAVES, CENTRE, long), h + 100, atol=1e-9)


def test_noise_reaches_the_height_as_it_should():
    """sigma_h = sigma / (sqrt(2) b) / (4 pi) / sqrt(sum 1 / lambda^2): 0.016 um for 10
    grey levels.
    """
    h = fringes.published(points(96))
    found = fringes.unwrap(
        fringes.expose(np.random.default_rng(1), h, WAVES, BACKGROUND, MODULATION, 10.0, 0),
        WAVES,
        CENTRE,
    )
    expected = 10 / np.sqrt(2) / MODULATION / (4 * np.pi) / np.sqrt(np.sum(1 / np.square(WAVES)))
    assert np.std(found - h) == pytest.approx(expected, rel=0.03) and expected == pytest.approx(
        0.016, rel=0.01
    )
    plane = 3 * points(64)[..., 0] - points(64)[..., 1]
    np.testing.assert_allclose(fringes.smoothed(plane), plane, atol=1e-12)
    noise = np.random.default_rng(2).normal(size=(64, 64))
    np.testing.assert_allclose(jax.jit(fringes.smoothed)(noise), fringes.smoothed(noise), atol=1e-6)
    assert fringes.smoothed(noise)[2:-2, 2:-2].std() == pytest.approx(70 / 256, rel=0.05)


def test_the_stencil_is_exact_for_quadratics():
    x, y = np.meshgrid(np.arange(7.0), np.arange(5.0))
    np.testing.assert_allclose(
        fringes.stencil(3 * x**2 - 0.5 * y**2 + x * y - 2 * x + 1), np.full((3, 5), 5.0), atol=1e-12
    )


def test_compared_phases_are_the_images_loss_where_there_is_no_noise():
    rng = np.random.default_rng(0)
    h, other = rng.uniform(-3, 27, (2, 50))
    images = fringes.render(h, WAVES, BACKGROUND, MODULATION)

    def gap(height, match):
        return (
            fringes.modelled(height, WAVES, match, BACKGROUND, MODULATION)
            - fringes.compared(images, WAVES, match, MODULATION)
        ) ** 2

    ones = tuple(map(tuple, np.eye(4, dtype=int).tolist()))
    for match in ((), ones, interferometry.LONG, interferometry.SHORT):
        assert gap(h, match).max() < 1e-12
    expected = np.mean((fringes.render(other, WAVES, BACKGROUND, MODULATION) - images) ** 2, -1)
    np.testing.assert_allclose(gap(other, ()).sum(-1), expected)
    np.testing.assert_allclose(gap(other, ones).sum(-1), expected)
    # one valley as wide as the range; the images' has many
    steps = np.linspace(0, 27.5 / 2, 50)
    far = np.array([gap(h + s, ((1, -1, 0, 0),)).sum() for s in steps])
    assert (np.diff(far) > 0).all() and (np.diff([gap(h + s, ()).sum() for s in steps]) < 0).any()


def test_random_surfaces_stay_within_their_bounds():
    for seed in range(20):
        h = fringes.smooth(np.random.default_rng(seed), points(32), -3.0, 25.0)
        assert -3 <= h.min() < h.max() <= 25 and np.ptp(h) > 0.39 * 28


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
    (
        chosen.phases,
        chosen.total_steps,
        chosen.log_every,
        chosen.evaluate.every,
        chosen.checkpoint.every,
    ) = (), 12, 1, 4, 4
    chosen.optimizer.schedule.warmup_steps, chosen.preflight.run, chosen.evaluate.figures = (
        0,
        False,
        False,
    )
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
    h = fringes.published(points(24))
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
    asked = lambda run, step: (
        "asked to" if run.state is not None and int(run.state.step) == stop_at else real(run, step)
    )
    monkeypatch.setattr(loop, "out_of_time", asked)
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
