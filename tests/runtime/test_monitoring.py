"""The watchdog, the count of compilations, the summary, and faults in words; memory and files over
many steps (slow).
"""

import dataclasses
import errno
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.runtime import errors, monitoring
from jaxvol.training import sharding
from jaxvol.types import Interrupted, UserError
from tests import toys
from tests.training.test_loop import run_toy


class Rows:
    """A writer that remembers its rows."""

    def __init__(self):
        self.rows = []

    def perf(self, step, values):
        self.rows.append((step, values))


def test_the_watchdog_tells_then_gives_up_and_does_not_bark_at_short_waits():
    given_up = []
    watchdog = monitoring.Watchdog(2.0, given_up.append)
    for _ in range(300):  # together longer than it bears
        with watchdog("batch 1"):
            time.sleep(0.01)
    assert not given_up and not watchdog.warned
    watchdog.seconds = 0.05
    with watchdog("batch 2"):
        end = time.monotonic() + 60
        while not given_up and time.monotonic() < end:
            time.sleep(0.01)
    watchdog.close()
    assert given_up and given_up[0].startswith("batch 2 did not come within") and watchdog.warned
    silent = monitoring.Watchdog(0, given_up.append)
    with silent("batch 3"):
        pass


def test_a_second_compilation_is_told_and_counted(caplog):
    step, writer, count = jax.jit(lambda x: x + 1), Rows(), 0
    for number, size in enumerate((3, 3, 4, 4, 5)):
        step(jnp.zeros(size))
        count = monitoring.recompiled(writer, step, count, number)
    assert writer.rows == [(2, {"recompiled": 1}), (4, {"recompiled": 1})] and count == 3


def test_a_run_is_compiled_once_even_if_it_is_resumed(tmp_path):
    run_toy(tmp_path, toys.config(), interrupt_at=5)
    run_toy(tmp_path, toys.config())
    summary = monitoring.summary(tmp_path)
    assert summary.recompilations == 0 and summary.attempts == 2 and summary.steps == 12


def perf(tmp_path, *rows):
    (tmp_path / "perf.csv").write_text(
        "step,tag,value,time\n"
        + "".join(f"{s},perf/{t},{v},{w}\n" for s, t, v, w in rows)
        + "9,perf/ha"
    )
    return monitoring.summary(tmp_path)


def test_goodput_counts_repeated_work_and_start_up_as_lost(tmp_path):
    """100 s of start-up; steps 1-20 in 20 s; killed; restored at 10 after 30 s, steps 11-40 in 30
    s: 40 of 180 s are in the result.
    """
    summary = perf(
        tmp_path,
        (0, "attempt", 100, 1000.0),
        (10, "seconds", 10, 1010.0),
        (20, "seconds", 10, 1020.0),
        (10, "attempt", 30, 5000.0),
        (20, "seconds", 10, 5010.0),
        (40, "seconds", 20, 5030.0),
    )
    assert (summary.steps, summary.attempts) == (40, 2)
    assert summary.hours * 3600 == pytest.approx(180)
    assert summary.goodput == pytest.approx(40 / 180)
    late = monitoring.sentence(summary, ("vrmse", 0.5, 20), 37, 20)
    assert "summary: 37 steps (saved up to 20), " in late
    text = monitoring.sentence(summary, ("vrmse", 0.5, 20), 40, 40)
    assert "saved" not in text
    assert (
        "40 steps" in text
        and "22 %" in text
        and "1 restarts" in text
        and "best vrmse 0.5 at step 20" in text
    )


def test_a_phase_that_begins_between_two_rows_is_not_counted_twice(tmp_path):
    """Its first row tells of few updates, the compilation among them; their rate is not that of the
    ten since the row before.
    """
    summary = perf(
        tmp_path,
        (0, "attempt", 0, 1000.0),
        (10, "seconds", 10, 1010.0),
        (20, "steps_per_sec", 0.1, 1040.0),
        (20, "seconds", 20, 1040.0),
    )
    assert summary.goodput == pytest.approx(30 / 40)


def test_a_clock_that_jumps_back_gives_no_negative_hours(tmp_path):
    summary = perf(
        tmp_path, (0, "attempt", 0, 1000.0), (1, "seconds", 1, 400.0), (2, "seconds", 1, 401.0)
    )
    assert (
        summary.hours * 3600 == pytest.approx(1.0)
        and monitoring.summary(tmp_path / "none").attempts == 0
    )


