"""Every column says in which direction it is better; a metric says so where it is defined."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.scores import columns, entries, metrics

OWN = """
def hit_rate(pred, target, mask=None):
    return pred.mean((1, 2, 3, 4))

hit_rate.direction = "higher"

def silent(pred, target, mask=None):
    return pred.mean((1, 2, 3, 4))
"""
CHOSEN = ("vrmse", "own_scores.hit_rate", ("own_scores.silent", {}))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's own module, own_scores.py."""
    monkeypatch.delitem(sys.modules, "own_scores", raising=False)
    (tmp_path / "own_scores.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", entries.functions(metrics))
def test_a_better_prediction_is_better_in_the_stated_direction(name):
    """A prediction that misses by a tenth of the noise of another is closer by every metric."""
    rng = np.random.default_rng(3)
    target, noise = rng.normal(1.0, 1.0, (2, 4, 12, 12, 12, 1))
    near, far = (
        float(np.mean(entries.functions(metrics)[name](*map(jnp.asarray, (target + e, target)))))
        for e in (0.1 * noise, noise)
    )
    assert columns.direction(name) == np.sign(near - far)


def test_prefixes_and_suffixes_count_as_the_metric_and_numbers_of_examples_do_not():
    names = ("vrmse/gas", "cases/vrmse", "vrmse_mean", "cases/pearson_mean/left, kidney", "psnr")
    assert [columns.direction(name) for name in names] == [-1, -1, -1, 1, 1]
    assert [columns.direction(n) for n in ("loss", "loss_pde", "r_half", "transfer_error")] == [
        *(-1, -1, 1, -1)
    ]
    for name in ("vrmse_count", "fit", "rate_error", "maelstrom", "dice"):
        assert columns.direction(name) == 0, name


def test_a_new_metric_needs_nothing_but_itself(monkeypatch):
    def dice(pred, target, mask=None):
        return jnp.ones(len(pred))

    dice.direction, dice.headline = "higher", "Dice"
    monkeypatch.setattr(metrics, "dice", dice, raising=False)
    assert [columns.direction(n) for n in ("dice/liver", "dice_mean", "cases/dice")] == [1, 1, 1]
    assert columns.headline("dice") == "Dice" and columns.rank("dice") < columns.rank("loss")
    assert entries.wrong_metrics(("dice",)) == []


def test_columns_are_in_the_order_of_the_file_and_the_loss_is_last():
    names = ["loss", "r_half", "psnr", "hit_rate", "mae", "vrmse", "relative_l2", "loss_mse"]
    assert sorted(names, key=columns.rank) == [
        *("vrmse", "relative_l2", "mae", "psnr", "r_half", "hit_rate", "loss", "loss_mse")
    ]
    named = [name for name in entries.functions(metrics) if columns.headline(name)]
    assert named == ["vrmse", "relative_l2"] and columns.headline("loss") == ""


def test_the_user_s_own_metric_states_its_direction(own):
    assert columns.direction("hit_rate") == 0  # nothing leads to the function
    assert columns.direction("hit_rate", CHOSEN) == columns.direction("cases/hit_rate", CHOSEN) == 1
    assert columns.direction("silent", CHOSEN) == 0 and columns.direction("vrmse", CHOSEN) == -1


def test_best_needs_a_metric_whose_direction_is_known(own):
    for best in ("vrmse", "hit_rate", "loss"):
        assert columns.wrong_best(best, CHOSEN) == []
    (unknown,) = columns.wrong_best("silent", CHOSEN)
    assert 'write silent.direction = "higher" or silent.direction = "lower"' in unknown
    (absent,) = columns.wrong_best("rmse", CHOSEN)
    assert "'rmse', which is neither in task.metrics nor 'loss'" in absent
