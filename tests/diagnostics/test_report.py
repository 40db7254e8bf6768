"""The pre-flight's page in a real browser, the notebooks, the page of checks in the docs, and what
is watched while training.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import image

from docs import check_reference
from jaxvol.config import base
from jaxvol.config.limits import limits
from jaxvol.diagnostics import baseline, engine, preflight, report, watch
from jaxvol.plots import figures
from jaxvol.types import Result
from tests import ROOT, compiler

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def outcome(name, status, metrics):
    figure = figures.canvas(4, 2)
    figure.subplots().plot([1, 2, 3])
    return engine.Outcome(
        name,
        status,
        Result(metrics, {"a table": [{"what": "<b>x</b>", "value": 1.5}]}, {"a picture": figure}),
        dict.fromkeys(metrics, (">", 1.0, 0.5)),
        "because" if status != "PASS" else "",
        "do this" if status != "PASS" else "",
    )


def verdict(*statuses):
    return engine.verdict(
        [outcome(f"check{i}", status, {"m": float(i)}) for i, status in enumerate(statuses)], ()
    )


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_page_opens_in_a_browser_without_a_word_on_its_console(tmp_path):
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(
        report.as_html(
            {"one": verdict("PASS", "FAIL"), "two": verdict("WARN", "PASS")}, {"device": "cpu"}
        ),
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path}/profile",
            "--window-size=1100,1400",
            f"--screenshot={shot}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shot.exists(), done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    pixels = np.round(image.imread(shot)[..., :3] * 255).astype(int).reshape(-1, 3)
    for status in ("PASS", "FAIL", "WARN"):  # the badges are there, in their colours
        colour = [int(report.COLOUR[status][i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - colour).max(1) <= 2).sum() > 100, status
    assert (pixels < 250).any(1).mean() > 0.02  # and the page is no blank sheet


def test_every_check_explains_every_limit_and_the_page_of_checks_says_so():
    modules = preflight.checks()
    assert set(limits()) == set(modules)
    for name, module in modules.items():
        assert set(limits()[name]) == set(module.MEANING) == set(module.LIMITS), name
        assert all(len(text) == 2 and all(text) for text in module.MEANING.values())
    page = check_reference.PAGE.read_text(encoding="utf-8")
    assert check_reference.written(page) == page, "run: python docs/check_reference.py --write"
    assert all(f"**{name}**" in page for name in modules)


def watched(readings, y=None, target=None, **limits):
    config = base.common()
    for name, value in limits.items():
        check, metric = name.split("__")
        config.preflight.limits[check][metric] = value
    return {o.name: o for o in watch.judge(config.lock(), watch.measure(readings, y, target))}


def test_readings_of_a_run_that_goes_wrong_are_red():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(2, 8, 8, 8, 1))
    healthy = {"net/grad_norm": 2.0, "net/clipped_norm": 1.0, "net/loss": 1.0}
    assert watched(healthy, 0.7 * target, target) == {}
    assert watched({**healthy, "net/grad_norm": 1e4})["gradients"].status == "FAIL"
    # collapsed to the mean
    assert watched(healthy, 1e-4 * target, target)["prediction"].status == "FAIL"
    # saturated
    assert watched(healthy, np.clip(target, -0.3, 0.3), target)["prediction"].status == "FAIL"
    players = {
        "disc/accuracy_real": 1.0,
        "disc/accuracy_fake": 0.0,
        "disc/D_real": 0.7,
        "disc/D_fake": 0.7,
    }
    assert watched({**healthy, **players})["adversarial"].status == "FAIL"
    assert (
        watched({**healthy, "gen/share_mse": 0.99, "gen/share_adversarial": 0.01})[
            "gradients"
        ].status
        == "FAIL"
    )
    assert (
        watched(healthy, 0.7 * target, target, gradients__clipped=("<", 0.3, 0.4))[
            "gradients"
        ].status
        == "FAIL"
    )


def test_what_moved_since_a_baseline():
    outcomes = verdict("PASS", "PASS")
    history = [{"net/loss": 1.0, "net/lr": 0.1, "net/grad_norm": 2.0, "net/other": 3.0}]
    before = baseline.record(outcomes, history, {"example 0": [1.0, 2.0]})
    assert (
        before["history"] == {"net/loss": [1.0], "net/lr": [0.1], "net/grad_norm": [2.0]}
        and baseline.moved(before, before) == []
    )
    after = json.loads(json.dumps(before))
    after["history"]["net/lr"], after["examples"]["example 0"] = [0.2], [1.0, 2.001]
    after["metrics"]["check1"]["m"] = 1.5
    assert [row["what"] for row in baseline.moved(before, after)] == [
        "net/lr, history, number 0",
        "check1.m",
    ]


def test_one_page_for_several_configs(tmp_path):
    out = tmp_path / "page.html"
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "launch" / "benchmarks" / "preflights.py",
            f"{ROOT}/configs/healthy.py:fno",
            f"{ROOT}/configs/healthy.py:vit3d",
            "--only",
            "environment",
            f"--output={out}",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = out.read_text()
    assert page.count("<h1>") == 3 and "healthy.py:fno" in page and "healthy.py:vit3d" in page


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=pytest.mark.slow) for m in ("fno", "vnet", "vit3d", "pix2pixcc")],
)
def test_a_notebook_runs_and_shows_pictures(model, tmp_path, monkeypatch):
    """Two checks of each model; the notebooks of docs/notebooks have more."""
    pytest.importorskip("nbclient", reason="the extra 'notebooks' is not installed")
    from docs.notebooks import make

    monkeypatch.setenv("XLA_FLAGS", compiler.quick())  # one device, as a notebook has
    monkeypatch.setitem(make.MODELS, model, (make.MODELS[model][0], ("data", "prediction")))
    book = json.loads(make.make(model, tmp_path).read_text())
    text = json.dumps(book)
    assert "Pre-flight verdict: PASS" in text and "data:image/png;base64," in text
    assert all(
        out["output_type"] != "error"
        for cell in book["cells"]
        if cell["cell_type"] == "code"
        for out in cell["outputs"]
    )
