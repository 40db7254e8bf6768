"""Entries of a config are the functions and arguments that they name; a wrong one is a sentence."""

import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.scores import entries, losses, metrics
from jaxvol.types import Field, Spec, UserError

SPEC = Spec(
    {"input": Field(("x",)), "target": Field(("y",))},
    (8, 8, 8),
    (0.5, 1.0, 2.0),
    periodic=(True, True, False),
)
OWN = '''
import jax.numpy as jnp

def hit_rate(pred, target, mask=None, within=1.0):
    """Share of the voxels that are closer than `within`."""
    return jnp.mean(jnp.abs(pred - target) < within, axis=(1, 2, 3, 4))

hit_rate.direction = "higher"

def sized(pred, target, mask=None, *, spacing):
    return jnp.full(pred.shape[0], spacing[2])

def odd(pred, target, mask=None):
    return jnp.zeros(pred.shape[0])

odd.direction = "up"

def too_few(pred):
    return pred
'''


@pytest.fixture
def mylab(tmp_path, monkeypatch):
    """The user's own module of metrics and losses, mylab_scores.py."""
    (tmp_path / "mylab_scores.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mylab_scores", raising=False)


def pair(shape=(2, 6, 5, 7, 1)):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)]


def test_a_config_names_the_public_functions_and_no_others():
    assert set(entries.functions(metrics)) == {
        *("vrmse", "relative_l2", "rmse", "mae", "mape", "pearson", "ssim", "psnr"),
        "pdf_distance",
    }
    assert set(entries.functions(losses)) == {
        *("mse", "l1", "huber", "log_cosh", "relative_l2", "h1", "spectral_amplitude"),
        *("correlation", "ccc"),
    }


def test_arguments_reach_the_function_and_the_user_s_own_is_a_column(mylab):
    pred, target = pair()
    chosen = (
        "vrmse",
        ("psnr", {"data_range": 800.0}),
        ("mylab_scores.hit_rate", {"within": 0.5}),
        "mylab_scores.sized",
    )
    assert entries.wrong_metrics(chosen) == []
    scores = entries.metric_functions(chosen, SPEC)
    assert list(scores) == ["vrmse", "psnr", "hit_rate", "sized"]
    np.testing.assert_array_equal(
        scores["psnr"](pred, target, None), metrics.psnr(pred, target, None, 800.0)
    )
    near = np.abs(np.asarray(pred) - np.asarray(target)) < 0.5
    np.testing.assert_allclose(scores["hit_rate"](pred, target, None), near.mean((1, 2, 3, 4)))
    np.testing.assert_array_equal(scores["sized"](pred, target, None), [2.0, 2.0])  # of the spec


def test_losses_take_arguments_and_what_the_spec_says():
    pred, target = pair((1, 8, 8, 8, 1))
    of_spec = entries.bound(losses, entries.loss(("h1", 0.1)), SPEC)(pred, target, None)
    np.testing.assert_array_equal(
        of_spec, losses.h1(pred, target, spacing=SPEC.spacing, periodic=SPEC.periodic)
    )
    entry = entries.loss(("h1", 0.1, {"spacing": (1.0, 1.0, 1.0)}))
    given = entries.bound(losses, entry, SPEC)(pred, target, None)
    assert entry.weight == 0.1 and given[0] != of_spec[0]
    np.testing.assert_array_equal(given, losses.h1(pred, target, periodic=SPEC.periodic))


@pytest.mark.parametrize(
    "entry, text",
    [
        ("vrmsee", "config.task.metrics has 'vrmsee'; expected one of mae.*vrmse, or the path"),
        ("metric_functions", "config.task.metrics has 'metric_functions'"),
        (("psnr", 800.0), "an entry is a name, or .name, .argument: value"),
        (("psnr", {"range": 8.0}), "takes psnr.pred.*data_range.*unexpected keyword.*'range'"),
        (("psnr", {"pred": 8.0}), "takes psnr.*multiple values for argument 'pred'"),
        (3, "an entry is a name"),
        ((), "an entry is a name"),
        ("mylab_scores.absent", "mylab_scores.py has no function absent"),
        ("nolab.scores", "there is no module 'nolab'"),
        ("mylab_scores.too_few", "takes too_few.pred.*too many positional"),
        ("mylab_scores.odd", "mylab_scores.odd.direction is 'up'; it has to be one of higher, low"),
    ],
)
def test_a_wrong_metric_is_one_sentence(entry, text, mylab):
    problems = entries.wrong_metrics(("vrmse", entry))
    assert len(problems) == 1
    assert re.search(text, problems[0]), problems[0]


@pytest.mark.parametrize(
    "entry, text",
    [
        ("mse", "an entry is .name, weight., or .name, weight, .argument"),
        (("mse",), "an entry is .name, weight"),
        (("mse", "1"), "an entry is .name, weight"),
        (("mes", 1.0), "config.task.losses has 'mes'; expected one of ccc, correlation, h1, hub"),
        (("h1", 1.0, {"spaces": 1}), "takes h1.*unexpected keyword.*'spaces'"),
    ],
)
def test_a_wrong_loss_is_one_sentence(entry, text):
    problems = entries.wrong_losses((("l1", 1.0), entry))
    assert len(problems) == 1
    assert re.search(text, problems[0]), problems[0]
    if text.startswith("config"):
        with pytest.raises(UserError, match=text):
            entries.bound(losses, entries.loss(entry), SPEC)


def test_two_entries_of_one_name_are_refused():
    for chosen in (("psnr", ("psnr", {"data_range": 2.0})), ("vrmse", "mylab.metrics.vrmse")):
        with pytest.raises(UserError, match="more than once; expected each name once"):
            entries.once(map(entries.metric, chosen), "metrics")
    assert len(entries.wrong_losses((("mse", 1.0), ("mse", 2.0)))) == 1
    with pytest.raises(UserError, match="a metric called loss"):
        entries.once([entries.metric("mylab.loss")], "metrics")
