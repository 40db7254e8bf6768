"""The command line on a tiny run: train, evaluate, predict, compare, load, init_from, all from one
workdir.
"""

import json

import h5py
import jax
import numpy as np
import pytest

import jaxvol
from jaxvol import main
from jaxvol.config import validate
from jaxvol.types import UserError
from tests import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("main")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed in (0, 1):
            assert call(folder, f"--config.seed={seed}", f"--workdir={folder}/run{seed}") == 0
    return folder


def call(folder, *arguments):
    return main.cli(
        [
            "jaxvol",
            f"--config={tiny.__file__}",
            f"--config.data.cache_dir={folder}/cache",
            "--config.batch_size=8",
            "--config.evaluate.batch_size=8",
            *arguments,
        ]
    )


def box(folder, seed=3):
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(size=(8, 8, 8))).astype(np.float32)


def test_a_workdir_holds_what_the_design_says(trained):
    run = trained / "run0"
    found = json.loads((run / "config.json").read_text())
    assert (
        found["config"]["model"]["width"] == 4
        and found["versions"]["jax"] == jax.__version__
        and found["device"]["count"] == 8
    )
    rows = (run / "metrics.csv").read_text().splitlines()
    assert (
        rows[0] == "step,tag,value"
        and any(",train/net/clipped_norm," in r for r in rows)
        and any("6,val/vrmse," in r for r in rows)
    )
    perf = (run / "perf.csv").read_text()
    assert (
        "perf" not in "".join(rows)
        and perf.count("perf/steps_per_sec") == perf.count("perf/seconds") == 6
    )
    scores = json.loads((run / "evaluation/metrics.json").read_text())
    assert (
        set(scores["baselines"]) == {"mean", "identity", "wiener"}
        and scores["split"] == "test"
        and scores["weights"] == "ema"
    )
    status = json.loads((run / "status.json").read_text())
    assert (
        status["state"] == "finished"
        and status["step"] == 6
        and status["best"]["best_value"] is not None
    )


def test_evaluate_says_which_weights_and_averaged_differ_from_raw(trained):
    found = {}
    for kind in ("ema", "raw"):
        assert (
            call(
                trained,
                f"--workdir={trained}/run0",
                "--mode=evaluate",
                f"--config.evaluate.weights={kind}",
                "--config.evaluate.split=val",
                "--config.evaluate.checkpoint=final",
            )
            == 0
        )
        file = trained / "run0/evaluation/val-final/metrics.json"
        found[kind] = json.loads(file.read_text())
        assert (
            found[kind]["weights"] == kind
            and found[kind]["split"] == "val"
            and found[kind]["step"] == 6
        )
    assert found["ema"]["model"]["vrmse"] != found["raw"]["model"]["vrmse"]
    assert found["ema"]["baselines"] == found["raw"]["baselines"]
    logged = [
        r.split(",")
        for r in (trained / "run0/metrics.csv").read_text().splitlines()
        if r.startswith("6,val/vrmse,")
    ]
    # training logged the same number
    assert float(logged[0][2]) == pytest.approx(found["ema"]["model"]["vrmse"], rel=1e-5)


def test_predict_writes_what_load_predicts(trained):
    x = box(trained)
    with h5py.File(trained / "in.h5", "w") as file:
        file["density"] = x
        file["density"].attrs["box"] = 64.0
    assert (
        call(
            trained,
            f"--workdir={trained}/run0",
            "--mode=predict",
            f"--config.predict.input={trained}/in.h5",
            "--config.predict.key=density",
        )
        == 0
    )
    predict, config, spec = jaxvol.load(trained / "run0")
    assert config.model.width == 4 and spec.unit == "Mpc/h"
    written = next((trained / "run0/predictions").rglob("in.h5"))
    with h5py.File(written) as file:
        assert file["prediction"].attrs["box"] == 64.0 and file["prediction"].dtype == np.float32
        np.testing.assert_allclose(
            file["prediction"][:], predict(x[None, ..., None])[0, ..., 0], atol=1e-5
        )
    note = json.loads(written.with_name("in.h5.json").read_text())
    assert note["checkpoint"] == "best" and note["weights"] == "ema" and note["key"] == "density"


