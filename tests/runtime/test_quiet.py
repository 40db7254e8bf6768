"""A disk that fails in a save is told once, in our words, with no traceback of a library before
it.
"""

import errno
import logging
import os
import subprocess
import sys
import types

import pytest

from jaxvol.runtime import errors, quiet
from jaxvol.types import UserError
from tests import ROOT, tiny

FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from jaxvol import main
from jaxvol.training import checkpoint
save, saves = checkpoint.save, []
def second(*arguments):
    saves.append(1)
    if len(saves) == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
    return save(*arguments)
checkpoint.save = second
sys.exit(main.cli(["jaxvol", *sys.argv[1:]]))
"""


def test_a_full_disk_in_a_save_is_told_in_one_sentence(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            FULL,
            f"--config={tiny.__file__}",
            f"--config.data.cache_dir={tmp_path}/cache",
            f"--workdir={tmp_path}/run",
        ],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "Errno" not in done.stderr
    last = done.stderr.rstrip().splitlines()[-1]
    assert last.startswith(f"jaxvol: {tmp_path}/run cannot be written: a file may not grow")
    assert "checkpoint of step 0" in last
    assert done.stderr.count("cannot be written") == 1
    # plain lines: no bar that overwrites itself
    assert "\r" not in done.stderr + done.stdout and "\x1b" not in done.stderr
    # the first line comes after compilation, and has no rate yet
    lines = [line for line in done.stderr.splitlines() if line.startswith("step 1/6")]
    assert len(lines) == 1 and "ETA" not in lines[0]


def record(error=None, level=logging.ERROR, path="/site/orbax/x.py", message="failed"):
    info = None if error is None else (type(error), error, None)
    return logging.LogRecord("absl", level, path, 1, message, (), info)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_libraries_log_of_a_disk_is_passed_over_and_the_cause_is_kept(tmp_path, number):
    error = OSError(number, os.strerror(number))
    outer = RuntimeError("the save failed")
    outer.__cause__ = error
    assert not quiet.wanted(record(error)) and not quiet.wanted(record(outer))
    assert not quiet.wanted(record(message=f"Checkpointing: {os.strerror(number)}"))
    assert isinstance(errors.explain(outer, tmp_path, 3, None), UserError)
    assert error in errors.chain(outer)
    # everything else is shown
    assert quiet.wanted(record(ValueError("a bug"))) and quiet.wanted(record(message="a bug"))
    assert not quiet.wanted(record(level=logging.WARNING))


def test_what_python_cannot_raise_is_passed_over_only_for_a_disk(capsys):
    for value, shown in (
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), False),
        (RuntimeError("Event loop is closed"), False),
        (ValueError("a bug of ours"), True),
    ):
        event = types.SimpleNamespace(
            exc_type=type(value),
            exc_value=value,
            exc_traceback=None,
            err_msg=None,
            object=None,
            thread=None,
        )
        assert quiet.repeats(value) == (not shown)
        if not shown:
            quiet.unraisable(event)
            quiet.in_thread(event)
    assert capsys.readouterr().err == ""


def test_our_own_messages_are_short_and_harmless():
    ours = record(
        path=f"{quiet.OURS}/data/x.py", level=logging.INFO, message="a\x1b[31m" + "x" * 9000
    )
    assert quiet.wanted(ours)
    assert "\x1b" not in ours.getMessage() and len(ours.getMessage().encode()) <= 2000
