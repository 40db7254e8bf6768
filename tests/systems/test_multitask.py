"""A task that is neither volume-to-volume nor physics: pre-flight, training, resume, evaluation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol import main
from jaxvol.training import checkpoint, gradients, lookup
from jaxvol.types import Fixed
from tests.systems import multitask


def run(folder, *arguments):
    arguments = [f"--config={multitask.__file__}", f"--workdir={folder}", *arguments]
    return main.cli(["jaxvol", *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multitask") / "run"
    assert run(folder) == 0
    return folder


def test_checks_that_need_what_it_has_not_are_skipped_with_the_reason(trained):
    report = json.loads((trained / "preflight" / "report.json").read_text())
    status = {check["name"]: check["status"] for check in report["checks"]}
    assert report["verdict"] in ("PASS", "WARN"), report["checks"]
    skipped = {name for name, value in status.items() if value == "SKIP"}
    assert {"data", "structure", "tiling", "prediction", "physics", "adversarial"} <= skipped
    reasons = {check["name"]: check["reason"] for check in report["checks"]}
    assert reasons["data"] == "it needs volumes, paired, which this task does not have"
    assert {"state", "gradients", "environment"} <= set(status) - skipped


def test_it_learns_and_is_scored(trained):
    scored = json.loads((trained / "evaluation" / "metrics.json").read_text())
    assert np.isfinite(scored["model"]["loss"])
    rows = (trained / "metrics.csv").read_text()
    assert "train/fit/age" in rows and "train/encoder/lr" in rows and "train/age/grad_norm" in rows
    losses = [float(r.split(",")[2]) for r in rows.splitlines() if ",train/fit/loss," in r]
    assert losses[-1] < losses[0]


def test_the_teacher_is_an_average_of_its_own_and_the_queue_is_kept(trained):
    store = checkpoint.open_store(trained, read_only=True)
    _, meta = lookup.resolve(store, "final")
    names = set(meta["checksums"])
    assert "['averages']['teacher']['params']['encoder']['w']" in names
    assert "['extra']['queue']" in names
    store.manager.close()


def test_stopped_and_restarted_it_ends_with_the_same_bits(trained, tmp_path):
    assert run(tmp_path / "run", "--config.max_hours=1e-9", "--config.preflight.run=False") == 75
    assert run(tmp_path / "run", "--config.preflight.run=False") == 0
    same = (tmp_path / "run" / "metrics.csv").read_bytes()
    assert same == (trained / "metrics.csv").read_bytes()


def test_micro_batches_fill_the_queue_one_after_another():
    task, data = multitask.task(), multitask.make(multitask.get_config())
    batch = {k: jnp.asarray(v) for k, v in data.batch(0, slice(0, 8)).items()}
    params, extra = task.init(jax.random.key(0), batch)
    extra = {"stats": {}, **extra, "monitor": {}}
    pair = {"teacher": {"params": params, "stats": {}}}
    fixed = Fixed(jnp.int32(0), jnp.int32(0), extra, pair)
    result = gradients.accumulate(task, params, fixed, batch, jax.random.key(0), 4)
    # four parts of two examples each, strided: the queue of four holds those of the last two
    last = jnp.concatenate([batch["scan"][2::4], batch["scan"][3::4]])
    np.testing.assert_allclose(result.extra["queue"], multitask.encode(params, last), rtol=1e-6)
