"""A run whose files, channels and units have hostile names: it trains, is scored and drawn, and
nothing of the names acts on a terminal, a page or a picture.
"""

import json
import os

import numpy as np
import pytest

from jaxvol import main
from jaxvol.diagnostics import engine, report
from jaxvol.plots import figures
from jaxvol.types import Result

NAME = "a$b_{$c^ \x1b[31m\u202e<script>alert(1)</script>"
CONFIG = """
from jaxvol.config import base


def get_config(variant=""):
    config = base.common()
    config.model, config.task = base.model("fno"), base.task("regression")
    config.data = base.data("volumes")
    for split in ("train", "val", "test"):
        config.data.input[split] = f"{split}/*_in.npy"
        config.data.target[split] = f"{split}/*_out.npy"
    config.data.input.channels, config.data.target.channels = (NAME,), (NAME,)
    config.data.unit = NAME
    config.model.width, config.model.layers, config.model.modes = 4, 1, (2, 2, 2)
    config.task.metrics, config.task.spectra = ("vrmse",), False
    config.total_steps, config.log_every, config.evaluate.every = 2, 1, 2
    config.batch_size = config.evaluate.batch_size = 8
    config.preflight.run = False
    return config
"""


def test_a_run_of_hostile_names_is_trained_scored_and_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    long = (NAME.replace("/", "\\") + "x" * 250).encode()[:230].decode()
    for split in ("train", "val", "test"):
        os.mkdir(split)
        for i in range(8):
            x = rng.normal(size=(1, 8, 8, 8)).astype(np.float32)
            np.save(f"{split}/{long}{i}_in.npy", x)
            np.save(f"{split}/{long}{i}_out.npy", 2 * x)
    (tmp_path / "mine.py").write_text(f"NAME = {NAME!r}\n{CONFIG}")
    assert main.cli(["jaxvol", "--config=mine.py", "--workdir=run"]) == 0
    printed = "".join(capsys.readouterr())
    assert "\x1b" not in printed and "\u202e" not in printed
    for name in ("slices", "pdf", "curves"):
        assert (tmp_path / f"run/evaluation/{name}.png").stat().st_size > 10_000
    assert list((tmp_path / "run/images").glob("slices_*.png"))
    assert json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["model"]["vrmse"] > 0
    # one that cannot be read: its message is short and harmless as well
    (tmp_path / f"test/{long}0_in.npy").write_bytes(b"no array")
    assert main.cli(["jaxvol", "--config=mine.py", "--workdir=run", "--mode=evaluate"]) == 1
    error = capsys.readouterr().err
    assert "\x1b" not in error and len(error.encode()) < 2100 and "Traceback" not in error


@pytest.mark.parametrize("name", [NAME, NAME + "x" * 250, "\udcff", "line\nbreak\r"])
def test_a_report_shows_hostile_names_as_text(tmp_path, name):
    figure = figures.canvas(2, 1)
    tables = {name: [{name: name, "value": 1.0}]}
    result = Result({"m": 1.0}, tables, {name: figure})
    outcome = engine.Outcome("data", "FAIL", result, {"m": ("<", 0.1, 0.5)}, name, name)
    verdict = engine.Verdict("FAIL", "data", (outcome,), ())
    report.write(tmp_path, verdict, {name: name}, name)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and not set("\x1b\u202e\r\0") & set(page)
    assert "\x1b" not in report.text(verdict) and list(tmp_path.glob("data_*.png"))
    assert (tmp_path / "report.csv").exists() and (tmp_path / "report.json").exists()
