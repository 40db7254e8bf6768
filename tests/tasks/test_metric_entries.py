"""Metrics and losses as a config names them, through the tasks and the rules; and which is best."""

import json
import sys

import jax
import numpy as np
import pytest

from jaxvol import main
from jaxvol.config import base, components, identity, validate
from jaxvol.evaluation import tables
from jaxvol.scores import columns, metrics
from jaxvol.tasks import adversarial, fringes, physics
from jaxvol.training import validation
from jaxvol.types import Fixed, UserError
from tests import tiny

OWN = '''
import jax.numpy as jnp

def closeness(pred, target, mask=None, scale=1.0):
    """1 / (1 + mean square error / scale)."""
    return 1 / (1 + jnp.mean(jnp.square(pred - target), axis=(1, 2, 3, 4)) / scale)

closeness.direction = "higher"

def silent(pred, target, mask=None):
    return jnp.mean(jnp.abs(pred - target), axis=(1, 2, 3, 4))

feature_matching = silent
'''


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """The user's own module, mine_of_the_tasks.py."""
    (tmp_path / "mine_of_the_tasks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine_of_the_tasks", raising=False)


def config(**overrides):
    chosen = tiny.get_config()
    chosen.batch_size = chosen.evaluate.batch_size = 8
    chosen.update_from_flattened_dict({k.replace("__", "."): v for k, v in overrides.items()})
    return chosen


def test_arguments_and_own_functions_go_through_the_task(tmp_path):
    chosen = config(
        task__metrics=(
            "rmse",
            ("psnr", {"data_range": 800.0}),
            ("mine_of_the_tasks.closeness", {"scale": 4.0}),
        ),
        task__losses=(("mse", 1.0), ("mine_of_the_tasks.silent", 0.5), ("h1", 0.1, {})),
        checkpoint__best_metric="closeness",
        data__cache_dir=str(tmp_path),
    )
    assert validate.validate(chosen) is not None
    data = components.dataset(chosen)
    task = components.task(chosen, data.spec)
    batch = next(data.batches("val", 2, slice(0, 2), 0))
    params, extra = task.init(jax.random.key(0), batch)
    rows = task.evaluate(params, extra, batch, jax.random.key(0))
    mse = np.square(np.asarray(rows["rmse"]))
    np.testing.assert_allclose(rows["closeness"], 1 / (1 + mse / 4.0), rtol=1e-5)
    np.testing.assert_allclose(rows["psnr"], 10 * np.log10(800.0**2 / mse), rtol=1e-5)
    assert {"loss_mse", "loss_silent", "loss_h1"} <= set(rows)
    np.testing.assert_allclose(
        rows["loss"], rows["loss_mse"] + rows["loss_silent"] + rows["loss_h1"], rtol=1e-6
    )
    terms, _ = task.loss(params, Fixed(0, 0, extra, {}), batch, jax.random.key(1))
    assert set(terms["net"]) == {"mse", "silent", "h1"}
    for baseline, *weights in components.baselines(chosen, data.spec, [batch]).values():
        assert "closeness" in baseline.evaluate(*weights, batch, jax.random.key(0))


@pytest.mark.parametrize(
    "overrides, text",
    [
        ({"task__metrics": ("vrmse", "vrmsee")}, "config.task.metrics has 'vrmsee'; expected one"),
        (
            {"task__metrics": ("vrmse", ("psnr", {"range": 1.0}))},
            r"takes psnr\(pred.*data_range.*unexpected keyword argument 'range'",
        ),
        ({"task__metrics": ("vrmse", "nolab.f")}, "'nolab.f', but there is no module 'nolab'"),
        ({"task__losses": (("mse", 1.0, {"power": 3}),)}, r"takes mse\(pred.*'power'"),
        ({"task__losses": (("mse", 1.0), ("mse", 2.0))}, "task.losses has mse more than once"),
        ({"checkpoint__best_metric": "rmse"}, "neither in task.metrics nor 'loss'"),
        (
            {
                "task__metrics": ("vrmse", "mine_of_the_tasks.silent"),
                "checkpoint__best_metric": "silent",
            },
            'write silent.direction = "higher" or silent.direction = "lower"',
        ),
    ],
)
def test_a_wrong_config_is_refused_with_one_sentence(overrides, text):
    with pytest.raises(UserError, match=text) as error:
        validate.validate(config(**overrides))
    assert str(error.value).count("\n  - ") == 1


