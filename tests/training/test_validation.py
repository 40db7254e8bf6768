"""Validation while training: what is best, and what a metric that is not finite does."""

import dataclasses

import pytest

from jaxvol.training import validation
from jaxvol.types import UserError
from tests import toys
from tests.training.test_loop import run_toy


@pytest.mark.parametrize("cause", ["undefined", "diverged"])
def test_a_best_metric_that_is_never_finite_is_said_once_and_stops_nothing(tmp_path, caplog, cause):
    toy = toys.regression_task()
    loss = 0.5 if cause == "undefined" else float("nan")
    summarize = lambda rows: {"vrmse": float("nan"), "loss": loss}
    config = toys.config(early_stopping__patience=1, checkpoint__best_metric="vrmse")
    with caplog.at_level("WARNING"):
        why, run = run_toy(tmp_path, config, task=dataclasses.replace(toy, summarize=summarize))
    assert why == "finished" and run.saved == 12 and run.progress.best_step is None
    (text,) = (r.getMessage() for r in caplog.records if "NOT FINITE" in r.getMessage())
    assert "val vrmse IS NOT FINITE (nan) at step 0" in text and "What to do" in text
    assert ("constant or 0 everywhere" in text) == (cause == "undefined")


def test_a_best_metric_that_stops_being_finite_is_said_and_counts(tmp_path, caplog):
    toy, values = toys.regression_task(), iter([1.0, 0.5, float("nan"), float("nan")])
    task = dataclasses.replace(toy, summarize=lambda rows: {"vrmse": next(values)})
    config = toys.config(early_stopping__patience=2, checkpoint__best_metric="vrmse")
    with caplog.at_level("WARNING"):
        why, run = run_toy(tmp_path, config, task=task)
    assert why == "early_stopped" and run.progress.best_step == 4
    texts = [r.getMessage() for r in caplog.records if "NOT FINITE" in r.getMessage()]
    assert len(texts) == 2 and all("counts it as no improvement" in text for text in texts)


def test_a_nan_is_never_best_and_min_delta_counts():
    config = toys.config(early_stopping__min_delta=0.1)
    assert validation.improves(config, 1.0, None) and validation.improves(config, 0.8, 1.0)
    assert not validation.improves(config, 0.95, 1.0) and not validation.improves(
        config, float("nan"), None
    )
    assert validation.improves(toys.config(checkpoint__best_metric="pearson"), 2.0, 1.0)
    with pytest.raises(UserError, match="best_metric is 'depth', and nothing says whether more"):
        validation.improves(toys.config(checkpoint__best_metric="depth"), 2.0, 1.0)
