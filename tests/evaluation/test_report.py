"""Scoring drops padding and says what is broken; the report is what it claims."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxvol.evaluation import report, tables
from jaxvol.evaluation.evaluators import examples
from jaxvol.training import assemble
from jaxvol.types import Dataset, Task, UserError

CONFIG = ConfigDict({"seed": 3, "evaluate": {"batch_size": 4}})
MESH = Mesh(np.array(jax.devices()[:4]).reshape(4), ("data",))


def toy_task():
    """Rows: the value of the example, and a random number of its batch and row."""

    def rows(params, extra, batch, key):
        x = batch["input"].mean(axis=(1, 2, 3, 4))
        return {"vrmse": params["net"] * x, "noise": jax.random.uniform(key, x.shape)}

    return Task(
        init=None,
        loss=None,
        evaluate=rows,
        predict=None,
        summarize=lambda rows: {k: float(np.mean(v)) for k, v in rows.items()},
    )


def toy_dataset(count):
    """Example i is a volume of i + 1; padding is NaN, so that it cannot go unnoticed."""

    def batches(split, size, rows, limit):
        total = min(count, limit) if limit else count
        for first in range(0, total, size):
            index = np.arange(first, first + size)
            x = np.where(index < total, index + 1.0, np.nan).astype(np.float32)
            whole = {
                "input": np.broadcast_to(x[:, None, None, None, None], (size, 2, 2, 2, 1)),
                "_mask": (index < total).astype(np.float32),
                "_index": np.minimum(index, total - 1).astype(np.int32),
            }
            yield {k: v[rows] for k, v in whole.items()}

    return Dataset(
        spec=None,
        sizes={"test": count},
        batch=None,
        stream=None,
        batches=batches,
        names=None,
        hash="",
        skipped=None,
    )


def put(batch):
    return {
        k: jax.device_put(v, NamedSharding(MESH, PartitionSpec("data"))) for k, v in batch.items()
    }


def test_score_drops_padding_and_replicates_rows():
    task = toy_task()
    run = assemble.evaluation(task, MESH)
    params = {"net": jnp.float32(2.0)}
    metrics, rows = examples.score(
        run, task, toy_dataset(6), CONFIG, params, {}, put, slice(0, 4), "test"
    )
    np.testing.assert_array_equal(rows["vrmse"], 2.0 * np.arange(1, 7))
    np.testing.assert_array_equal(rows["_index"], np.arange(6))
    assert metrics["vrmse"] == 7.0 and set(metrics) == {"vrmse", "noise"}
    key = jax.random.fold_in(jax.random.key(3), 1)  # the second batch's own key
    np.testing.assert_array_equal(rows["noise"][4:], jax.random.uniform(key, (4,))[:2])
    assert (
        examples.score(run, task, toy_dataset(6), CONFIG, params, {}, put, slice(0, 4), "test", 3)[
            0
        ]["vrmse"]
        == 4.0
    )
    out = run(
        params, {}, put(next(toy_dataset(6).batches("test", 4, slice(0, 4), 0))), jax.random.key(0)
    )
    assert all(v.sharding.is_fully_replicated for v in out.values())


def test_empty_split_is_a_user_error():
    task = toy_task()
    with pytest.raises(UserError, match="'test' has no examples"):
        examples.score(
            assemble.evaluation(task, MESH),
            task,
            toy_dataset(0),
            CONFIG,
            {},
            {},
            put,
            slice(0, 4),
            "test",
        )


def scores():
    k = np.array([0.1, 0.2, 0.3])
    spectra = {
        "k": k,
        "T": np.ones(3),
        "r": np.ones(3),
        "modes": np.array([6, 18, 30]),
        "T_std": k,
        "r_std": k,
        "window": "none",
        "P_pred": np.stack([k, 2 * k], 1),
    }
    model, wiener, mean = np.array([0.6, 0.8]), np.array([0.9, 0.92]), np.array([1.0, 1.0])
    return {
        name: (
            {"rmse": 2 * v.mean(), "vrmse": v.mean(), "pearson": p, "spectra": spectra},
            {"vrmse": v, "_index": np.array([1, 0])},
        )
        for name, v, p in (("model", model, 0.7), ("mean", mean, np.nan), ("wiener", wiener, 0.4))
    }


def test_report_writes_what_design_promises(tmp_path):
    info = {
        "name": "fno",
        "split": "test",
        "weights": "ema",
        "checkpoint": "best",
        "config_hash": "abc",
    }
    text = report.report(tmp_path, scores(), ["box 0", "box, 1"], info)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert set(record) >= {"model", "baselines", "split", "weights", "checkpoint", "config_hash"}
    assert record["model"]["vrmse"] == pytest.approx(0.7)
    assert record["model"]["spectra"]["modes"] == [6, 18, 30]
    assert record["baselines"]["mean"]["pearson"] is None and record["non_finite"] == {
        "mean": ["pearson"]
    }
    # differences -0.3 and -0.12: mean -0.21, jackknife error = std / sqrt(2) = 0.09
    assert record["versus"]["wiener"]["vrmse"] == pytest.approx(
        {"difference": -0.21, "standard_error": 0.09, "examples": 2}
    )
    rows = list(csv.DictReader(open(tmp_path / "metrics.csv")))
    assert [tuple(r.values())[:3] for r in rows[:2]] == [
        ("model", "box, 1", "0.6"),
        ("model", "box 0", "0.8"),
    ]
    lines = list(csv.DictReader(open(tmp_path / "spectra.csv")))
    assert len(lines) == 9 and (float(lines[1]["k"]), float(lines[1]["P_pred_1"])) == (0.2, 0.4)
    assert set(lines[0]) == {
        "model",
        "k",
        "T",
        "r",
        "modes",
        "T_std",
        "r_std",
        "P_pred_0",
        "P_pred_1",
    }
    head = text.splitlines()[0].split()
    assert head[:2] == ["vrmse", "↓"] and "pearson ↑" in text.splitlines()[0]
    assert "0.7*" in text and "0.91*" not in text  # the best is marked
    assert "FNO VRMSE 0.7 is 23 % below the Wiener filter's 0.91" in text
    assert "NOT FINITE in mean: pearson" in text


def test_best_follows_the_direction():
    lines = {
        "a": {"vrmse": 1.0, "ssim": 0.2, "odd": 1.0},
        "b": {"vrmse": 2.0, "ssim": 0.3, "odd": 2.0},
        "c": {"vrmse": float("nan"), "ssim": float("inf")},
    }
    better = tables.known(["vrmse", "ssim", "odd"])
    best = [tables.winners(lines, c, better) for c in ("vrmse", "ssim", "odd")]
    assert best == [{"a"}, {"b"}, set()]
    names = ("pearson/gas", "mae_mean", "relative_l2", "psnr", "foo", "ssim_count")
    assert [tables.direction(n) for n in names] == [1, -1, -1, 1, 0, 0]
    values = tables.scalars(
        {
            "loss_mse": 1,
            "loss": 2.0,
            "rmse": 3,
            "rmse_count": 4,
            "vrmse": 5,
            "fit": {"input": "physical"},
        }
    )
    assert list(values) == ["vrmse", "rmse", "loss"]


def test_pairs_leave_out_examples_in_which_both_are_undefined(tmp_path):
    rows = {
        "model": {"vrmse": np.array([0.5, np.nan, 0.7])},
        "mean": {"vrmse": np.array([1.0, np.nan, 1.0])},
        "broken": {"vrmse": np.array([1.0, np.nan, np.nan])},
    }
    scores = {name: ({"vrmse": float(np.nanmean(r["vrmse"]))}, r) for name, r in rows.items()}
    report.report(tmp_path, scores, ["a", "b", "c"], {"name": "fno"})
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["directions"] == {"vrmse": "lower"}
    pair = stored["versus"]["mean"]["vrmse"]
    assert pair["examples"] == 2 and pair["difference"] == pytest.approx(-0.4)
    assert stored["versus"]["broken"]["vrmse"]["difference"] is None
