"""The train loop, one for every task: evaluate the old state, save it, fetch a batch, step.

That order is what makes a run restartable: a checkpoint of step s holds the state before update s
with everything that was decided from it, the batch and the keys of update s are functions of (seed,
s), and the rows of metrics.csv up to s are on disk.  A run that was killed anywhere ends with the
same bits.  The loop is handed its parts and imports none of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxvol.config import phases
from jaxvol.config.phases import Phase
from jaxvol.runtime import errors, monitoring, processes
from jaxvol.training import checkpoint, handover, resume, sharding, validation
from jaxvol.training import step as stepping
from jaxvol.training.progress import Run
from jaxvol.types import NonFiniteError, Parts

# With any of them a run saves, says how to go on and ends with status 75: of a scheduler, of
# Ctrl-C, of a terminal that was closed.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
BUDGET = 1000  # what out_of_time agrees on besides the numbers of signals


class Clock:
    """Seconds since the last row of the log, and how many of them were spent waiting for data."""

    def __init__(self, step: int):
        self.step, self.began, self.waited = step, time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting(self):
        """What happens inside counts as waiting."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def lap(self, step: int) -> dict[str, float]:
        """Readings up to a step; the next lap begins there."""
        seconds = time.monotonic() - self.began
        readings = {
            "perf/steps_per_sec": (step - self.step) / seconds,
            "perf/seconds": seconds,
            "perf/data_wait": self.waited / seconds,
        }
        self.__init__(step)
        return readings


def stop_soon(run: Run, number: int) -> None:
    """Remember a signal: the loop saves before its next update.  A second Ctrl-C ends at once."""
    if run.signal and number == signal.SIGINT:
        raise KeyboardInterrupt
    run.signal = number


def check_finite(run: Run, parts: Parts, taken: int) -> None:
    """Raises NonFiniteError naming the tensors if a step was refused; the last good checkpoint is
    kept as it is.
    """
    reached = int(run.state.step)
    if reached == taken:
        return
    run.taken = reached
    size = run.config.batch_size
    batch = sharding.put(
        run.mesh, parts.dataset.batch(reached, sharding.rows(run.mesh, size)), size
    )
    names = stepping.name_nonfinite(
        parts.task, run.state, batch, run.config.seed, run.config.micro_batches
    )
    what = (
        "; ".join(names[:8])
        if names
        else "nothing when it is replayed alone (an update overflowed)"
    )
    raise NonFiniteError(
        f"Update {reached} was refused because something is not finite: {what}. The weights are "
        "those "
        f"before it; the newest checkpoint is step {run.saved}. Lower the learning rate, clip the "
        "gradient "
        "(optimizer.clip_norm), or look at the data of that batch."
    )


def save_now(run: Run, parts: Parts, step: int, index: int, phase: Phase) -> None:
    """Checkpoint the state as it is before update `step`, with its phase's config, data and
    spec.
    """
    if run.saved == step:
        return
    check_finite(run, parts, step)
    run.writer.check_workdir()
    meta = {
        **run.meta,
        "config": phase.config.to_json(),
        "data_hash": parts.dataset.hash,
        "spec": parts.dataset.spec.to_json(),
        "phase": index,
        "phase_name": phase.name,
        "steps": phase.steps,
        "progress": dataclasses.asdict(run.progress),
    }
    checkpoint.save(run.store, run.state, meta, run.progress.preserved())
    # Orbax let the save before this one finish first: a restart that does not find it knows that it
    # was lost
    run.writer.status(
        {
            "state": "running",
            "step": step,
            "total": run.total,
            "checkpoint": run.saved if run.saved >= 0 else None,
        }
    )
    run.saved = step


def log_now(run: Run, parts: Parts, metrics: dict, taken: int, timing: dict[str, float]) -> None:
    """Write the values of the newest update; they are those of one step, not averages, so that a
    resumed run writes the same.
    """
    check_finite(run, parts, taken)
    values = {name: float(v) for name, v in jax.device_get(metrics).items()}
    run.readings = values
    run.writer.scalars(taken, {f"train/{name}": v for name, v in values.items()})
    run.writer.perf(taken, timing)


def out_of_time(run: Run, step: int) -> str:
    """Why the run has to stop now, or nothing.  Several processes ask one another every
    config.log_every steps.
    """
    hours = (time.monotonic() - run.started) / 3600
    code = run.signal or (BUDGET if 0 < run.config.max_hours <= hours else 0)
    if processes.several():
        code = processes.agree(code) if step % run.config.log_every == 0 else 0
    if code in (0, BUDGET):
        return f"the budget of {run.config.max_hours} hours is spent" if code else ""
    return f"signal {signal.Signals(code).name}"


