"""--mode=sweep around a stub of the training whose result is known: best value =
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

from jaxvol import main
from jaxvol.config import identity
from jaxvol.evaluation import sweep, sweep_points
from jaxvol.runtime import provenance
from tests import ROOT, tiny

# a whole config, read from a file: the stub need not import jaxvol
CONFIG = """
import json
from pathlib import Path
from ml_collections import ConfigDict

def tuples(value):
    if isinstance(value, dict):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value

def get_config(variant=""):
    config = ConfigDict(tuples(json.loads(Path(__file__).with_name("tiny.json").read_text())))
    config.checkpoint.best_metric = "vrmse"
    return config

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
    version = {provenance.FORMAT_VERSION}
    written = {{"format_version": version, "config": json.loads(config.to_json())}}
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
def make(tmp_path, monkeypatch):
    """make(source) -> run(*arguments) -> (exit status, folder): --mode=sweep of a config file with
    the stub as training.
    """
    stub, real = tmp_path / "stub.py", sweep.sweep
    stub.write_text(STUB)
    (tmp_path / "tiny.json").write_text(tiny.get_config().to_json())

    def stubbed(settings, arguments, folder, command):
        assert command == (sys.executable, "-m", "jaxvol.main")
        return real(settings, arguments, folder, (sys.executable, str(stub)))

    monkeypatch.setattr(sweep, "sweep", stubbed)

    def of(source: str = CONFIG):
        config, folder = tmp_path / "study.py", tmp_path / "sweep"
        config.write_text(source)
        arguments = [f"--config={config}", "--mode=sweep", f"--workdir={folder}"]
        return lambda *more: (main.cli(["jaxvol", *arguments, *more]), folder)

    return of


def calls(folder: Path) -> dict[str, int]:
    """How often the stub ran per point."""
    return {f.parent.name: len(f.read_text()) for f in folder.glob("*/calls")}


def test_ranking_objective_and_winner(make, capsys):
    status, folder = make()("--config.sweep.jobs=2")
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
    _, folder = make(CONFIG.replace("vrmse", "pearson"))("--config.sweep.jobs=2")
    written = json.loads((folder / "objective.json").read_text())
    assert {point["mode"] for point in written} == {"max"}
    assert (folder / "best.txt").read_text().split() == [
        "--config.optimizer.learning_rate=0.01",
        "--config.model.width=8",
    ]


def test_failed_and_unfinished_points_come_last_and_only_they_run_again(make):
    source = CONFIG.replace("(1e-2, 1e-3) for w in (8, 4)", "(5.0, 6.0, 8.0, 1e-3) for w in (4,)")
    run = make(source)
    status, folder = run("--config.sweep.jobs=2")
    states = [
        (p["params"]["optimizer.learning_rate"], p["state"], p["reason"])
        for p in json.loads((folder / "objective.json").read_text())
    ]
    assert status == sweep.UNFINISHED
    assert states == [
        (1e-3, "finished", ""),
        (6.0, "unfinished", "saved but unfinished"),
        (5.0, "failed", "non-finite: jaxvol: gradients are not finite at step 3"),
        (8.0, "failed", "no finite validation value of vrmse"),
    ]
    status, folder = run("--config.sweep.jobs=2")
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
            "--config.sweep.jobs=2"
        )
    assert (
        calls(folder)["learning_rate_9.0-width_4"] == 2
        and calls(folder)["learning_rate_0.001-width_4"] == 1
    )
    make(source)("--config.sweep.jobs=2", "--config.total_steps=20")
    assert calls(folder)["learning_rate_0.001-width_4"] == 2, (
        "a finished point of another config was taken for this one"
    )


def test_print_gives_one_command_per_point(make, capsys):
    run = make()
    status, folder = run("--config.sweep.print_only", "--config.model.modes=(4,4,4)")
    lines = capsys.readouterr().out.splitlines()
    assert status == 0 and len(lines) == 4 and not folder.exists()
    assert all("--config.model.modes=(4,4,4)" in line for line in lines)
    assert lines[0].endswith(f"--workdir={folder}/learning_rate_0.01-width_8")
    # what is the sweep's own does not reach its points
    assert not any("sweep." in line or "--mode" in line for line in lines)
    assert all(line.count("--config=") == line.count("--workdir=") == 1 for line in lines)


