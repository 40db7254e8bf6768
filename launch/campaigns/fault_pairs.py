"""The faults of two processes that train as one: one dies, both die, one has a NaN.

As in fault_kills.py.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from launch.campaigns.fault_lab import Child, Lab, Try, step_of
from launch.campaigns.fault_plants import (
    Plant,
    at_step,
    before_the_first_step,
    huge,
    in_background,
)

BOUND_S = 90  # within which a process ends after another one died


def pair(
    lab: Lab, run: Path, plants: tuple[Plant | None, Plant | None] = (None, None)
) -> list[Child]:
    """Two processes of one device each that train as one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = [
        f"--config.distributed.coordinator=127.0.0.1:{port}",
        "--config.distributed.processes=2",
        "--config.distributed.heartbeat_seconds=30",
    ]
    return [
        lab.start(
            run,
            *together,
            f"--config.distributed.process={number}",
            plant=plants[number],
            log=lab.folder / f"{run.name}.{number}.log",
        )
        for number in (0, 1)
    ]


def values(metrics: bytes) -> dict[tuple[str, str], float]:
    """{(step, tag): value} of metrics.csv."""
    rows = [row.split(",") for row in metrics.decode().splitlines()[1:]]
    return {(step, tag): float(value) for step, tag, value in rows}


def alike(lab: Lab, run: Path) -> bool:
    """The run of two processes has the numbers of the undisturbed one to 1e-4.

    Not the bits: sums over processes are rounded otherwise.
    """
    ours, theirs = values((run / "metrics.csv").read_bytes()), values(lab.expected[2])
    return set(ours) == set(theirs) and all(
        abs(ours[k] - theirs[k]) <= 1e-4 * abs(theirs[k]) + 1e-6 for k in ours
    )


def two_go_on(lab: Lab, run: Path, note: str) -> Try:
    """Both processes again; the result has to be like that of one."""
    began = time.monotonic()
    reached, again = step_of(run), pair(lab, run)
    again[0].until(lambda: step_of(run) > reached)
    seconds = time.monotonic() - began
    codes = [child.wait() for child in again]
    same = alike(lab, run)
    if not note and codes != [0, 0]:
        note = f"{codes}: {again[0].output()[-200:]}"
    if not note and not same:
        note = "other numbers"
    return Try(not note, int(not same), seconds, note)


def until_step(lab: Lab, run: Path, first: Child) -> None:
    """Wait for a step that is drawn for this try."""
    step = lab.rng.randint(5, 15)
    first.until(lambda: step_of(run) >= step)


def one_of_two_killed(lab: Lab, tries: int) -> Iterator[Try]:
    """Process 1, or process 0, is killed: the other ends in time with status 75, and says why."""
    for number in range(tries):
        run, victim = lab.fresh("pair"), 1 - number % 2
        both = pair(lab, run)
        until_step(lab, run, both[0])
        both[victim].kill(signal.SIGKILL)
        began = time.monotonic()
        status, output = both[1 - victim].wait(), both[1 - victim].output()
        both[victim].wait()
        explained = status == 75 and "another process of this run ended" in output
        late = time.monotonic() - began > BOUND_S
        note = f"status {status}, {output[-300:]}" if late or not explained else ""
        yield two_go_on(lab, run, note)
        lab.tidy(run)


def both_killed(lab: Lab, tries: int) -> Iterator[Try]:
    """A node dies with all its processes, in a save or between."""
    for number in range(tries):
        run = lab.fresh("pair")
        both = pair(lab, run, (in_background(3, 0.01) if number % 2 else None, None))
        until_step(lab, run, both[0])
        for child in both:
            child.kill(signal.SIGKILL)
        for child in both:
            child.wait()
        yield two_go_on(lab, run, "")
        lab.tidy(run)


def nan_in_one_process(lab: Lab, tries: int) -> Iterator[Try]:
    """The rows of one process make the gradient overflow: both end with 3, none waits."""
    for number in range(tries):
        run, step = lab.fresh("pair"), lab.rng.randint(6, 12)
        plants = (None, at_step(step, huge))
        both = pair(lab, run, plants if number % 2 == 0 else plants[::-1])
        both[0].until(lambda step=step, run=run: step_of(run) >= step - 1)
        codes = [child.wait(BOUND_S) for child in both]
        output = both[0].output() + both[1].output()
        good = sorted(codes) in ([3, 3], [3, 75]) and "not finite" in output
        yield two_go_on(lab, run, "" if good else f"{codes}: {both[0].output()[-200:]}")
        lab.tidy(run)


def killed_while_waiting(lab: Lab, tries: int) -> Iterator[Try]:
    """Process 1 dies while process 0 makes its state: nothing is saved yet, and the other ends."""
    for _ in range(tries):
        run = lab.fresh("pair")
        both = pair(lab, run, (None, before_the_first_step()))
        codes = [both[1].wait(), both[0].wait(BOUND_S)][::-1]
        good = codes[1] == -signal.SIGKILL and codes[0] == 75
        yield two_go_on(lab, run, "" if good else str(codes))
        lab.tidy(run)