def run_phase(run: Run, parts: Parts, index: int, phase: Phase) -> str:
    """The updates of a phase that are still to be done.  Returns why the run has to stop before
    the phase has ended, or nothing.
    """
    config = run.config
    size, resumed = config.batch_size, run.saved
    began_at = run.progress.starts[index]
    start, stop = max(began_at, run.saved), began_at + phase.steps
    validated = parts.dataset.sizes["val"] > 0  # without a split "val" nothing is selected
    clock, programs = Clock(start), monitoring.programs(parts.step)
    watchdog = monitoring.Watchdog(
        60 * config.stall_minutes,
        lambda why: monitoring.end_stalled(
            why, lambda: processes.finish(run.store.manager.wait_until_finished), processes.leave
        ),
    )
    parts = dataclasses.replace(parts, dataset=monitoring.watched(parts.dataset, watchdog))
    batches = parts.dataset.stream(start, stop, sharding.rows(run.mesh, size))
    try:
        for step in range(start, stop + 1):
            due = step % config.evaluate.every == 0 or step == stop
            if validated and step != resumed and due:
                better = validation.evaluate_now(run, parts, step)
                patience = config.early_stopping.patience
                run.progress.stopped = 0 < patience <= run.progress.bad
                if better or run.progress.stopped:
                    save_now(run, parts, step, index, phase)
            why = out_of_time(run, step)
            if why or step == stop or (step % config.checkpoint.every == 0 and step > start):
                save_now(run, parts, step, index, phase)
            if step == stop or run.progress.stopped:
                return ""
            if why:
                return why
            with clock.waiting():
                batch = sharding.put(run.mesh, next(batches), size)
            if step == start:
                unit = run.mesh.shape["data"] * run.mesh.shape["fsdp"] * config.micro_batches
                run.fits = errors.sizes_of_step(parts.step, parts.struct, batch, unit)
            run.state, metrics = parts.step(run.state, batch, jnp.int32(step))
            run.taken = step + 1
            programs = monitoring.recompiled(run.writer, parts.step, programs, step)
            run.writer.advance(step + 1)
            if (step + 1) % config.log_every == 0:
                jax.block_until_ready(metrics)
                log_now(run, parts, metrics, step + 1, clock.lap(step + 1))
            monitoring.profile(config.profile, run.writer.workdir, step)
        return ""
    finally:
        watchdog.close()
        batches.close()


def ended(run: Run, index: int, phase: Phase) -> bool:
    """Whether the updates of a phase are done, or early stopping has ended it."""
    return run.progress.stopped or run.saved >= run.progress.starts[index] + phase.steps


def total_of(run: Run, plan: list[Phase]) -> int:
    """Updates of the whole run, as far as is known: a phase that ended early was shorter."""
    starts = run.progress.starts
    return starts[-1] + sum(phase.steps for phase in plan[len(starts) - 1 :])


def train(run: Run, parts_of: Callable[[int], Parts], initial: Callable = list) -> str:
    """All phases of a run.  Returns "finished", "early_stopped" (in its last phase), or the reason
    why it was saved unfinished.

    initial: () -> the weights that a fresh run begins with (`handover.load_pretrained`).
    """
    plan = phases.plan(run.config)
    first = resume.restore_or_init(run, plan, parts_of, initial)
    run.total = total_of(run, plan)
    run.progress.wandb_id = run.writer.resume(run.saved, run.total, run.progress.wandb_id)
    run.taken = max(run.saved, 0)
    run.writer.perf(max(run.saved, 0), {"attempt": time.monotonic() - run.started})
    previous = {s: signal.signal(s, lambda number, _: stop_soon(run, number)) for s in SIGNALS}
    why = ""
    try:
        for index in range(first, len(plan)):
            phase = plan[index]
            if index >= len(run.progress.starts):  # a phase that has not begun
                begin(run, plan, index, parts_of(index))
            run.config = phase.config
            if not ended(run, index, phase):
                why = run_phase(run, parts_of(index), index, phase)
            if why:
                break
        run.store.manager.wait_until_finished()
    except BaseException as error:
        # what is being saved comes to its end, unless another process is gone: Orbax would wait for
        # that one
        if not (processes.several() and isinstance(error, jax.errors.JaxRuntimeError)):
            processes.finish(run.store.manager.wait_until_finished)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return why or ("early_stopped" if run.progress.stopped else "finished")


def begin(run: Run, plan: list[Phase], index: int, parts: Parts) -> None:
    """Enter a phase: the weights of the one before, a clock and a best of its own."""
    before, phase = plan[index - 1], plan[index]
    run.progress.enter(phase.name, before.name, int(run.state.step))
    run.state = handover.enter(run, before, phase, parts)
    run.total = total_of(run, plan)
