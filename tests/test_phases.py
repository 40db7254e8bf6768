"""Phases through the real command line: what was once scored wrong, or found too late."""

import json

import pytest

from jaxvol import main
from tests import tiny

DATA = ("log10", {"floor": 0.03}), ("standardise", {})


def run(folder, *arguments):
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


def phases(*entries):
    return f"--config.phases={entries!r}"


def test_a_phase_with_another_normaliser_is_scored_in_its_own_units(tmp_path, capsys):
    """The target of the second phase is not standardised: predictions of its weights are scored
    with its data, where the base config's once turned an RMSE of 1.26 into 42.3.
    """
    plain = {"data.target_normaliser": (("linear", {"low": 0.0, "high": 1.0}),)}
    entries = phases(("a", 3, {}), ("b", 3, plain))
    assert run(tmp_path, f"--workdir={tmp_path}/run", entries) == 0
    scored = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    mean = scored["baselines"]["mean"]["vrmse"]
    assert scored["model"]["vrmse"] < 1.5 * mean, scored["model"]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    assert run(tmp_path, f"--workdir={tmp_path}/run", entries, "--mode=evaluate") == 0
    text = capsys.readouterr().out
    assert "vrmse" in text


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"task.losses": (("mze", 1.0),)}, "phase 'b': "),
        ({"model.width": 6}, "phase 'a' does not fit"),
        ({"optimizer.name": "adamm"}, "phase 'b': optimizer.name is 'adamm'"),
        pytest.param({"batch_size": 7}, "phase 'b': ", marks=pytest.mark.slow),
    ],
)
def test_what_a_later_phase_cannot_do_is_said_before_anything_trains(
    tmp_path, overrides, message, capsys
):
    entries = phases(("a", 3, {}), ("b", 3, overrides))
    assert run(tmp_path, f"--workdir={tmp_path}/run", entries) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.slow
def test_a_wider_network_of_a_later_phase_is_allowed_where_it_is_asked_for(tmp_path):
    wider = {"model.width": 6, "init_partial": True}
    entries = phases(("a", 3, {}), ("b", 3, wider))
    assert run(tmp_path, f"--workdir={tmp_path}/run", entries) == 0
