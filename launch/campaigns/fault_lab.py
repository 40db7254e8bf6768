"""Where faults are tried out: runs in forked processes, next to a run that nothing disturbed.

The modules are imported once and every run is forked from there, so that a try costs a start of JAX
and not one of Python.  The parent never uses JAX.  A plant is a function that the child calls
before it starts: it brings the fault in (launch/campaigns/fault_plants.py).
"""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from jaxvol import main
from jaxvol.data import cosmology  # noqa: F401  (imported once for all children)
from jaxvol.models import fno  # noqa: F401
from jaxvol.tasks import regression  # noqa: F401

LIMIT_S = 240  # a run that takes longer counts as hung
STEPS = 60


class Try(NamedTuple):
    """What came of one fault."""

    # it ended as it should, said so, and the same command then gave the same bits
    survived: bool
    # runs whose result is not that of the undisturbed one, or whose sound checkpoints are gone
    lost: int
    # from the start of the process that goes on to its first new step; NaN where nothing goes on
    seconds: float
    note: str = ""  # what was wrong


class Child:
    """One run of jaxvol.main in a process of its own."""

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        plant: Callable[[], None] | None = None,
        env: dict | None = None,
    ):
        self.log, self.status, self.began = log, None, time.monotonic()
        self.start = log.stat().st_size if log.exists() else 0
        self.pid = os.fork()
        if self.pid == 0:
            self._run(arguments, plant, env or {})

    def _run(self, arguments: list[str], plant: Callable[[], None] | None, env: dict) -> None:
        """What the forked process does; it never returns."""
        status = 70
        try:
            os.setsid()
            out = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            for number in (1, 2):
                os.dup2(out, number)
            for name, value in env.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            # the scoring behind the training is the same whatever happened to it
            main.do_evaluate = lambda config, workdir: 0
            if plant is not None:
                plant()
            status = main.cli(["jaxvol", *arguments])
            # as at the end of Python: the processes of a run take leave of one another
            atexit._run_exitfuncs()
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.status is None:
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(code)
        return self.status

    def wait(self, limit: float = LIMIT_S) -> int:
        """The exit status; a run that does not end is killed and has status -99."""
        end = time.monotonic() + limit
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.status = -99
            time.sleep(0.005)
        return self.status

    def kill(self, number: int) -> None:
        """Send a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def output(self) -> str:
        """What it has printed so far."""
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[self.start :].decode(errors="replace")

    def until(self, moment: Callable[[], bool], limit: float = LIMIT_S) -> bool:
        """Wait until `moment()`; False if the run ended before, or never came there."""
        end = time.monotonic() + limit
        while not moment():
            if self.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True


class Lab:
    """A folder with a cache of simulations and the undisturbed run."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng, self.count = folder, random.Random(seed), 0
        folder.mkdir(parents=True, exist_ok=True)
        self.cache = folder / "cache"
        self.reference = folder / "undisturbed"
        child = self.start(self.reference)
        if child.wait() != 0:
            raise SystemExit(f"the undisturbed run failed:\n{child.output()}")
        self.expected = result(self.reference)

    def fresh(self, name: str) -> Path:
        """A workdir that nobody used."""
        self.count += 1
        return self.folder / f"{self.count:03d}-{name}"

    def start(
        self,
        workdir: Path,
        *more: str,
        plant: Callable[[], None] | None = None,
        env: dict | None = None,
        cache: Path | None = None,
        log: Path | None = None,
    ) -> Child:
        """Start the tiny training in `workdir`; more: further arguments of jaxvol.main."""
        arguments = [
            f"--config={ROOT}/tests/tiny.py:slow",
            f"--workdir={workdir}",
            f"--config.data.cache_dir={cache or self.cache}",
            *more,
        ]
        return Child(arguments, log or self.folder / f"{workdir.name}.log", plant, env)

    def until_step(self, child: Child, workdir: Path, step: int) -> bool:
        """Wait until the run has logged `step`."""
        return child.until(lambda: step_of(workdir) >= step)

    def broken(self, workdir: Path, step: int, *more: str) -> None:
        """A run that was killed after `step`."""
        child = self.start(workdir, *more)
        self.until_step(child, workdir, step)
        child.kill(signal.SIGKILL)
        child.wait()

    def goes_on(
        self, workdir: Path, *more: str, must: str = "", note: str = "", cache: Path | None = None
    ) -> Try:
        """The same command again: it has to end with 0, the undisturbed bits, and print `must`.

        note: what was wrong with the fault itself; empty if nothing was.
        """
        before = logged(workdir)
        child = self.start(workdir, *more, cache=cache)
        child.until(lambda: logged(workdir) > before)
        seconds = time.monotonic() - child.began
        status, output = child.wait(), child.output()
        same = status == 0 and result(workdir) == self.expected
        wrong = (
            note
            or ("" if status == 0 else f"status {status}: {output[-300:]}")
            or ("" if must in output else f"never printed {must!r}")
            or ("" if same else "other bits")
        )
        return Try(not wrong, int(not same), seconds, wrong)

    def tidy(self, workdir: Path) -> None:
        """Remove a workdir that is no longer needed."""
        shutil.rmtree(workdir, ignore_errors=True)


def step_of(workdir: Path) -> int:
    """The newest step of metrics.csv, -1 for none."""
    try:
        last = (workdir / "metrics.csv").read_text().rstrip("\n").splitlines()[-1]
        return int(last.split(",")[0])
    except (OSError, ValueError, IndexError):
        return -1


def logged(workdir: Path) -> int:
    """How often a step was logged, those that were done again included."""
    try:
        return (workdir / "perf.csv").read_text().count("steps_per_sec")
    except OSError:
        return 0


def newest(workdir: Path) -> int:
    """The newest whole checkpoint, -1 for none."""
    names = [folder.name for folder in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=-1)


def result(workdir: Path) -> tuple:
    """Everything that has to be the same bit for bit.

    (last step, checksums of all leaves of its state, metrics.csv)
    """
    step = newest(workdir)
    try:
        files = (workdir / "checkpoints" / str(step) / "meta").iterdir()
        meta = next(data for file in files if b"checksums" in (data := file.read_bytes()))
        return step, json.loads(meta)["checksums"], (workdir / "metrics.csv").read_bytes()
    except (OSError, StopIteration, ValueError, KeyError) as error:
        return (step, repr(error))
