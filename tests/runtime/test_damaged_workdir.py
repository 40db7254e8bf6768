"""A workdir that somebody else changed: one sentence that names the file, never a traceback."""

import dataclasses
import json
import logging
import os
import re
import shutil
import time

import pytest

from jaxvol import main
from jaxvol.runtime import errors, monitoring, provenance, rows
from jaxvol.runtime.regular_files import FileError
from jaxvol.training import resume
from jaxvol.types import UserError
from tests import tiny, toys
from tests.training.test_loop import run_toy

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "content, reason",
    [
        ('{"checkpoint": "four"}', "its checkpoint is 'four', not the number of a step"),
        ('{"checkpoint": [4]}', "its checkpoint is [4]"),
        ('{"checkpoint": true}', "its checkpoint is True"),
        ('{"checkpoint": -3}', "its checkpoint is -3"),
        (f'{{"checkpoint": {DEEP}}}', "nested too deeply"),
        ("[1, 2]", "TypeError"),
        ('{"step": 3}', "KeyError: 'checkpoint'"),
        ('{"checkpoint": "\\u001b[31m' + "x" * 9000 + '"}', "its checkpoint is"),
    ],
)
def test_a_status_that_cannot_be_used_is_told_and_the_run_goes_on(
    tmp_path, caplog, content, reason
):
    run_toy(tmp_path, toys.config(), interrupt_at=5)
    (tmp_path / "status.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        why, run = run_toy(tmp_path, toys.config())
    (record,) = [r for r in caplog.records if "status.json" in r.getMessage()]
    message = record.getMessage()
    assert reason in message and "\n" not in message and "\x1b" not in message
    assert len(message) < 2000 and why == "finished" and run.progress.restarts == 1
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"


def test_no_status_and_a_sound_one_are_not_told(tmp_path, caplog):
    assert monitoring.recorded(tmp_path) is None
    for step in (7, None):
        (tmp_path / "status.json").write_text(json.dumps({"checkpoint": step}))
        assert monitoring.recorded(tmp_path) == step
    assert not caplog.records


@pytest.mark.parametrize("config", ['"text"', "[1, 2]", "7", "null", DEEP, '{"total_steps": 1}'])
def test_a_config_that_is_none_gives_one_sentence(tmp_path, config, capsys):
    (tmp_path / "config.json").write_text(f'{{"format_version": 1, "config": {config}}}')
    status = main.cli(["jaxvol", f"--config={tiny.__file__}", f"--workdir={tmp_path}"])
    error = capsys.readouterr().err
    assert status == 1 and str(tmp_path) in error and "Traceback" not in error
    assert len(error.encode()) < 2100
    if not config.startswith("{"):
        with pytest.raises(UserError, match="cannot be used as the config.json of a run"):
            provenance.read_config(tmp_path / "config.json")


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


@pytest.mark.parametrize("make", [pipe, device, folder], ids=["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["config.json", "status.json", "metrics.csv", "perf.csv"])
def test_what_is_no_file_is_refused_at_once(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(UserError, match=rf"{re.escape(name)}: found a .*expected a regular file"):
        resume.check_resume(toys.config(), tmp_path)
    if name == "status.json":
        with pytest.raises(FileError):
            monitoring.recorded(tmp_path)
    if name == "perf.csv":
        assert list(monitoring.rows(tmp_path)) == []
    if name in ("metrics.csv", "perf.csv"):
        with pytest.raises(FileError):
            rows.cut(tmp_path, 4)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints is no folder"):
        resume.check_resume(toys.config(), tmp_path)


def moved(workdir):
    workdir.rename(workdir.with_name("elsewhere"))


def replaced(workdir):
    moved(workdir)
    workdir.mkdir()


@pytest.mark.parametrize("change", [moved, shutil.rmtree, replaced])
def test_a_workdir_that_goes_away_ends_the_run_with_a_sentence(tmp_path, change):
    workdir = tmp_path / "run"
    dataset = toys.dataset()

    def stream(start, stop, rows):
        for step, batch in zip(range(start, stop), dataset.stream(start, stop, rows)):
            if step == 6:
                while not (workdir / "checkpoints/4").exists():  # saved in the background
                    time.sleep(0.01)
                change(workdir)
            yield batch

    watched = dataclasses.replace(dataset, stream=stream)
    with pytest.raises(Exception) as caught:
        run_toy(workdir, toys.config(), watched)
    explained = errors.explain(caught.value, workdir, 4, None)
    assert isinstance(explained, UserError)
    assert "deleted, renamed or replaced while the run was writing in it" in str(explained)
    # nothing was begun anew at the old place
    assert not (workdir / "status.json").exists() and not list(workdir.glob("checkpoints/*"))
    if change is moved:
        moved_back = tmp_path / "elsewhere"
        shutil.rmtree(workdir, ignore_errors=True)
        moved_back.rename(workdir)
        assert run_toy(workdir, toys.config())[0] == "finished"


def test_metrics_that_end_before_the_checkpoint_are_told(tmp_path, caplog):
    def told(change, at):
        workdir = tmp_path / str(at)
        config = toys.config(log_every=2)
        run_toy(workdir, config, interrupt_at=at)
        change(workdir / "metrics.csv")
        caplog.clear()
        assert run_toy(workdir, toys.config(log_every=5))[0] == "finished"
        return [r.getMessage() for r in caplog.records if "metrics.csv" in r.getMessage()]

    def cut_to(step):
        def change(file):
            lines = file.read_text().splitlines(keepends=True)
            kept = [line for line in lines[1:] if int(line.split(",")[0]) <= step]
            file.write_text("".join([lines[0], *kept]))

        return change

    assert told(lambda file: None, 8) == []  # saved at 9, logged at 8
    (message,) = told(cut_to(4), 7)
    assert "ends at step 4, but the run goes on from step 8" in message and "\n" not in message
    (message,) = told(os.unlink, 6)
    assert "has no rows, but the run goes on from step 7" in message