def test_physics_and_fringes_have_the_same_rules():
    for room, module in (("physics", physics), ("fringes", fringes)):
        chosen = base.common()
        chosen.task, chosen.data = base.task(room), base.data("collocation")
        chosen.task.metrics = ("rmse", "mine_of_the_tasks.silent")
        chosen.checkpoint.best_metric = "silent"
        assert any("silent.direction" in rule for rule in module.rules(chosen))
        chosen.task.metrics = ("rmsee",)
        assert any("has 'rmsee'; expected one of" in rule for rule in module.rules(chosen))


def test_the_discriminator_s_terms_cannot_be_taken_by_a_loss():
    chosen = config()
    chosen.task = base.task("adversarial")
    assert adversarial.rules(chosen) == []
    chosen.task.losses = (("l1", 1.0), ("mine_of_the_tasks.feature_matching", 1.0))
    (clash,) = adversarial.rules(chosen)
    assert "'feature_matching' and weights.feature_matching is not 0: two terms of one" in clash


def test_a_table_marks_the_best_of_the_user_s_own_metric():
    lines = {"FNO": {"closeness": 0.5}, "mean": {"closeness": 0.25}}
    assert tables.winners(lines, "closeness", {}) == set()
    chosen = ("vrmse", ("mine_of_the_tasks.closeness", {"scale": 2.0}))
    better = columns.directions(["closeness"], chosen)
    assert tables.winners(lines, "closeness", better) == {"FNO"}
    assert "closeness ↑" in tables.table(lines, directions=better)


def test_best_follows_the_direction_of_its_metric(monkeypatch):
    closeness = ("mine_of_the_tasks.closeness",)
    for chosen, better in (
        (config(checkpoint__best_metric="vrmse"), 0.5),
        (config(checkpoint__best_metric="loss"), 0.5),
        (config(checkpoint__best_metric="pearson"), 2.0),
        (config(task__metrics=closeness, checkpoint__best_metric="closeness"), 2.0),
    ):
        assert validation.improves(chosen, better, 1.0)
        assert not validation.improves(chosen, 2.5 - better, 1.0)
    monkeypatch.setattr(metrics.vrmse, "direction", "higher")
    assert validation.improves(config(), 2.0, 1.0)


def test_a_run_of_a_version_with_best_mode_goes_on_and_a_new_config_may_not_have_it(
    tmp_path, monkeypatch
):
    new = config(data__cache_dir=str(tmp_path / "cache"))
    old = config(data__cache_dir=str(tmp_path / "cache"))
    old.checkpoint.best_mode = "min"
    assert identity.fingerprint(old.lock()) == identity.fingerprint(new)
    assert identity.differences(old, new) == []
    with pytest.raises(UserError, match="checkpoint.best_mode no longer exists.*Delete it"):
        validate.validate(old)
    with monkeypatch.context() as version:
        version.setattr(identity, "RETIRED", {})  # as it was, when the field existed
        assert main.do_train(old, tmp_path / "run") == 0
    stored = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert stored["checkpoint"]["best_mode"] == "min"
    new.total_steps = 8
    assert main.do_train(new.lock(), tmp_path / "run") == 0
    assert json.loads((tmp_path / "run/status.json").read_text())["step"] == 8
    logged = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert len([row for row in logged if ",train/net/mse," in row]) == 8  # it went on
