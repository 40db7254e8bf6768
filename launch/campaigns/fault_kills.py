"""The faults that end a process: SIGKILL at any moment, signals to stop, a spent budget.

Each function injects one kind of fault into runs of a lab, `tries` times, and says what came of it.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

from launch.campaigns.fault_lab import STEPS, Lab, Try, newest
from launch.campaigns.fault_plants import PHASES, while_resuming


def sigkill_in_a_save(lab: Lab, tries: int) -> Iterator[Try]:
    """Every phase of a save in turn; the first, second or a later one of the run."""
    for number in range(tries):
        phase = list(PHASES)[number % len(PHASES)]
        run = lab.fresh("kill-in-save")
        child = lab.start(run, plant=PHASES[phase](lab.rng.randint(2, 5), lab.rng.uniform(0, 0.03)))
        status = child.wait()
        note = "" if status == -signal.SIGKILL else f"{phase}: was not reached (status {status})"
        yield lab.goes_on(run, note=note)
        lab.tidy(run)


def sigkill_while_resuming(lab: Lab, tries: int) -> Iterator[Try]:
    """While metrics.csv is cut, or a checkpoint read."""
    for number in range(tries):
        run = lab.fresh("kill-in-resume")
        lab.broken(run, 8)
        plant = while_resuming(cut=bool(number % 2), before=number % 4 < 2)
        status = lab.start(run, plant=plant).wait()
        note = "" if status == -signal.SIGKILL else f"was not killed (status {status})"
        yield lab.goes_on(run, must="resumed from step", note=note)
        lab.tidy(run)


def sigkill_at_random(lab: Lab, tries: int) -> Iterator[Try]:
    """A run is killed again and again; then it has to end with the same bits.

    Each kill comes a few steps after a start, at a random moment.
    """
    kills = 0
    while kills < tries:
        run, of_this_run = lab.fresh("kill"), 0
        while kills < tries and newest(run) < STEPS - 12:
            reached = newest(run)
            child = lab.start(run)
            lab.until_step(child, run, max(reached, 0) + lab.rng.randint(4, 10))
            time.sleep(lab.rng.uniform(0, 0.05))
            child.kill(signal.SIGKILL)
            if child.wait() == -signal.SIGKILL:
                kills += 1
                of_this_run += 1
        yield from [lab.goes_on(run)] * of_this_run
        lab.tidy(run)


def signals(lab: Lab, tries: int) -> Iterator[Try]:
    """SIGTERM and SIGUSR1: save, status 75, the step in status.json."""
    for number in range(tries):
        run, sent = lab.fresh("signal"), (signal.SIGTERM, signal.SIGUSR1)[number % 2]
        child = lab.start(run)
        lab.until_step(child, run, lab.rng.randint(5, 40))
        child.kill(sent)
        status, output = child.wait(), child.output()
        saved = json.loads((run / "status.json").read_text())
        good = (
            status == 75
            and saved["reason"] == f"signal {sent.name}"
            and saved["step"] == newest(run)
            and "run the same command" in output
        )
        note = "" if good else f"status {status}: {output[-200:]}"
        yield lab.goes_on(run, must=f"resumed from step {saved['step']}", note=note)
        lab.tidy(run)


def budget(lab: Lab, tries: int) -> Iterator[Try]:
    """config.max_hours is spent."""
    for _ in range(tries):
        run = lab.fresh("budget")
        child = lab.start(run, f"--config.max_hours={lab.rng.uniform(2, 4) / 3600}")
        status = child.wait()
        good = status == 75 and "budget of" in child.output()
        yield lab.goes_on(run, note="" if good else f"status {status}")
        lab.tidy(run)