ALLOCATION = (
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.50GiB (13421772800 "
    "bytes) on device"
)


def test_memory_in_words_names_asked_free_fitting_and_fields(tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "free_memory", lambda: (3.0 * 2**30, "on the device"))
    explained = errors.explain(
        jax.errors.JaxRuntimeError(ALLOCATION), tmp_path, 40, lambda: (6, "batches of 1 and 2")
    )
    assert isinstance(explained, UserError)
    for word in (
        "12.5 GiB were asked for",
        "3 GiB are free on the device",
        "largest batch that fits is about 6",
        "batch_size",
        "micro_batches",
        "model.remat",
        "mesh.space",
        "step 40",
        "is sound",
    ):
        assert word in str(explained), word
    explained = errors.explain(
        jax.errors.JaxRuntimeError(ALLOCATION), tmp_path, None, lambda: (0, "batches of 1 and 2")
    )
    assert "not even the smallest batch fits" in str(explained)
    assert "Nothing had been saved" in str(explained)


def test_the_largest_batch_lies_on_the_line_through_two(monkeypatch):
    monkeypatch.setattr(errors, "capacity", lambda: 1000.0)
    assert errors.largest_batch(lambda batch: 100.0 + 50 * batch, 2) == (16, "batches of 2 and 4")
    assert errors.largest_batch(lambda batch: 950.0 + 50 * batch, 2)[0] == 0


def test_the_largest_batch_of_a_real_step_is_asked_from_the_compiler(monkeypatch):
    def update(state, batch, taken):
        return jnp.tanh(jnp.outer(batch["x"].ravel(), batch["x"].ravel())).sum() + state

    monkeypatch.setattr(errors, "capacity", lambda: 1e9)
    batch = {"x": jax.device_put(np.zeros((2, 64), np.float32))}
    largest, how = errors.sizes_of_step(jax.jit(update), jnp.float32(0), batch, 1)()
    assert largest >= 0 and how == "batches of 1 and 2"
    assert errors.sizes_of_step(jax.jit(lambda *a: 1 / 0), jnp.float32(0), batch, 1)() == (0, "")


@pytest.mark.parametrize(
    "error, word",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space left"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "read-only"),
        (
            ValueError(
                'INTERNAL: Error writing "d/0" [OS error 28: ENOSPC No space left on device]'
            ),
            "no space left",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "too many files"),
    ],
)
def test_disks_in_words(tmp_path, error, word):
    explained = errors.explain(error, tmp_path, 3, None)
    assert (
        isinstance(explained, UserError)
        and word in str(explained)
        and str(tmp_path) in str(explained)
        and "step 3" in str(explained)
    )
    wrapped = RuntimeError("the save failed")
    wrapped.__cause__ = error
    assert word in str(errors.explain(wrapped, tmp_path, 3, None))


def test_what_is_not_known_stays_what_it_was(tmp_path, monkeypatch):
    for error in (
        KeyError("x"),
        ValueError("a bug"),
        FileNotFoundError(errno.ENOENT, "no such file"),
    ):
        assert errors.explain(error, tmp_path, None, None) is error
    gloo = jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
    # alone there is nobody to be gone
    assert errors.explain(gloo, tmp_path, 3, None) is gloo
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert isinstance(errors.explain(gloo, tmp_path, 3, None), Interrupted)


@pytest.mark.slow
def test_memory_and_open_files_are_flat_over_20000_steps(tmp_path):
    """The last three quarters of a run of 20,000 steps with its saves, validations and logs: under
    2 % more memory, no more files.
    """
    config = toys.config(
        total_steps=20_000, log_every=20, evaluate__every=500, checkpoint__every=1000
    )
    seen = []
    dataset = toys.dataset()
    small = toys.batch(0, slice(None))

    def stream(start, stop, rows):
        for number in range(start, stop):
            if number % 1000 == 0:
                resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf(
                    "SC_PAGE_SIZE"
                )
                seen.append(
                    (
                        number,
                        resident,
                        len(os.listdir("/proc/self/fd")),
                        len(os.listdir("/proc/self/task")),
                    )
                )
            yield small

    # one device: on a busy machine XLA ends a process in which eight of them on two cores wait too
    # long for one another
    run_toy(
        tmp_path, config, dataclasses.replace(dataset, stream=stream), mesh=sharding.one_device()
    )
    early, late = [s for s in seen if 4000 <= s[0] < 8000], [s for s in seen if s[0] >= 16000]
    memory = [np.median([s[1] for s in part]) for part in (early, late)]
    print(
        f"resident {memory[0] / 2**20:.1f} -> {memory[1] / 2**20:.1f} MiB (medians of steps "
        f"4000-8000 and from 16000), files {early[0][2]} -> "
        f"{late[-1][2]}, threads {early[0][3]} -> {late[-1][3]}"
    )
    assert memory[1] < 1.02 * memory[0] + 4e6, seen
    for column in (2, 3):
        assert max(s[column] for s in late) <= max(s[column] for s in early) + 2, seen
    summary = monitoring.summary(tmp_path)
    assert summary.steps == 20_000 and summary.recompilations == 0
