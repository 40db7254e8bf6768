"""Real processes, really killed: the same command ends with the same bits and the same
metrics.csv.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.campaigns import processes
from tests import ROOT


def command(workdir, cache, *more):
    return [
        sys.executable,
        "-m",
        "jaxvol.main",
        "--config=tests/tiny.py:slow",
        f"--workdir={workdir}",
        f"--config.data.cache_dir={cache}",
        *more,
    ]


def launch(*arguments):
    # one device: a run's bits depend on their number
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def steps_logged(workdir):
    try:
        return int(
            (workdir / "metrics.csv").read_text().rstrip("\n").splitlines()[-1].split(",")[0]
        )
    except (OSError, ValueError, IndexError):
        return 0


def checksums(workdir):
    """Of every leaf of the final state, as its checkpoint recorded them
    (tests/training/test_checkpoint.py shows that they see each bit).
    """
    last = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    file = next(
        p
        for p in (workdir / "checkpoints" / str(last) / "meta").iterdir()
        if b"checksums" in p.read_bytes()
    )
    return last, json.loads(file.read_text())["checksums"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = launch(folder / "run", folder / "cache")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "Wiener filter" in output and "step 60/60" in output
    return folder


def wait_and(process, moment, what, number, limit=200):
    """Send signal `number` as soon as `moment()` is true."""
    end = time.monotonic() + limit
    while not moment():
        assert process.poll() is None, f"the run ended before {what}:\n{process.stdout.read()}"
        assert time.monotonic() < end, f"never saw {what}"
        time.sleep(0.001)
    process.send_signal(number)


def test_sigkill_at_three_moments_one_in_a_save(undisturbed, tmp_path):
    run, rng = tmp_path / "run", random.Random(11)
    first, second = rng.randint(4, 14), rng.randint(20, 30)
    moments = [
        (lambda: steps_logged(run) >= first, f"step {first}"),
        (
            lambda: (
                any((run / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
                and steps_logged(run) > first
            ),
            "a save",
        ),
        (lambda: steps_logged(run) >= second + 10, f"step {second + 10}"),
    ]
    for moment, what in moments:
        process = launch(run, undisturbed / "cache")
        wait_and(process, moment, what, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    process = launch(run, undisturbed / "cache")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "resumed from step" in output, output
    assert checksums(run) == checksums(undisturbed / "run") and checksums(run)[0] == 60
    assert (run / "metrics.csv").read_bytes() == (undisturbed / "run" / "metrics.csv").read_bytes()


@pytest.mark.slow  # signals of one process are those of tests/training/test_loop.py
def test_sigterm_saves_says_so_and_goes_on(undisturbed, tmp_path):
    run = tmp_path / "run"
    process = launch(run, undisturbed / "cache")
    wait_and(process, lambda: steps_logged(run) >= 7, "step 7", signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    status = json.loads((run / "status.json").read_text())
    assert process.returncode == 75 and "run the same command again" in output, output
    assert (
        status["state"] == "saved" and status["reason"] == "signal SIGTERM" and status["step"] >= 7
    )
    process = launch(run, undisturbed / "cache")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and f"resumed from step {status['step']}" in output, output
    assert checksums(run) == checksums(undisturbed / "run")
    assert (run / "metrics.csv").read_bytes() == (undisturbed / "run" / "metrics.csv").read_bytes()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_a_run_with_another_config_is_not_continued(undisturbed):
    process = launch(
        undisturbed / "run",
        undisturbed / "cache",
        "--config.model.width=6",
        "--config.evaluate.batch_size=1",
    )
    output, _ = process.communicate(timeout=120)
    assert (
        process.returncode == 1 and "model.width: 4 -> 6" in output and "resume=fresh" in output
    ), output
    assert "evaluate.batch_size" not in output


def together(number, workdir, cache, *more, variant=":slow"):
    """launch/cluster/multihost.sh with `number` processes of one device each, started once."""
    environment = {**os.environ, "XLA_FLAGS": "", "RERUN": "0", "PYTHON": sys.executable}
    arguments = [
        f"--config=tests/tiny.py{variant}",
        f"--workdir={workdir}",
        f"--config.data.cache_dir={cache}",
        *more,
    ]
    return subprocess.Popen(
        ["bash", "launch/cluster/multihost.sh", str(number), *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def members(launcher, number):
    """Process ids by process number."""
    found = {}
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        found.update(
            {
                int(entry.partition("=")[2]): int(child)
                for entry in environment
                if entry.startswith("JAX_PROCESS_ID=")
            }
        )
    assert sorted(found) == list(range(number))
    return found


def values(workdir):
    rows = [row.split(",") for row in (workdir / "metrics.csv").read_text().splitlines()[1:]]
    return {(int(step), tag): float(value) for step, tag, value in rows}


def assert_like(workdir, reference, tolerance=1e-4):
    ours, theirs = values(workdir), values(reference)
    assert set(ours) == set(theirs) and len(ours) > 60
    wrong = {
        k: (ours[k], theirs[k])
        for k in ours
        if not math.isclose(ours[k], theirs[k], rel_tol=tolerance, abs_tol=1e-6)
    }
    assert not wrong


def all_gone(run, patience=10.0):
    """No process names this run in its command line any more; the kernel may take a moment to clear
    them away.
    """
    end = time.monotonic() + patience
    while any(str(run).encode() in commandline(p) for p in Path("/proc").glob("[0-9]*/cmdline")):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def commandline(file):
    """What a process was started with; nothing when it has just ended."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes under /proc")
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_of_two_processes_is_killed_the_other_ends_and_both_go_on_like_one(
    undisturbed, tmp_path, victim
):
    """Process 0 is the one that XLA coordinates with: the other tells of its end before XLA would
    abort it (status 134).
    """
    run = tmp_path / "run"
    launcher = together(2, run, undisturbed / "cache")
    end = time.monotonic() + 200
    while steps_logged(run) < 7:
        assert launcher.poll() is None and time.monotonic() < end, launcher.stdout.read()
        time.sleep(0.01)
    began, pids = time.monotonic(), members(launcher, 2)
    os.kill(pids[victim], signal.SIGKILL)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 128 + signal.SIGKILL and time.monotonic() - began < 60
    assert f"process {pids[1 - victim]} ended with status 75" in output, output
    assert (
        "another process of this run ended" in output
        and "run the same command again in all processes" in output
    ), output
    assert all_gone(run)
    launcher = together(2, run, undisturbed / "cache")
    output, _ = launcher.communicate(timeout=240)
    assert (
        launcher.returncode == 0
        and output.count("resumed from step") == 1
        and output.count("Wiener filter") == 2
    ), output
    assert json.loads((run / "config.json").read_text())["device"]["processes"] == 2
    assert_like(run, undisturbed / "run")


