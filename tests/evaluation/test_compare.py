"""Runs side by side: seeds are averaged, baselines kept, runs on other data refused."""

import csv
import json

import pytest
from ml_collections import ConfigDict

from jaxvol.evaluation import compare, scored_runs
from jaxvol.types import UserError

TEST = ConfigDict({"split": "test", "checkpoint": "best"})


def write_scores(
    folder, name="fno", seed=0, vrmse=0.7, wiener=0.9, split="test", data="d1", **more
):
    folder.mkdir(parents=True)
    spectra = {
        "k": [0.1, 0.2],
        "T": [1.0, vrmse],
        "r": [1.0, 0.5],
        "modes": [6, 18],
        "T_std": [0.1, 0.1],
        "r_std": [0.1, None],
        "window": "none",
    }
    scores = {
        "model": {"rmse": 2 * vrmse, "vrmse": vrmse, "ssim": 1 - vrmse, "spectra": spectra},
        "baselines": {
            "mean": {"vrmse": 1.0, "rmse": 2.0, "ssim": None},
            "wiener": {"vrmse": wiener, "rmse": 1.8, "ssim": 0.1, "fit": {"input": "physical"}},
        },
        "name": name,
        "split": split,
        "weights": "ema",
        "checkpoint": "best",
        "config_hash": f"h{seed}",
        "data_hash": data,
        "examples": 4,
        **more,
    }
    (folder / "metrics.json").write_text(json.dumps(scores))


def make_run(folder, name="fno", seed=0, rate=1e-3, config=None, **more):
    """A workdir whose scores of its own split and checkpoint lie in evaluation/."""
    write_scores(folder / "evaluation", name, seed, **more)
    stored = {
        "seed": seed,
        "model": {"name": name},
        "optimizer": {"learning_rate": rate},
        "log_every": 10 + seed,
        "total_steps": 100,
        "evaluate": {"every": 10, "weights": "ema", "split": "test", "checkpoint": "best"},
    }
    for path, value in (config or {}).items():
        block = stored
        for key in path.split(".")[:-1]:
            block = block[key]
        block[path.split(".")[-1]] = value
    (folder / "config.json").write_text(json.dumps({"config": stored, "commit": "x"}))
    return folder


def test_seeds_are_one_line_and_baselines_stand_below(tmp_path):
    runs = [make_run(tmp_path / f"fno-{s}", seed=s, vrmse=v) for s, v in enumerate((0.6, 0.7, 0.8))]
    runs += [make_run(tmp_path / "vnet", name="vnet", vrmse=0.75)]
    # a run named twice counts once
    text = compare.compare(runs + runs[:1], tmp_path / "out", TEST)
    folder = tmp_path / "out" / "comparison"
    table = json.loads((folder / "table.json").read_text())
    assert set(table["models"]) == {"FNO, 3 seeds", "V-Net"} and set(table["baselines"]) == {
        "mean",
        "Wiener filter",
    }
    fno = table["models"]["FNO, 3 seeds"]
    assert fno["metrics"]["vrmse"] == pytest.approx(0.7) and fno["std_over_seeds"][
        "vrmse"
    ] == pytest.approx(0.1)
    assert fno["spectra"]["T"] == pytest.approx([1.0, 0.7]) and fno["spectra"]["r_std"][1] is None
    assert table["baselines"]["mean"]["metrics"]["ssim"] is None
    rows = {r["model"]: r for r in csv.DictReader(open(folder / "table.csv"))}
    assert (
        float(rows["FNO, 3 seeds"]["vrmse_std"]) == pytest.approx(0.1)
        and rows["FNO, 3 seeds"]["seeds"] == "0 1 2"
    )
    assert "0.7 ± 0.1*" in text and "WARNING" not in text
    assert "**0.7 ± 0.1**" in (folder / "table.md").read_text()
    assert {p.name for p in folder.iterdir()} == {
        "table.csv",
        "table.json",
        "table.md",
        "metrics.png",
        "spectra.png",
    }


def test_other_settings_are_other_lines(tmp_path):
    runs = [
        make_run(tmp_path / "slow", rate=1e-4),
        make_run(tmp_path / "fast", rate=1e-2, wiener=0.8),
    ]
    compare.compare(runs, tmp_path, TEST)
    table = json.loads((tmp_path / "comparison" / "table.json").read_text())
    assert set(table["models"]) == {"FNO [slow]", "FNO [fast]"}
    # fitted on another input
    assert set(table["baselines"]) == {"mean", "Wiener filter", "Wiener filter [fast]"}


def test_doubtful_comparisons_are_refused_or_marked(tmp_path):
    base = make_run(tmp_path / "a")
    for i, change in enumerate(({"data": "d2"}, {"split": "val"}, {"examples": 3})):
        with pytest.raises(UserError, match="scored on different examples"):
            compare.compare([base, make_run(tmp_path / f"b{i}", **change)], tmp_path, TEST)
    raw = make_run(tmp_path / "raw", weights="raw", non_finite={"model": ["psnr"]})
    text = compare.compare([base, raw], tmp_path, TEST)
    assert "different weights" in text and "not finite: psnr" in text
    with pytest.raises(UserError, match="nowhere/config.json: No such file"):
        compare.compare([tmp_path / "nowhere"], tmp_path, TEST)
    trained = make_run(tmp_path / "trained")
    (trained / "evaluation" / "metrics.json").unlink()
    with pytest.raises(UserError, match="--mode=evaluate"):
        compare.compare([trained], tmp_path, TEST)
    (base / "config.json").write_text("{half")
    with pytest.raises(UserError, match="is not JSON"):
        compare.compare([base], tmp_path, TEST)
    with pytest.raises(UserError, match="nothing to compare"):
        compare.compare([], tmp_path, TEST)


