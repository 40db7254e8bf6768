"""How a run is doing: is the input stalled, was the step compiled twice, and what came of all the
hours.

The summary is read from perf.csv, which keeps the rows of every attempt.
"""

from __future__ import annotations

import csv
import dataclasses
import faulthandler
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from absl import logging

from jaxvol.runtime import text
from jaxvol.runtime.regular_files import FileError, open_regular
from jaxvol.types import Dataset

UNFINISHED = 75  # exit status: run the same command again


class Watchdog:
    """Tells when waiting takes too long: `with watchdog("batch 17"): next(batches)`.

    After `seconds` (0: never) it says what is waited for and prints where every thread stands;
    after twice that it calls `give_up`, which ends the process: a read that hangs in the kernel
    cannot be interrupted from Python.
    """

    def __init__(self, seconds: float, give_up: Callable[[str], None]):
        self.seconds, self.give_up = seconds, give_up
        self.what, self.since, self.warned = "", 0.0, False
        self.changed = threading.Condition()
        self.closed = False
        if seconds > 0:
            threading.Thread(target=self._watch, name="jaxvol-watchdog", daemon=True).start()

    def __call__(self, what: str) -> Watchdog:
        self.what = what
        return self

    def __enter__(self) -> None:
        self.since, self.warned = time.monotonic(), False

    def __exit__(self, *error) -> None:
        self.since = 0.0

    def close(self) -> None:
        """End the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify()

    def _watch(self) -> None:
        while True:
            with self.changed:
                if self.closed or self.changed.wait(min(self.seconds / 4, 5.0)):
                    return
            # a wait that begins anew between these lines is a short one
            since = self.since
            waited = time.monotonic() - since if since else 0.0
            if waited > self.seconds and not self.warned:
                self.warned = True
                logging.error(
                    "THE INPUT IS STALLED: %s did not come within %.0f s (config.stall_minutes). "
                    "Is the disk or the network file system with the data there? The run ends "
                    "after twice that. Where each thread stands:",
                    self.what,
                    waited,
                )
                faulthandler.dump_traceback(file=sys.__stderr__)
            elif waited > 2 * self.seconds:
                self.give_up(f"{self.what} did not come within {waited:.0f} s")


def watched(dataset: Dataset, watchdog: Watchdog) -> Dataset:
    """The dataset whose batches, of training and of validation, the watchdog waits for as well."""

    def over(batches: Iterator, what: str) -> Iterator:
        number = 0
        try:
            while True:
                with watchdog(f"batch {number} of {what}"):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch
                number += 1
        finally:
            if hasattr(batches, "close"):
                batches.close()

    return dataclasses.replace(
        dataset,
        stream=lambda start, stop, rows: over(
            dataset.stream(start, stop, rows), f"training from step {start}"
        ),
        batches=lambda split, size, rows, limit: over(
            dataset.batches(split, size, rows, limit), f"the split {split!r}"
        ),
    )


def end_stalled(why: str, settle: Callable[[], object], leave: Callable[[int], None]) -> None:
    """Let what is being saved finish, tell, and end the process with status 75."""
    settle()
    print(
        f"\njaxvol: stopped, because {why}. What was saved is sound; run the same command again to "
        "go on.",
        file=sys.stderr,
        flush=True,
    )
    leave(UNFINISHED)


def loosen(board) -> None:
    """A TensorBoard writer whose thread died, on a full disk say, must not hold up the run that
    feeds it, nor its end.

    tensorboardX feeds that thread through a pipe; at exit Python waits until all of it was read.
    """
    queue = getattr(getattr(board.file_writer, "event_writer", None), "_event_queue", None)
    if hasattr(queue, "cancel_join_thread"):
        queue.cancel_join_thread()


def profile(wanted: bool, workdir: Path, step: int) -> None:
    """A trace of updates 10 to 20, for TensorBoard's or Perfetto's profiler view."""
    if wanted and step == 9:
        jax.profiler.start_trace(str(workdir / "profile"))
    if wanted and step == 20:
        jax.profiler.stop_trace()


def recorded(workdir: Path) -> int | None:
    """The newest step that status.json knows to have been saved, None if it knows none.

    A status.json that cannot be read is told and counts as none: it is written anew with the next
    save.  Raises FileError where it is no regular file.
    """
    path = workdir / "status.json"
    try:
        with open_regular(path) as file:
            status = json.load(file)
        step = status["checkpoint"]
        if step is None or (isinstance(step, int) and not isinstance(step, bool) and step >= 0):
            return step
        reason = f"its checkpoint is {step!r}, not the number of a step"
    except FileNotFoundError:
        return None
    except FileError:
        raise
    except RecursionError:
        reason = "its JSON is nested too deeply"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    logging.warning(
        "%s cannot be used (%s); the run goes on from its newest checkpoint, and the file is "
        "written anew.",
        path,
        text.plain(reason, 200),
    )
    return None


def programs(step: Callable) -> int:
    """How often a jitted function was compiled, 0 where JAX does not tell."""
    return step._cache_size() if hasattr(step, "_cache_size") else 0


def recompiled(writer, step: Callable, before: int, number: int) -> int:
    """Programs that the jitted `step` has by now; when they have become more than the first, a
    warning says so and perf.csv counts it.
    """
    count = programs(step)
    if before >= 1 and count > before:
        logging.warning(
            "THE TRAIN STEP WAS COMPILED AGAIN at step %d (program %d): shape, type or placement "
            "of its input changed. Each compilation costs as much as the first; the batches "
            "should all look alike.",
            number,
            count,
        )
        writer.perf(number, {"recompiled": count - before})
    return count


class Summary(NamedTuple):
    """What perf.csv tells of a run, all its attempts together."""

    steps: int  # of the result
    hours: float  # from the start of each attempt to the last it wrote
    productive: float  # hours between log rows whose updates are part of the result
    attempts: int
    recompilations: int

    @property
    def goodput(self) -> float:
        """Share of the time whose work is in the result; the rest is start-up, and updates that a
        restart did again.
        """
        return self.productive / self.hours if self.hours > 0 else float("nan")


def rows(workdir: str | Path) -> Iterator[tuple[int, str, float, float]]:
    """(step, tag, value, time) of perf.csv; lines that a kill left behind are passed over."""
    try:
        with open_regular(Path(workdir) / "perf.csv") as file:
            for fields in csv.reader(io.TextIOWrapper(file, "utf-8", "replace", newline="")):
                try:
                    yield int(fields[0]), fields[1], float(fields[2]), float(fields[3])
                except (ValueError, IndexError):
                    continue
    except OSError:
        return


def summary(workdir: str | Path) -> Summary:
    """Steps, hours, goodput of a run.  Clocks may jump between the rows of an attempt: a step back
    counts as no time.
    """
    # seconds since the last such row, or since the phase began: its updates are not log_every
    spent: dict[int, float] = {}
    hours, attempts, last, compiled = 0.0, 0, None, 0
    for step, tag, value, when in rows(workdir):
        if tag == "perf/attempt":
            # value: seconds before this row
            attempts, last, hours = attempts + 1, when, hours + value / 3600
            spent = {s: r for s, r in spent.items() if s <= step}
        elif last is not None:
            hours, last = hours + max(when - last, 0.0) / 3600, when
        if tag == "perf/seconds":
            spent[step] = value
        compiled += int(value) if tag == "perf/recompiled" else 0
    return Summary(max(spent, default=0), hours, sum(spent.values()) / 3600, attempts, compiled)


def sentence(
    run: Summary, best: tuple[str, float | None, int | None], taken: int, saved: int
) -> str:
    """One line for the console.

    best:         (metric, its value, its step).
    taken, saved: updates that were done, and those of them that the newest checkpoint has.
    """
    metric, value, step = best
    selected = (
        f"best {metric} {value:.5g} at step {step}"
        if value is not None
        else f"{metric} never validated"
    )
    share = (
        f"{100 * run.goodput:.0f} % of it in work that counts"
        if run.hours > 0
        else "goodput not measured"
    )
    again = f", {run.recompilations} recompilations" if run.recompilations else ""
    lost = "" if saved == taken else f" (saved up to {saved})"
    return (
        f"summary: {taken} steps{lost}, {run.hours:.3g} h of wall clock ({share}), "
        f"{max(run.attempts - 1, 0)} restarts{again}, {selected}"
    )