@pytest.mark.slow
def test_four_processes_are_stopped_and_go_on_as_two_and_as_one(undisturbed, tmp_path):
    """SIGTERM to the launcher is one to all; they agree on the step; two read what four wrote, on
    another mesh, and one what two wrote.
    """
    run, cache = tmp_path / "run", undisturbed / "cache"
    for number, until, mesh in (
        (4, 7, ("--config.mesh.data=2", "--config.mesh.space=2")),
        (2, 25, ("--config.mesh.fsdp=2", "--config.mesh.data=1")),
    ):
        launcher = together(number, run, cache, *mesh)
        end = time.monotonic() + 400
        while steps_logged(run) < until:
            assert launcher.poll() is None and time.monotonic() < end, launcher.stdout.read()
            time.sleep(0.01)
        os.kill(launcher.pid, signal.SIGTERM)
        output, _ = launcher.communicate(timeout=120)
        status = json.loads((run / "status.json").read_text())
        assert (
            launcher.returncode == 75
            and status["reason"] == "signal SIGTERM"
            and until <= status["step"] < 60
        ), output
    process = launch(run, cache)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and f"resumed from step {status['step']}" in output, output
    assert_like(run, undisturbed / "run")


@pytest.mark.slow
@pytest.mark.parametrize("case", list(processes.CASES))
def test_several_processes_train_like_one_also_after_a_kill_of_all(tmp_path_factory, case):
    # the runs of one process are made once for all cases
    folder = tmp_path_factory.getbasetemp() / "processes"
    folder.mkdir(exist_ok=True)
    row = processes.run(case, folder)
    assert row.good and len(row.resumed) == case.count("killed"), row
    assert all(step > 0 for step in row.resumed) and row.resumed == sorted(row.resumed), row