def test_fields_that_shape_a_result_make_lines_of_their_own(tmp_path):
    """Runs of one line may differ in what is scored afterwards, not in how "best" is chosen."""

    def lines(field, value):
        folder = tmp_path / field
        other = {"config": {field: value}, "seed": 1}
        compare.compare([make_run(folder / "a"), make_run(folder / "b", **other)], folder, TEST)
        return len(json.loads((folder / "comparison" / "table.json").read_text())["models"])

    assert lines("log_every", 77) == lines("evaluate.checkpoint", "final") == 1
    assert lines("total_steps", 200) == lines("evaluate.every", 5) == 2
    assert lines("evaluate.weights", "raw") == 2


def test_scores_of_another_split_are_found_where_they_lie(tmp_path):
    val = ConfigDict({"split": "val", "checkpoint": "best"})
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", config={"evaluate.split": "val"})
    with pytest.raises(UserError, match=r"--config.evaluate.split=val"):
        compare.compare([a], tmp_path, val)
    write_scores(a / "evaluation" / "val-best", vrmse=0.25, split="val")
    write_scores(b / "evaluation" / "test-best", vrmse=0.5)
    # evaluation/ of b is that of its own split, val
    assert scored_runs.read(a, "val", "best").scores["model"]["vrmse"] == 0.25
    assert scored_runs.read(a, "test", "best").scores["model"]["vrmse"] == 0.7
    assert scored_runs.read(b, "val", "best").scores["model"]["vrmse"] == 0.7
    assert scored_runs.read(b, "test", "best").scores["model"]["vrmse"] == 0.5
    # a checkpoint that was not scored: the run's own on the same split
    assert scored_runs.read(a, "test", "final").scores["model"]["vrmse"] == 0.7


def table_of(folder, runs):
    """(console text, table.md, table.json) of a comparison."""
    text = compare.compare(runs, folder, TEST)
    out = folder / "comparison"
    return text, (out / "table.md").read_text(), json.loads((out / "table.json").read_text())


def with_extra(folder, task, **scores):
    """A run whose model and baselines have further scores, and what its config.task says."""
    directions = scores.pop("directions", None)
    run = make_run(folder, config={"task": task}, rate=len(str(folder)))
    file = run / "evaluation" / "metrics.json"
    stored = json.loads(file.read_text())
    stored["model"] |= scores
    stored["baselines"]["mean"] |= {name: value / 2 for name, value in scores.items()}
    if directions is not None:
        stored["directions"] = directions
    file.write_text(json.dumps(stored))
    return run


def test_losses_of_different_kinds_are_not_ranked(tmp_path):
    mse = {"losses": [["mse", 1.0]], "metrics": ["vrmse"]}
    one, two = with_extra(tmp_path / "a", mse, loss=0.5), with_extra(tmp_path / "bb", mse, loss=0.4)
    two_metrics = with_extra(tmp_path / "ccc", {**mse, "metrics": ["vrmse", "ssim"]}, loss=0.3)
    text, written, table = table_of(tmp_path / "same", [one, two, two_metrics])
    assert "loss ↓" in text and "0.15*" in text and "**0.15**" in written
    assert table["notes"] == [] and "minimised" not in text

    l1 = with_extra(tmp_path / "dddd", {**mse, "losses": [["l1", 1.0]]}, loss=0.2)
    text, written, table = table_of(tmp_path / "other", [one, l1])
    heading, *rows = [line for line in text.splitlines() if "  " in line]
    assert heading.split()[-1] == "loss" and not any("*" in row.split()[-1] for row in rows)
    assert "| loss |" in written and "**0.2**" not in written
    (note,) = table["notes"]
    assert "different losses" in note and "task.losses" in note
    assert note in text and note in written
    # a baseline has a loss of either kind, so it has none here
    assert "loss" not in table["baselines"]["mean"]["metrics"]
    assert table["models"]["FNO [dddd]"]["metrics"]["loss"] == 0.2


def test_the_user_s_own_metric_is_marked_by_the_direction_that_its_evaluation_stored(tmp_path):
    stored = {"vrmse": "lower", "closeness": "higher"}
    a = with_extra(tmp_path / "a", {}, closeness=0.5, directions=stored)
    b = with_extra(tmp_path / "bb", {}, closeness=0.75, directions=stored)
    text, written, _ = table_of(tmp_path / "known", [a, b])
    assert "closeness ↑" in text and "0.75*" in text and "vrmse ↓" in text
    assert "closeness ↑" in written and "**0.75**" in written

    old = with_extra(tmp_path / "ccc", {}, closeness=0.9)  # scored before directions were stored
    text, _, _ = table_of(tmp_path / "old", [a, old])
    assert "closeness ↑" in text and "0.9*" in text and "vrmse ↓" in text

    against = with_extra(tmp_path / "dddd", {}, closeness=0.1, directions={"closeness": "lower"})
    text, written, _ = table_of(tmp_path / "against", [a, against])
    assert "closeness ↑" not in text and "closeness ↓" not in text and "**0.5**" not in written
