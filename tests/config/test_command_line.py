"""Mistakes on the command line and in a config: one clear error each."""

import pytest

from jaxvol import main
from jaxvol.config import validate
from jaxvol.types import UserError
from tests import ROOT
from tests.config.test_configs import load


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.optimizer.learning_rat=1", "learning_rat"),
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
        [argument]
        if argument.startswith("--config=")
        else ["--config=configs/fno.py:quick", argument]
    )
    assert main.cli(["jaxvol", *arguments, f"--workdir={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


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
