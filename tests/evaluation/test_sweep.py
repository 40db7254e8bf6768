"""jaxvol/evaluation/sweep.py around a stub of jaxvol.main whose result is known: best value =
(log10 lr + 3)^2 + width / 100.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxvol.evaluation import sweep
from jaxvol.runtime import provenance
from tests import ROOT

CONFIG = """
from ml_collections import ConfigDict

def get_config(variant=""):
    return ConfigDict({"optimizer": {"learning_rate": 1e-3}, "model": {"width": 4, "modes": (2, 2)},
                       "total_steps": 10,
                       "checkpoint": {"best_metric": "vrmse"}})

def sweep():
    return [{"optimizer.learning_rate": lr, "model.width": w}
            for lr in (1e-2, 1e-3) for w in (8, 4)]
"""

STUB = f"""
import ast, json, math, os, runpy, signal, sys, time
given = dict(a.lstrip("-").split("=", 1) for a in sys.argv[1:])
workdir, file = given.pop("workdir"), given.pop("config").partition(":")[0]
config = runpy.run_path(file)["get_config"]()
config.update_from_flattened_dict(
    {{k[len("config."):]: ast.literal_eval(v) for k, v in given.items()}})
with open(os.path.join(workdir, "calls"), "a") as calls:
    calls.write("x")
lr, width = config.optimizer.learning_rate, config.model.width
def leave(state, value):
    written = {{"format_version": {provenance.FORMAT_VERSION}, "config": json.loads(config.to_json())}}
    status = {{"state": state, "best": {{"best_value": value, "best_step": 7}}}}
    for name, content in (("config", written), ("status", status)):
        with open(os.path.join(workdir, name + ".json"), "w") as file:
            json.dump(content, file)
if lr == 5.0:
    print("jaxvol: gradients are not finite at step 3", file=sys.stderr)
    sys.exit(3)
if lr == 6.0 and not os.path.exists(os.path.join(workdir, "config.json")):
    leave("saved", 0.5)
    sys.exit(75)
if lr == 7.0:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("ready", flush=True)
    time.sleep(60)
if lr == 9.0 and not os.path.exists(os.path.join(workdir, "config.json")):
    leave("finished", 36.0)              # killed before it was scored
    sys.exit(0)
