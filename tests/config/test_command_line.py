"""Mistakes on the command line and in a config: one clear error each; what --help shows."""

import dataclasses
import logging
import re

import pytest

from jaxvol import main
from jaxvol.config import command_line, experiments, field_help, identity, phases, validate
from jaxvol.training import assemble
from jaxvol.types import UserError
from tests import ROOT, toys
from tests.config.test_configs import load
from tests.training.test_loop import run_toy


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.optimizer.learning_rat=1", "learning_rat"),
        ("--config.modle.width=3", "no field 'modle' (did you mean \"model\" instead"),
        ("--config.model.widht=3", "no field 'widht' (did you mean \"width\" instead"),
        ("--config.model.rank=0", "model.rank is 0.0"),
        ("--config=configs/fno.py:galaxies --config.data.periodic=True", "periodic is (True,)"),
        ("--config.model.name=fnoo", "models/ has cheb_kan, fno"),
        ("--config.total_steps=1.5", "1.5"),
        ("--config.ema_decay=1.5", "ema_decay is 1.5"),
        ("--moed=train", "moed"),
        ("--config=configs/none.py", "none.py: there is no such file"),
        ("--config=configs/fno.py:quik", "no variant 'quik'; known are (none), quick"),
    ],
)
def test_each_mistake_on_the_command_line_gives_one_clear_error(
    argument, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(ROOT)
    arguments = (
        argument.split()
        if argument.startswith("--config=")
        else ["--config=configs/fno.py:quick", argument]
    )
    assert main.cli(["jaxvol", *arguments, f"--workdir={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.encode()) < 2100


def template():
    """The config file that the README shows."""
    page = (ROOT / "README.md").read_text()
    return re.search(r"```python\n(# mine\.py\n.*?)```", page, re.DOTALL)[1]


def test_a_variant_that_a_file_does_not_know_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(template())

    def told(*arguments):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            command_line.parse(["jaxvol", *arguments])
        return [r.getMessage() for r in caplog.records if "VARIANT" in r.getMessage()]

    (message,) = told("--config=mine.py:quik")
    assert "THE VARIANT 'quik' CHANGES NOTHING: mine.py" in message and "\n" not in message
    assert told("--config=mine.py") == []
    assert told("--config=fno:quick") == []
    assert told(f"--config={ROOT}/tests/tiny.py:slow") == []


def test_fewer_steps_than_were_done_are_told(tmp_path, caplog):
    run_toy(tmp_path, toys.config(total_steps=8))
    with caplog.at_level(logging.WARNING):
        assert run_toy(tmp_path, toys.config(total_steps=8))[0] == "finished"
        assert not any("total_steps" in r.getMessage() for r in caplog.records)
        why, run = run_toy(tmp_path, toys.config(total_steps=4))
    (message,) = [r.getMessage() for r in caplog.records if "total_steps" in r.getMessage()]
    assert "total_steps is 4, and this run has done 8 already: nothing is trained" in message
    assert why == "finished" and run.saved == 8


def test_a_batch_that_is_larger_than_the_data_is_told(caplog):
    def told(size):
        caplog.clear()
        config = toys.config(batch_size=size)
        parts = dataclasses.make_dataclass("Parts", ["dataset"])(toys.dataset())
        assemble.check_phases(phases.plan(config), lambda index: parts)
        return [r.getMessage() for r in caplog.records]

    (message,) = told(160)
    assert "batch_size is 160, and the split train has 64 examples" in message
    assert "up to 3 times, and an epoch is 0.4 updates" in message
    assert told(64) == []


def test_help_lists_experiments_and_beside_a_config_its_fields(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main.cli(["jaxvol", "--help"]) == 0
    alone = capsys.readouterr().out
    assert all(f"configs/{name}.py" in alone for name in experiments.names())
    assert "--config.model" not in alone
    arguments = ["--config=configs/fno.py:quick", "--config.model.width=7", "--help"]
    assert main.cli(["jaxvol", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    # values as the command line would set them, meanings as the source states them
    for field, meaning in (
        ("model.width=7", "channels of the hidden field"),
        ("total_steps=300", "number of updates; with phases, the sum of theirs"),
        ("data.parameters.h=0.6774", "flat LCDM, Planck 2015"),
        ("data.num_workers=2", "reader threads"),
        ("optimizer.schedule.cosine.end_factor=0.01", "floor, as a fraction of the peak"),
        ("checkpoint.every=100", "updates between saves"),
    ):
        at = lines.index(f"  --config.{field}")
        assert lines[at + 1].strip().startswith(meaning)


@pytest.mark.parametrize("name", experiments.names())
def test_every_field_of_the_experiments_has_a_meaning(name):
    config = load(name, "")
    meanings = field_help.of_config(config)
    fields = [f for f in identity.flatten(config.to_dict()) if "preflight.limits." not in f]
    assert len(fields) > 100
    assert [field for field in fields if not field_help.meaning_of(field, meanings)] == []


def test_all_broken_rules_are_listed_at_once():
    config = load("fno", "quick")
    config.update_from_flattened_dict(
        {
            "batch_size": 0,
            "precision": "f16",
            "task.losses": (("nope", 1.0),),
            "ema_decay": 2.0,
            "optimizer.name": "adamx",
            "data.augment": ("spin",),
        }
    )
    with pytest.raises(UserError) as error:
        validate.validate(config)
    for name in ("batch_size", "precision", "nope", "ema_decay", "adamx", "spin"):
        assert name in str(error.value)


def test_a_field_that_earlier_runs_do_not_have_is_no_difference():
    config = experiments.load("fno").get_config("quick")
    before = config.copy_and_resolve_references()
    with before.unlocked():
        for name in ("init_partial", "init_sources"):
            del before[name]
        del before.optimizer.schedule["span"]
    assert identity.differences(before, config) == []
    config.init_partial = True
    assert identity.differences(before, config) == ["init_partial: False -> True"]
