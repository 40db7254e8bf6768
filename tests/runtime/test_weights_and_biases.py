"""What a run sends to Weights & Biases, with a fake in its place."""

import sys
import types

import numpy as np
import pytest

from jaxvol.config import base
from jaxvol.runtime import writer
from jaxvol.types import UserError


def open_at(workdir, step=-1, total=100, wandb_id=None, **wandb):
    """An open writer for a run that goes on from `step`, and the W&B id it returns."""
    config = base.common()
    config.wandb.update(wandb)
    log = writer.open_run(workdir, config.lock(), True)
    return log, log.resume(step, total, wandb_id)


def fake_wandb(monkeypatch, calls):
    run = types.SimpleNamespace(
        id="run7",
        define_metric=lambda *a, **k: calls.append(("define_metric", a, k)),
        log=lambda values: calls.append(("log", values)),
        finish=lambda **k: calls.append(("finish", k)),
    )

    def init(**arguments):
        calls.append(("init", arguments))
        return run

    monkeypatch.setitem(
        sys.modules, "wandb", types.SimpleNamespace(init=init, Image=lambda x: ("image", x.shape))
    )


def test_wandb_gets_the_values_and_the_resumed_id(tmp_path, monkeypatch):
    calls = []
    fake_wandb(monkeypatch, calls)
    log, run_id = open_at(tmp_path, project="volumes", entity="us", offline=True)
    assert run_id == "run7"
    name, arguments = calls[0]
    assert name == "init" and arguments["config"]["total_steps"] == 1000
    assert {k: arguments[k] for k in ("project", "entity", "id", "resume", "mode", "dir")} == {
        "project": "volumes",
        "entity": "us",
        "id": None,
        "resume": "allow",
        "mode": "offline",
        "dir": str(tmp_path),
    }
    log.scalars(10, {"val/rmse": 0.5})
    log.images(10, {"slices": np.zeros((4, 6, 3), np.uint8)})
    assert ("log", {"val/rmse": 0.5, "step": 10}) in calls
    assert ("log", {"images/slices": ("image", (4, 6, 3)), "step": 10}) in calls
    log.status({"state": "failed", "step": 10, "total": 100})
    log.close()
    assert calls[-1] == ("finish", {"exit_code": 1})
    calls.clear()
    _, run_id = open_at(tmp_path, step=5, wandb_id=run_id, project="volumes")
    assert (
        run_id == "run7"
        and calls[0][1]["id"] == "run7"
        and calls[0][1]["mode"] == "online"
        and calls[0][1]["entity"] is None
    )
    calls.clear()
    _, run_id = open_at(tmp_path / "without")
    assert run_id is None and calls == []


def test_wandb_problems_name_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install jaxvol\[wandb\]"):
        open_at(tmp_path, project="volumes")

    def init(**_):
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(UserError, match="api_key.*wandb login"):
        open_at(tmp_path, project="volumes")
