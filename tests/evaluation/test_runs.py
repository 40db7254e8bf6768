"""What is done with a run on disk: scored, averaged over transforms, loaded as a function."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

from jaxvol import main
from jaxvol.evaluation import loading
from jaxvol.types import UserError
from tests import ROOT
from tests.convert.test_convert import ORIGINAL, call, random_tensors, settings


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tta")
    np.savez(folder / "fno.npz", **random_tensors())
    (folder / "fno.json").write_text(json.dumps(ORIGINAL))
    assert call(folder, "fno", folder / "fno.npz") == 0
    return folder


def test_evaluate_reports_gain_and_cost(imported, capsys):
    run = ["jaxvol", *settings(imported), f"--workdir={imported}/imported", "--mode=evaluate"]
    assert main.cli(run) == 0
    plain = json.loads((imported / "imported/evaluation/metrics.json").read_text())
    assert main.cli([*run, "--config.evaluate.tta=flips"]) == 0
    text = capsys.readouterr().out
    averaged = json.loads((imported / "imported/evaluation/metrics.json").read_text())
    assert "tta" not in plain and "mean of 8 (flips)" in text and "times as long" in text
    assert (
        averaged["tta"]["without"] == pytest.approx(plain["model"], rel=1e-5)
        and averaged["tta"]["views"] == 8
    )
    gain = averaged["tta"]["gain"]
    better = plain["model"]["vrmse"] - averaged["model"]["vrmse"]
    assert gain["vrmse"] == pytest.approx(better, abs=1e-6) and better > 0
    better = averaged["model"]["pearson"] - plain["model"]["pearson"]
    assert gain["pearson"] == pytest.approx(better, abs=1e-6)
    took = averaged["tta"]["seconds_per_example"]
    assert averaged["tta"]["time_ratio"] == pytest.approx(took["with"] / took["without"])
    assert averaged["baselines"] == plain["baselines"]


def test_predict_averages_tile_by_tile(imported):
    x = np.random.default_rng(5).normal(size=(12, 8, 8)).astype(np.float32)
    with h5py.File(imported / "in.h5", "w") as file:
        file["density"] = x
    assert (
        main.cli(
            [
                "jaxvol",
                *settings(imported),
                f"--workdir={imported}/imported",
                "--mode=predict",
                "--config.evaluate.tta=flips",
                f"--config.predict.input={imported}/in.h5",
                "--config.predict.key=density",
                "--config.predict.tile=(8,8,8)",
                "--config.predict.overlap=0.0",
            ]
        )
        == 0
    )
    written = next((imported / "imported/predictions").rglob("in.h5"))
    with h5py.File(written) as file:
        y = file["prediction"][:]
    predict, _, spec = loading.load(imported / "imported", transforms="flips")
    assert json.loads(written.with_name("in.h5.json").read_text())[
        "tta"
    ] == "flips" and spec.shape == (8, 8, 8)
    # tiles start at planes 0 and 6 of the ring of 12, so that 2 to 5 are the first one's alone
    np.testing.assert_allclose(y[2:6], predict(x[None, :8, ..., None])[0, 2:6, ..., 0], atol=1e-5)
    plain = loading.load(imported / "imported")[0](x[None, :8, ..., None])[0, 2:6, ..., 0]
    assert np.abs(y[2:6] - plain).max() > 0.1 * plain.std()


def test_scores_of_one_split_or_checkpoint_do_not_overwrite_those_of_another(imported):
    run = ["jaxvol", *settings(imported), f"--workdir={imported}/imported", "--mode=evaluate"]
    folder = imported / "imported" / "evaluation"
    assert main.cli(run) == 0  # the config's own split and checkpoint
    before = (folder / "metrics.json").read_bytes()
    assert main.cli([*run, "--config.evaluate.split=val"]) == 0
    assert main.cli([*run, "--config.evaluate.checkpoint=final"]) == 0
    scores = {
        name: json.loads((folder / name / "metrics.json").read_text())
        for name in (".", "val-best", "test-final")
    }
    assert (folder / "metrics.json").read_bytes() == before
    assert [(s["split"], s["checkpoint"]) for s in scores.values()] == [
        ("test", "best"),
        ("val", "best"),
        ("test", "final"),
    ]
    assert scores["."]["model"]["vrmse"] != scores["val-best"]["model"]["vrmse"]
    compared = [f"--config.compare.runs={imported}/imported", "--mode=compare"]
    compared += ["--config.evaluate.split=val", f"--workdir={imported}/val"]
    assert main.cli(["jaxvol", *settings(imported), *compared]) == 0
    table = json.loads((imported / "val/comparison/table.json").read_text())
    (model,) = table["models"].values()
    assert model["split"] == "val"
    assert model["metrics"]["vrmse"] == scores["val-best"]["model"]["vrmse"]


def test_a_loaded_model_says_what_is_wrong_with_its_input(imported):
    predict, _, spec = loading.load(imported / "imported")
    x = np.ones((2, 8, 8, 8, 1), np.float32)
    assert predict(x).shape == (2, 8, 8, 8, len(spec.fields["target"].channels))
    name = spec.fields["input"].channels[0]
    for wrong, shape in ((x[..., 0], "(2, 8, 8, 8)"), (x.repeat(3, -1), "(2, 8, 8, 8, 3)")):
        with pytest.raises(UserError) as caught:
            predict(wrong)
        assert str(caught.value) == (
            f"predict(x): found shape {shape}; the model takes 1 channel(s) ({name}) as "
            "[B,D,H,W,C]; rearrange the axes"
        )
    broken = x.copy()
    broken[1, 2, 3, 4, 0], broken[1, 2, 3, 5, 0] = np.nan, np.inf
    with pytest.raises(UserError) as caught:
        predict(broken)
    assert str(caught.value) == (
        "predict(x): found 2 values that are NaN or infinite, the first at [B, D, H, W, C] = "
        "(1, 2, 3, 4, 0); expected finite values: repair or fill them"
    )
    with pytest.raises(UserError, match="values of type complex64"):
        predict(x.astype(np.complex64))


def test_loading_prints_nothing(imported):
    """A process of its own: what a notebook shows, without the logging of the command line."""
    code = f"import jaxvol; jaxvol.load({str(imported / 'imported')!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