def test_settings_of_the_sweep_do_not_shape_its_points():
    plain, other = tiny.get_config(), tiny.get_config()
    other.sweep.jobs, other.sweep.print_only = 8, True
    assert identity.fingerprint(plain) == identity.fingerprint(other)
    assert identity.differences(plain, other) == []


def test_the_command_line_of_the_points_is_that_of_the_sweep_without_its_own_flags():
    arguments = (
        "--config configs/fno.py:quick -mode=sweep --workdir runs/a --config.sweep.jobs 2 "
        "--config.seed 3 --config.sweep.print_only --config.model.width=8"
    )
    config, overrides = sweep_points.separated(arguments.split())
    assert config == "configs/fno.py:quick"
    assert overrides == ["--config.seed", "3", "--config.model.width=8"]


def test_the_sweep_of_a_shipped_experiment_has_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # nothing of the checkout is here
    assert (
        main.cli(["jaxvol", "--config=fno:quick", "--mode=sweep", "--config.sweep.print_only"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1 and all(" --workdir=runs/sweep-fno-quick/" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_every_point_is_validated_before_the_first_is_trained(make, capsys):
    points = "(1e-3, 2e-3, 500.0, -1.0) for w in (4,)"
    status, folder = make(CONFIG.replace("(1e-2, 1e-3) for w in (8, 4)", points))()
    message = capsys.readouterr().err
    assert status == 1 and not folder.exists()
    for rate in ("500.0", "-1.0"):
        point = f"point {{'optimizer.learning_rate': {rate}, 'model.width': 4}}: The config breaks"
        assert point in message
        assert f"optimizer.learning_rate is {rate}; it has to be in (0, 100)." in message
    assert "0.001" not in message and "Traceback" not in message


@pytest.mark.parametrize(
    "change, arguments, expected",
    [
        (('optimizer.learning_rate"', 'optimizer.learning_rat"'), (), "learning_rat"),
        (("def sweep", "def other"), (), "no function sweep()"),
        (("return [{", "return [] and [{"), (), "expected a list"),
        (("(8, 4)", "(8, 8)"), (), "the same point twice"),
        ((" ", " "), ("--config.total_step=3",), "total_step"),
        ((" ", " "), ("--config.sweep.jobs=0",), "sweep.jobs is 0"),
    ],
)
def test_one_clear_error_before_anything_runs(make, capsys, change, arguments, expected):
    status, folder = make(CONFIG.replace(*change))(*arguments)
    message = capsys.readouterr().err.strip()
    assert status == 1 and message.startswith("jaxvol: ") and expected in message
    assert not folder.exists()


def test_flags_survive_the_shell_and_names_are_folders():
    flags = [
        sweep_points.flag("model.modes", (8, 8, 8)),
        sweep_points.flag("phases", (("a", 3, {"seed": 1}),)),
        sweep_points.flag("model.name", "fno"),
    ]
    assert flags == [
        "--config.model.modes=(8,8,8)",
        "--config.phases=(('a',3,{'seed':1}),)",
        "--config.model.name=fno",
    ]
    name = sweep_points.short_name({"data.path": "../x y", "model.modes": (8, 8)})
    assert name == "path_.._x_y-modes_8_8"


def test_a_signal_saves_the_running_point_and_starts_no_other(make, tmp_path):
    make(CONFIG.replace("(1e-2, 1e-3)", "(7.0, 1e-3)"))
    folder = tmp_path / "sweep"
    code = (
        "import sys\nfrom jaxvol import main\nfrom jaxvol.evaluation import sweep\n"
        "real = sweep.sweep\n"
        f"sweep.sweep = lambda *a: real(*a[:3], (sys.executable, '{tmp_path}/stub.py'))\n"
        f"sys.exit(main.cli(['', '--config={tmp_path}/study.py', '--mode=sweep',"
        f" '--workdir={folder}']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    log = folder / "learning_rate_7.0-width_8" / "sweep.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "ready" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == sweep.UNFINISHED
    reasons = [p["reason"] for p in json.loads((folder / "objective.json").read_text())]
    assert reasons == ["saved but unfinished"] + 3 * ["not started"]
