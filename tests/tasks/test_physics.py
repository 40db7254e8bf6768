"""Physics-informed training: terms by hand, points of (seed, step), resume, a solved problem."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol import main, pdes
from jaxvol.config import base, components, experiments, validate
from jaxvol.data import collocation
from jaxvol.evaluation import loading, pictures
from jaxvol.training import loop
from jaxvol.types import Fixed, UserError
from tests.training.test_kills import checksums

pinn = experiments.load("pinn")


def config(problem=None, **overrides):
    chosen = pinn.get_config("")
    chosen.phases, chosen.precision = (), "f32"
    chosen.data.problem = pdes.fields("diffusion") if problem is None else problem
    chosen.model.widths = (6, 6)
    chosen.total_steps, chosen.log_every = 12, 1
    chosen.evaluate.every = chosen.checkpoint.every = 4
    chosen.data.points = {"interior": 24, "boundary": 5, "initial": 7, "data": 6}
    chosen.evaluate.figures = False
    chosen.update_from_flattened_dict({k.replace("__", "."): v for k, v in overrides.items()})
    validate.validate(chosen)
    return chosen.lock()


def parts(chosen):
    dataset = components.dataset(chosen)
    learned = components.task(chosen, dataset.spec)
    batch = {k: jnp.asarray(v) for k, v in dataset.batch(0, slice(0, chosen.batch_size)).items()}
    params, extra = learned.init(jax.random.key(0), batch)
    return dataset, learned, batch, params, extra


def loss_of(learned, params, extra, batch, at=0):
    return jax.jit(learned.loss)(
        params,
        Fixed(jnp.int32(at), jnp.int32(at), {"stats": {}, **extra}, None),
        batch,
        jax.random.key(1),
    )


def test_terms_are_the_mean_squares_of_the_equation_and_its_conditions():
    chosen = config(
        task__weights__pde=0.01, task__weights__initial=1.0, task__weights__boundary=1.0
    )
    dataset, learned, batch, params, extra = parts(chosen)
    terms, _ = loss_of(learned, params, extra, batch)
    model = components.model(chosen, dataset.spec)
    u = lambda x: model.apply({"params": params["net"]}, x[None])[0, 0]
    x = batch["points"][0]
    u_t, u_xx = jax.jit(
        lambda x: (jax.vmap(jax.grad(u))(x)[:, 1], jax.vmap(jax.hessian(u))(x)[:, 0, 0])
    )(x)
    assert float(terms["net"]["pde"]) == pytest.approx(
        0.01 * float(jnp.mean((u_t - 0.1 * u_xx) ** 2)), rel=1e-4
    )
    start = batch["initial"][0]
    np.testing.assert_allclose(start[:, 1], 0)
    expected = jnp.mean((jax.vmap(u)(start) - jnp.sin(jnp.pi * start[:, 0])) ** 2)
    assert float(terms["net"]["initial"]) == pytest.approx(float(expected), rel=1e-4)
    ends = batch["boundary"][0]
    assert sorted(np.unique(ends[:, 0])) == [-6, 6] and ends.shape == (10, 2)
    assert float(terms["net"]["boundary"]) == pytest.approx(
        float(jnp.mean(jax.vmap(u)(ends) ** 2)), rel=1e-3
    )


def test_hard_constraints_leave_the_equation_alone_and_keep_the_conditions():
    _, learned, batch, params, extra = parts(config(task__constraints="hard"))
    terms, _ = loss_of(learned, params, extra, batch)
    assert set(terms["net"]) == {"pde"}
    grid = next(components.dataset(config()).batches("val", 1, slice(0, 1), 0))
    u = np.asarray(learned.predict(params, extra, {k: jnp.asarray(v) for k, v in grid.items()}))[
        0, 0
    ]
    np.testing.assert_allclose(u[:, 0], grid["target"][0, 0, :, 0], atol=1e-5)
    np.testing.assert_allclose(u[[0, -1]], 0, atol=1e-5)
    with pytest.raises(UserError, match="has no hard constraints"):
        parts(config(pdes.fields("helmholtz"), task__constraints="hard"))


def test_points_are_functions_of_seed_and_step():
    chosen = config(data__resample=3, batch_size=2)
    a, b = components.dataset(chosen), components.dataset(chosen)
    assert all(
        np.array_equal(x, y)
        for x, y in zip(a.batch(7, slice(0, 2)).values(), b.batch(8, slice(0, 2)).values())
    )
    assert not np.array_equal(a.batch(7, slice(0, 2))["points"], a.batch(9, slice(0, 2))["points"])
    np.testing.assert_array_equal(
        a.batch(7, slice(0, 2))["points"][1:], a.batch(7, slice(1, 2))["points"]
    )
    other = components.dataset(config(data__resample=3, batch_size=2, seed=1))
    assert (
        not np.array_equal(a.batch(7, slice(0, 2))["points"], other.batch(7, slice(0, 2))["points"])
        and a.hash != other.hash
    )
    fixed = components.dataset(config())
    np.testing.assert_array_equal(
        fixed.batch(0, slice(0, 1))["points"], fixed.batch(999, slice(0, 1))["points"]
    )
    assert not np.isin(
        next(fixed.batches("test", 1, slice(0, 1), 0))["points"],
        fixed.batch(0, slice(0, 1))["points"],
    ).all()


@pytest.mark.parametrize("sampler", collocation.SAMPLERS)
def test_samplers_fill_the_box_as_they_should(sampler):
    low, high = np.array([-6.0, 0.0]), np.array([6.0, 1.0])
    x = collocation.sample(np.random.default_rng(0), 64, low, high, sampler)
    assert x.shape == (64, 2) and (x >= low).all() and (x <= high).all()
    unit = (x - low) / (high - low)
    strata = [len(np.unique(np.floor(unit[:, i] * 64))) for i in range(2)]
    cells = len(np.unique(np.minimum(np.floor(unit * 8), 7) @ [1, 8]))
    assert (
        strata == [64, 64]
        if sampler in ("latin", "sobol")
        else cells == 64
        if sampler == "grid"
        else min(strata) < 60
    )
    assert cells == 64 if sampler == "sobol" else True


def test_measurements_are_noisy_and_taken_once():
    inverse = pdes.fields("reaction_diffusion")
    inverse.inverse, inverse.noise = True, 0.1
    dataset = components.dataset(config(inverse, data__resample=1, data__points__data=400))
    first, later = dataset.batch(0, slice(0, 1)), dataset.batch(5, slice(0, 1))
    np.testing.assert_array_equal(first["data_target"], later["data_target"])
    assert not np.array_equal(first["points"], later["points"])
    error = first["data_target"][0] - pdes.make(inverse).solution(
        first["data"][0].astype(float), np
    )
    assert error.std() == pytest.approx(0.1 * first["data_target"].std(), rel=0.15)


STAGES = {
    "rar_loss_ratio_broyden": {
        "task__refine__name": "rar",
        "task__refine__every": 3,
        "task__balance__name": "loss_ratio",
    },
    "rad_relobralo_resampled": {
        "task__refine__name": "rad",
        "task__refine__every": 2,
        "task__balance__name": "relobralo",
        "data__resample": 2,
    },
    "rad_broyden": {"task__refine__name": "rad", "task__refine__every": 2},
}


LONG = ("broyden", "resampled")
CASES = [pytest.param(s, marks=pytest.mark.slow if s.endswith(LONG) else ()) for s in STAGES]


@pytest.mark.parametrize("stage", CASES)
def test_resume_is_bitwise(stage, tmp_path, monkeypatch):
    """Stopped in between and started again: the bits of the undisturbed run, added points and
    weights included.
    """
    chosen = config(
        batch_size=8,
        evaluate__batch_size=8,
        preflight__run=False,
        model__widths=(4,),
        model__degree=3,
        **STAGES[stage],
    )
    if stage.endswith("broyden"):
        with chosen.unlocked():
            pinn.two_phases(chosen, 5, 4)
            chosen.evaluate.every = chosen.checkpoint.every = 3
            chosen.log_every = 1
    assert main.do_train(chosen, tmp_path / "straight") == 0
    # in the middle of the last phase
    stop_at, real = 7 if stage.endswith("broyden") else 4, loop.out_of_time
    monkeypatch.setattr(
        loop,
        "out_of_time",
        lambda run, step: (
            "asked to"
            if run.state is not None and int(run.state.step) == stop_at
            else real(run, step)
        ),
    )
    assert main.do_train(chosen, tmp_path / "stopped") == main.UNFINISHED
    monkeypatch.setattr(loop, "out_of_time", real)
    assert main.do_train(chosen, tmp_path / "stopped") == 0
    assert checksums(tmp_path / "stopped") == checksums(tmp_path / "straight")
    assert (tmp_path / "stopped/metrics.csv").read_bytes() == (
        tmp_path / "straight/metrics.csv"
    ).read_bytes()


def test_a_run_from_before_the_kind_coordinates_is_read_as_one_of_coordinates(
    tmp_path, monkeypatch
):
    """It was saved as a scalar field; prediction and pictures are those of an equation, and nothing
    turns its coordinates.
    """
    chosen = config(
        preflight__run=False,
        total_steps=2,
        batch_size=8,
        evaluate__batch_size=8,
        model__widths=(4,),
        model__degree=3,
    )
    now = collocation.specify

    def before(problem):
        spec = now(problem)
        return dataclasses.replace(
            spec, fields={n: dataclasses.replace(f, kind="scalar") for n, f in spec.fields.items()}
        )

    monkeypatch.setattr(collocation, "specify", before)
    assert main.do_train(chosen, tmp_path) == 0
    monkeypatch.undo()
    predict, _, spec = loading.load(tmp_path, "final")
    assert {name: field.kind for name, field in spec.fields.items()} == {
        "input": "coordinates",
        "target": "scalar",
    }
    x = pdes.make(chosen.data.problem).mesh
    u = predict(x[None, None])[0]
    assert u.shape == (1, *x.shape[:-1], 1)
    drawn = pictures.slices(spec, {"input": x[None], "target": u, "prediction": u}, "a")
    assert [a.get_xlabel() for a in drawn.axes if a.images] == ["t"] * 3
    with pytest.raises(UserError, match="holds coordinates"):
        loading.load(tmp_path, "final", transforms="flips")


@pytest.mark.slow
def test_an_inverse_problem_finds_its_coefficient_and_a_forward_one_its_solution(tmp_path):
    """Fisher-KPP with an unknown rate, which starts at half its value: Adam and Broyden, less than
    a minute on one core.  (The rate's error was 0.08 after
    150 steps of L-BFGS, the method then, when the bound was set.)"""
    inverse = pdes.fields("reaction_diffusion")
    inverse.inverse = True
    chosen = config(
        inverse,
        data__points__interior=64,
        data__points__initial=16,
        data__points__boundary=8,
        data__points__data=32,
        model__widths=(12, 12),
        batch_size=8,
        evaluate__batch_size=8,
        preflight__run=False,
    )
    with chosen.unlocked():
        pinn.two_phases(chosen, 300, 120)
        chosen.optimizer.learning_rate = 1e-2
    assert main.do_train(chosen, tmp_path) == 0
    written = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert written["model"]["relative_l2"] < 0.02 and written["model"]["rate_error"] < 0.2, written[
        "model"
    ]
    assert written["baselines"]["zero"]["relative_l2"] == pytest.approx(1)


def test_wrong_configs_are_explained():
    with pytest.raises(UserError) as error:
        config(
            task__laplacian="fast",
            task__balance__name="magic",
            data__sampler="sobl",
            micro_batches=1,
            task__refine__name="rar",
            task__refine__every=0,
            model__form="relu",
        )
    for text in (
        "task.laplacian is 'fast'",
        "balance.name is 'magic'",
        "sampler is 'sobl'",
        "refine has every=0",
        "model.form is 'relu'",
    ):
        assert text in str(error.value)
    with pytest.raises(UserError, match="data.name='collocation'"):
        wrong = pinn.get_config("")
        wrong.data = base.data("cosmology")
        validate.validate(wrong)
