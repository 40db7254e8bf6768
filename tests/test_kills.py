"""Real processes, really killed: the same command ends with the same bits and the same metrics.csv."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def command(workdir, cache, *more):
    return [sys.executable, "-m", "jaxvol.main", "--config=tests/tiny.py:slow", f"--workdir={workdir}",
            f"--config.data.cache_dir={cache}", *more]


def launch(*arguments):
    environment = {**os.environ, "XLA_FLAGS": ""}         # one device: a run's bits depend on their number
    return subprocess.Popen(command(*arguments), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def steps_logged(workdir):
    try:
        return int((workdir / "metrics.csv").read_text().rstrip("\n").splitlines()[-1].split(",")[0])
    except (OSError, ValueError, IndexError):
        return 0


def checksums(workdir):
    """Of every leaf of the final state, as its checkpoint recorded them (tests/test_checkpoint.py shows that they see each bit)."""
    last = max((int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()))
    file = next(p for p in (workdir / "checkpoints" / str(last) / "meta").iterdir() if b"checksums" in p.read_bytes())
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
    moments = [(lambda: steps_logged(run) >= first, f"step {first}"),
               (lambda: any((run / "checkpoints").glob("*.orbax-checkpoint-tmp*")) and steps_logged(run) > first, "a save"),
               (lambda: steps_logged(run) >= second + 10, f"step {second + 10}")]
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


def test_sigterm_saves_says_so_and_goes_on(undisturbed, tmp_path):
    run = tmp_path / "run"
    process = launch(run, undisturbed / "cache")
    wait_and(process, lambda: steps_logged(run) >= 7, "step 7", signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    status = json.loads((run / "status.json").read_text())
    assert process.returncode == 75 and "run the same command again" in output, output
    assert status["state"] == "saved" and status["reason"] == "signal SIGTERM" and status["step"] >= 7
    process = launch(run, undisturbed / "cache")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and f"resumed from step {status['step']}" in output, output
    assert checksums(run) == checksums(undisturbed / "run")
    assert (run / "metrics.csv").read_bytes() == (undisturbed / "run" / "metrics.csv").read_bytes()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_a_run_with_another_config_is_not_continued(undisturbed):
    process = launch(undisturbed / "run", undisturbed / "cache", "--config.model.width=6", "--config.evaluate.batch_size=1")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "model.width: 4 -> 6" in output and "resume=fresh" in output, output
    assert "evaluate.batch_size" not in output
