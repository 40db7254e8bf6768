"""The check of physics-informed runs: a sound run passes, and each fault turns its metric red."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxvol import pdes
from jaxvol.diagnostics import context, engine
from jaxvol.diagnostics.checks import physics as check
from jaxvol.training import sharding
from tests.tasks.test_physics import config


def outcome_of(run, change=lambda ctx: ctx):
    """What the check says of a run (a config), after a change of its Context."""
    mesh = sharding.one_device()
    with jax.set_mesh(mesh):
        result = check.diagnose(change(context.make(run, mesh, Path("."), 8)))
    return engine.outcome("physics", check, result, engine.limits_of(run, "physics", check), 0.0)


@pytest.fixture(scope="module")
def sound():
    return outcome_of(config(preflight__steps=8))


def test_a_sound_run_has_no_red_metric(sound):
    assert sound.status in ("PASS", "WARN"), sound.reason
    assert (
        sound.result.metrics["solution_residual"] < 1e-12 and sound.result.metrics["uncovered"] == 0
    )
    assert len(sound.result.tables["terms at the start"]) == 3


def test_a_face_without_points_is_found():
    def cut(ctx):
        def batch(step):
            whole = ctx.batch(step)
            # the published example enforced one end only
            return {**whole, "boundary": whole["boundary"].at[..., 0].set(-6.0)}

        return dataclasses.replace(ctx, batch=batch)

    outcome = outcome_of(config(preflight__steps=4), cut)
    assert outcome.status == "FAIL" and outcome.result.metrics["uncovered"] == 1


def test_a_silent_condition_an_unscaled_domain_and_a_trivial_solution_are_found():
    outcome = outcome_of(
        config(preflight__steps=4, model__scaling="none", task__weights__initial=0.0)
    )
    assert (
        outcome.status == "FAIL"
        and outcome.result.metrics["silent"] == 1
        and outcome.result.metrics["reach"] > 5
    )
    # without its initial values nothing refuses u = 0
    assert outcome.result.metrics["zero_loss"] < 1e-8


def test_another_equation_than_the_solutions_is_found(monkeypatch):
    problem = pdes.make(pdes.fields("diffusion"))
    wrong = dataclasses.replace(
        problem, residual=lambda x, u, first, second, unknown: first[1] + 0.1 * second[0]
    )
    assert check.solution_residual(problem) < 1e-12 < 1e-2 < check.solution_residual(wrong)


def test_effective_rank():
    rng = np.random.default_rng(0)
    assert check.effective_rank(np.eye(6)) == pytest.approx(1)
    assert check.effective_rank(
        rng.normal(size=(3, 8, 1)) * rng.normal(size=(1, 1, 8))
    ) == pytest.approx(1 / 8)