def test_compare_puts_seeds_together(trained, capsys):
    for run in ("run0", "run1"):
        assert call(trained, f"--workdir={trained}/{run}", "--mode=evaluate") == 0
    assert (
        call(
            trained,
            "--mode=compare",
            f"--config.compare.runs={trained}/run0,{trained}/run1",
            f"--workdir={trained}/both",
        )
        == 0
    )
    assert "±" in capsys.readouterr().out and (trained / "both/comparison/table.csv").exists()
    counted = json.loads((trained / "run0/evaluation/metrics.json").read_text())[
        "gflop_per_prediction"
    ]
    own, column = (
        (trained / "both/comparison/table.md").read_text().splitlines(),
        "GFLOP per prediction",
    )
    told = float(own[2].split("|")[own[0].split("|").index(f" {column} ")])
    assert told == pytest.approx(counted, rel=0.01) and 0 < counted < 0.1


def test_init_from_starts_at_the_other_runs_averaged_weights(trained):
    def first(run):
        return [
            float(r.split(",")[2])
            for r in (run / "metrics.csv").read_text().splitlines()
            if r.startswith("0,val/vrmse,")
        ][0]

    assert (
        call(
            trained,
            f"--workdir={trained}/tuned",
            f"--config.init_from={trained}/run0",
            "--config.init_checkpoint=final",
            "--config.seed=5",
            "--config.total_steps=2",
        )
        == 0
    )
    last = [
        float(r.split(",")[2])
        for r in (trained / "run0/metrics.csv").read_text().splitlines()
        if r.startswith("6,val/vrmse,")
    ][0]
    assert first(trained / "tuned") == pytest.approx(last, rel=1e-5) and first(
        trained / "tuned"
    ) != first(trained / "run1")


def test_the_same_command_on_a_finished_run_only_scores_again(trained, capsys):
    before = (trained / "run1/metrics.csv").read_bytes()
    assert call(trained, "--config.seed=1", f"--workdir={trained}/run1") == 0
    assert (
        trained / "run1/metrics.csv"
    ).read_bytes() == before and "FNO" in capsys.readouterr().out
    assert call(trained, "--config.seed=2", f"--workdir={trained}/run1") == 1
    assert "seed: 1 -> 2" in capsys.readouterr().err


def test_a_finished_run_can_be_prolonged_and_started_afresh(trained):
    run = trained / "longer"
    assert call(trained, f"--workdir={run}", "--config.total_steps=2") == 0
    assert call(trained, f"--workdir={run}", "--config.total_steps=4") == 0
    assert "\n4,val/vrmse," in (run / "metrics.csv").read_text()
    assert (
        call(
            trained,
            f"--workdir={run}",
            "--config.total_steps=2",
            "--config.model.width=6",
            "--config.resume=fresh",
        )
        == 0
    )
    assert (
        "\n4," not in (run / "metrics.csv").read_text()
        and len(list((run / "discarded").iterdir())) == 1
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--mode=evaluate", "--workdir=nowhere"), "nowhere has no folder checkpoints"),
        (("--mode=compare",), "needs --config.compare.runs"),
        (("--mode=predict", "--config.predict.input=none*.h5"), "none*.h5"),
        (("--mode=evaluate", "--config.evaluate.checkpoint=77"), "'77' is not in"),
        (("--config.batch_size=6", "--workdir=other"), "config.batch_size is 6"),
        (("--config.mesh.data=3", "--workdir=other"), "does not use 8 device"),
        (("--config.model.modes=(9,9,9)", "--workdir=other"), "modes is (9, 9, 9)"),
    ],
)
def test_errors_are_for_people(trained, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    workdir = (
        () if any(a.startswith("--workdir") for a in arguments) else (f"--workdir={trained}/run0",)
    )
    assert call(trained, *workdir, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_time_budget_saves_and_says_so(trained, capsys):
    assert call(trained, f"--workdir={trained}/budget", "--config.max_hours=1e-9") == 75
    assert "the budget of 1e-09 hours is spent" in capsys.readouterr().out
    assert json.loads((trained / "budget/status.json").read_text())["state"] == "saved"
    assert call(trained, f"--workdir={trained}/budget") == 0


def test_doubts_are_told_and_lbfgs_rules_are_checked():
    config = tiny.get_config()
    config.optimizer.learning_rate = 0.5
    assert any("high for adamw" in doubt for doubt in validate.validate(config))
    config.optimizer.name, config.precision = "lbfgs", "bf16"
    with pytest.raises(UserError, match="(?s)clip_norm.*bf16.*ema_decay"):
        validate.validate(config)
