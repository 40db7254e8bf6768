"""Checks of the user's own: found by their module path, judged by their own limits, refused where
something is missing.
"""

import json
import re
import sys

import pytest

from jaxvol.diagnostics import preflight
from jaxvol.types import UserError
from tests.diagnostics.test_preflight import cli, verdict

SYMMETRY = """
from jaxvol.types import Result
RANK = 90
MEANING = {"error": ("the output is not symmetric", "augment with flips")}
LIMITS = {"error": ("<", 0.1, 0.5)}


def applies(config):
    return True


def diagnose(ctx):
    return Result({"error": 0.3})
"""


def own_checks(monkeypatch, folder, text=SYMMETRY, name="symmetry"):
    """The checks of a config that names mylab.<name>, a file in `folder` with this text."""
    (folder / "mylab").mkdir(exist_ok=True)
    (folder / "mylab" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    for loaded in [module for module in sys.modules if module.split(".")[0] == "mylab"]:
        monkeypatch.delitem(sys.modules, loaded)
    return preflight.checks((f"mylab.{name}",))


def test_a_check_of_the_users_own_has_its_own_limits_and_those_of_the_config(monkeypatch, tmp_path):
    known = own_checks(monkeypatch, tmp_path)
    assert set(known) == {*preflight.checks(), "symmetry"}
    symmetry = {"symmetry": known["symmetry"]}
    outcome = verdict(symmetry).outcomes[0]
    assert (outcome.name, outcome.status) == ("symmetry", "WARN")
    assert outcome.reason == "error is 0.3, expected ≤ 0.1: the output is not symmetric"
    assert verdict(symmetry, limits={"error": ("<", 0.1, 0.2)}).status == "FAIL"
    assert verdict(symmetry, waive=("symmetry",)).status == "PASS"


@pytest.mark.parametrize(
    "lacks, text",
    [
        ("LIMITS = ", SYMMETRY.replace("LIMITS", "LIMIT")),
        ("LIMITS = ", SYMMETRY.replace('{"error": ("<", 0.1, 0.5)}', "{}")),
        ("RANK = 90", SYMMETRY.replace("RANK", "ORDER")),
        ("MEANING = ", SYMMETRY.replace("MEANING", "MEANS")),
        (r"def applies\(config\)", SYMMETRY.replace("def applies", "def may_run")),
        ("has limits for error", SYMMETRY.replace('MEANING = {"error"', 'MEANING = {"errors"')),
        (r"does not define diagnose\(\)", SYMMETRY.replace("def diagnose", "def look")),
    ],
)
def test_an_incomplete_check_is_an_error_that_says_what_to_add(monkeypatch, tmp_path, lacks, text):
    with pytest.raises(UserError, match=rf"mylab/symmetry\.py.*{lacks}"):
        own_checks(monkeypatch, tmp_path, text)


def test_a_check_whose_name_is_taken_or_that_does_not_exist(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="there is a check 'data' already.*another name"):
        own_checks(monkeypatch, tmp_path, name="data")
    with pytest.raises(UserError, match="preflight.checks.*no module 'mylab.typo'"):
        preflight.checks(("mylab.typo",))


def test_the_command_line_runs_a_check_of_the_users_own(monkeypatch, tmp_path, capsys):
    own_checks(monkeypatch, tmp_path)
    flags = ("--config.preflight.checks=('mylab.symmetry',)", "--mode=preflight")
    assert cli(tmp_path, *flags, "--config.preflight.only=('symmetry',)") == 0
    assert re.search(r"^symmetry +WARN .*error 0\.3$", capsys.readouterr().out, re.MULTILINE)
    report = json.loads((tmp_path / "run" / "preflight" / "report.json").read_text())
    assert report["verdict"] == "WARN" and report["first_cause"] == "symmetry"
    [row] = [check for check in report["checks"] if check["name"] == "symmetry"]
    assert row["limits"] == {"error": ["<", 0.1, 0.5]}
    assert cli(tmp_path, *flags, "--config.preflight.only=('symmetries',)") == 1