os.makedirs(os.path.join(workdir, "evaluation"), exist_ok=True)
open(os.path.join(workdir, "evaluation", "metrics.json"), "w").close()
leave("finished", None if lr == 8.0 else (math.log10(lr) + 3) ** 2 + width / 100)
"""


@pytest.fixture
def make(tmp_path):
    """make(source) -> run(*arguments) -> (exit status, folder): the sweep of a config file with the
    stub as training.
    """
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)

    def of(source: str = CONFIG):
        config, folder = tmp_path / "study.py", tmp_path / "sweep"
        config.write_text(source)
        return lambda *more: (
            sweep.sweep(
                [f"--config={config}", f"--workdir={folder}", *more], (sys.executable, str(stub))
            ),
            folder,
        )

    return of


def calls(folder: Path) -> dict[str, int]:
    """How often the stub ran per point."""
    return {f.parent.name: len(f.read_text()) for f in folder.glob("*/calls")}


def test_ranking_objective_and_winner(make, capsys):
    status, folder = make()("--jobs=2")
    assert status == 0
    ranking = list(csv.DictReader((folder / "ranking.csv").open()))
    assert [(r["optimizer.learning_rate"], r["model.width"]) for r in ranking] == [
        ("0.001", "4"),
        ("0.001", "8"),
        ("0.01", "4"),
        ("0.01", "8"),
    ]
    assert [float(r["best vrmse"]) for r in ranking] == pytest.approx([0.04, 0.08, 1.04, 1.08])
    best = json.loads((folder / "objective.json").read_text())[0]
    assert best["objective"] == pytest.approx(0.04) and best["params"] == {
        "optimizer.learning_rate": 0.001,
        "model.width": 4,
    }
    assert (folder / "best.txt").read_text().split() == [
        "--config.optimizer.learning_rate=0.001",
        "--config.model.width=4",
    ]
    assert (folder / "ranking.png").read_bytes().startswith(b"\x89PNG")
    assert "best vrmse" in capsys.readouterr().out


def test_maximised_metric_ranks_the_other_way(make):
    _, folder = make(CONFIG.replace("vrmse", "pearson"))("--jobs=2")
    written = json.loads((folder / "objective.json").read_text())
    assert {point["mode"] for point in written} == {"max"}
    assert (folder / "best.txt").read_text().split() == [
        "--config.optimizer.learning_rate=0.01",
        "--config.model.width=8",
    ]


def test_failed_and_unfinished_points_come_last_and_only_they_run_again(make):
    source = CONFIG.replace("(1e-2, 1e-3) for w in (8, 4)", "(5.0, 6.0, 8.0, 1e-3) for w in (4,)")
    run = make(source)
    status, folder = run("--jobs=2")
    found = [
        (p["params"]["optimizer.learning_rate"], p["state"], p["reason"])
        for p in json.loads((folder / "objective.json").read_text())
    ]
    assert status == sweep.UNFINISHED
    assert found == [
        (1e-3, "finished", ""),
        (6.0, "unfinished", "saved but unfinished"),
        (5.0, "failed", "non-finite: jaxvol: gradients are not finite at step 3"),
        (8.0, "failed", "no finite validation value of vrmse"),
    ]
    status, folder = run("--jobs=2")
    assert (
        status == 0
    )  # 6.0 went on and finished; a divergent point is a result, not a failure of the sweep
    assert calls(folder) == {
        "learning_rate_0.001-width_4": 1,
        "learning_rate_6.0-width_4": 2,
        "learning_rate_5.0-width_4": 2,
        "learning_rate_8.0-width_4": 1,
    }
    for _ in range(2):  # one that was trained but not scored is not done
        make(CONFIG.replace("(1e-2, 1e-3) for w in (8, 4)", "(9.0, 1e-3) for w in (4,)"))(
            "--jobs=2"
        )
    assert (
        calls(folder)["learning_rate_9.0-width_4"] == 2
        and calls(folder)["learning_rate_0.001-width_4"] == 1
    )
    make(source)("--jobs=2", "--config.total_steps=20")
    assert calls(folder)["learning_rate_0.001-width_4"] == 2, (
        "a finished point of another config was taken for this one"
    )


def test_print_gives_one_command_per_point(make, capsys):
    status, folder = make()("--print", "--config.model.modes=(4,4)")
    lines = capsys.readouterr().out.splitlines()
    assert status == 0 and len(lines) == 4 and not folder.exists()
    assert all("--config.model.modes=(4,4)" in line for line in lines)
    assert lines[0].endswith(f"--workdir={folder}/learning_rate_0.01-width_8")


@pytest.mark.parametrize(
    "change, arguments, expected",
    [
        (('optimizer.learning_rate"', 'optimizer.learning_rat"'), (), "learning_rat"),
        (("def sweep", "def other"), (), "no function sweep()"),
        (("return [{", "return [] and [{"), (), "expected a list"),
        (("(8, 4)", "(8, 8)"), (), "the same point twice"),
        ((" ", " "), ("--config.total_step=3",), "total_step"),
        ((" ", " "), ("--mode=evaluate",), "every point is trained"),
        ((" ", " "), ("--jobs=0",), "--jobs=0"),
    ],
)
def test_one_clear_error_before_anything_runs(make, capsys, change, arguments, expected):
    status, folder = make(CONFIG.replace(*change))(*arguments)
    message = capsys.readouterr().err
    assert (
        status == 1
        and message.startswith("jaxvol: ")
        and expected in message
        and not folder.exists()
    )


def test_flags_survive_the_shell_and_names_are_folders():
    flags = [
        sweep.flag("model.modes", (8, 8, 8)),
        sweep.flag("phases", (("a", 3, {"seed": 1}),)),
        sweep.flag("model.name", "fno"),
    ]
    assert flags == [
        "--config.model.modes=(8,8,8)",
        "--config.phases=(('a',3,{'seed':1}),)",
        "--config.model.name=fno",
    ]
    assert (
        sweep.short_name({"data.path": "../x y", "model.modes": (8, 8)}) == "path_.._x_y-modes_8_8"
    )


def test_a_signal_saves_the_running_point_and_starts_no_other(make, tmp_path):
    make(CONFIG.replace("(1e-2, 1e-3)", "(7.0, 1e-3)"))
    folder = tmp_path / "sweep"
    code = (
        "import sys; from jaxvol.evaluation import sweep; "
        f"sys.exit(sweep.sweep(['--config={tmp_path}/study.py', '--workdir={folder}'],"
        f" (sys.executable, '{tmp_path}/stub.py')))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    log = folder / "learning_rate_7.0-width_8" / "sweep.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "ready" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == sweep.UNFINISHED
    reasons = [p["reason"] for p in json.loads((folder / "objective.json").read_text())]
    assert reasons == ["saved but unfinished"] + 3 * ["not started"]
