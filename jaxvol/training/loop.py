"""The train loop, one for every task: evaluate the old state, save it, fetch a batch, step.

That order is what makes a run restartable: a checkpoint of step s holds the state before update s
with everything that was decided from it, the batch and the keys of update s are functions of (seed,
s), and the rows of metrics.csv up to s are on disk.  A run that was killed anywhere ends with the
same bits.  The loop is handed its parts and imports none of them.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from jaxvol.config import phases
from jaxvol.runtime import errors, monitoring, processes
from jaxvol.training import checkpoint, sharding, transfer, validation
from jaxvol.training import step as stepping
from jaxvol.training.progress import Progress, Run
from jaxvol.types import NonFiniteError, Params, Parts, PyTree, TrainState, UserError

BUDGET = 1000  # what out_of_time agrees on besides the numbers of signals


def check_finite(run: Run, parts: Parts, taken: int) -> None:
    """Raises NonFiniteError naming the tensors if a step was refused; the last good checkpoint is
    kept as it is.
    """
    reached = int(run.state.step)
    if reached == taken:
        return
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


def save_now(run: Run, parts: Parts, step: int, phase: int, steps: int) -> None:
    """Checkpoint the state as it is before update `step`."""
    if run.saved == step:
        return
    check_finite(run, parts, step)
    meta = {
        **run.meta,
        "phase": phase,
        "steps": steps,
        "spec": parts.dataset.spec.to_json(),
        "progress": dataclasses.asdict(run.progress),
    }
    checkpoint.save(run.store, run.state, meta, run.progress.best_step)
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


def run_phase(run: Run, parts: Parts, phase: int, start: int, stop: int, last: bool) -> str:
    """Updates `start` .. `stop - 1`.  Returns why the run has to stop before its end,
    or nothing.
    """
    config = run.config
    size, resumed = config.batch_size, run.saved
    # without a split "val" nothing is selected
    steps, validated = config.total_steps, parts.dataset.sizes["val"] > 0
    waited, clock, since, programs = 0.0, time.monotonic(), start, monitoring.programs(parts.step)
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
            end = step == stop and last
            if validated and step != resumed and (step % config.evaluate.every == 0 or end):
                better = validation.evaluate_now(run, parts, step)
                patience = config.early_stopping.patience
                run.progress.stopped = 0 < patience <= run.progress.bad
                if better or run.progress.stopped:
                    save_now(run, parts, step, phase, steps)
            why = out_of_time(run, step)
            if why or step == stop or (step % config.checkpoint.every == 0 and step > start):
                save_now(run, parts, step, phase, steps)
            if why or step == stop or run.progress.stopped:
                return why if step < stop or not last else ""
            began = time.monotonic()
            batch = sharding.put(run.mesh, next(batches), size)
            waited += time.monotonic() - began
            if step == start:
                unit = run.mesh.shape["data"] * run.mesh.shape["fsdp"] * config.micro_batches
                run.fits = errors.sizes_of_step(parts.step, parts.struct, batch, unit)
            run.state, metrics = parts.step(run.state, batch, jnp.int32(step))
            programs = monitoring.recompiled(run.writer, parts.step, programs, step)
            run.writer.advance(step + 1)
            if (step + 1) % config.log_every == 0:
                jax.block_until_ready(metrics)
                seconds = time.monotonic() - clock
                log_now(
                    run,
                    parts,
                    metrics,
                    step + 1,
                    {
                        "perf/steps_per_sec": (step + 1 - since) / seconds,
                        "perf/seconds": seconds,
                        "perf/data_wait": waited / seconds,
                    },
                )
                waited, clock, since = 0.0, time.monotonic(), step + 1
            monitoring.profile(config.profile, run.writer.workdir, step)
        return ""
    finally:
        watchdog.close()
        batches.close()


def start(parts: Parts) -> TrainState:
    """The state of step 0, each leaf where it belongs."""
    # It runs once: XLA's optimisations would cost ten seconds to compile and save none.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    shardings = jax.tree.map(lambda s: s.sharding, parts.struct)
    return jax.jit(parts.init, out_shardings=shardings, compiler_options=options)()


def load_pretrained(
    config: ConfigDict, state: TrainState, params: Params, stats: PyTree
) -> TrainState:
    """`state` with the averaged weights of the run `config.init_from` as parameters and as
    averages.
    """
    pair = transfer.transfer(
        stepping.averaged(state.params, state.extra),
        {"params": params, "stats": stats},
        config.init_from,
        config.init_groups,
    )
    return state.replace(
        params=pair["params"],
        extra={**state.extra, "stats": pair["stats"]},
        ema=jax.tree.map(jnp.copy, pair),
    )


def restore_or_init(run: Run, plan: list, parts_of: Callable, initial: Callable | None) -> int:
    """Restore the newest sound checkpoint, or make the state of step 0.  Returns the phase to go on
    with.
    """

    def template(meta: dict):
        return checkpoint.as_dict(parts_of(meta["phase"]).struct)

    restored = checkpoint.restore_newest(run.store, template)
    lost = monitoring.recorded(run.writer.workdir)
    if lost is not None and (restored is None or restored[1]["step"] < lost):
        told = (
            f"status.json says that step {lost} was saved, but {run.store.directory} does not "
            "have it"
        )
        if restored is None:
            raise UserError(
                f"{told}, nor any other. Put the folder back, or start over with "
                "--config.resume=fresh."
            )
        logging.error("%s: GOING ON FROM STEP %d.", told, restored[1]["step"])
    if restored is None:
        parts = parts_of(0)
        run.state = start(parts)
        if initial is not None:
            run.state = load_pretrained(run.config, run.state, *initial(run.config))
        return 0
    tree, meta = restored
    if meta["data_hash"] != run.meta["data_hash"]:
        raise UserError(
            f"The data changed since step {meta['step']} was saved (hash {meta['data_hash']} -> "
            f"{run.meta['data_hash']}). Put the old data back, or start over with "
            "--config.resume=fresh."
        )
    run.state = TrainState(**tree)
    run.progress = Progress(**meta["progress"])
    run.progress.restarts += 1
    run.saved = meta["step"]
    logging.info("resumed from step %d", run.saved)
    _, _, end, _ = plan[meta["phase"]]
    return meta["phase"] + (run.saved >= end and meta["phase"] + 1 < len(plan))


def train(run: Run, parts_of: Callable[[int], Parts], initial: Callable | None) -> str:
    """All phases of a run.  Returns "finished", "early_stopped", or the reason why it was saved
    unfinished.
    """
    plan = phases.plan(run.config)
    run.total = plan[-1][2]
    first = restore_or_init(run, plan, parts_of, initial)
    run.progress.wandb_id = run.writer.resume(run.saved, run.total, run.progress.wandb_id)
    run.writer.perf(max(run.saved, 0), {"attempt": time.monotonic() - run.started})
    previous = {
        s: signal.signal(s, lambda number, _: setattr(run, "signal", number))
        for s in (signal.SIGTERM, signal.SIGUSR1)
    }
    why = ""
    try:
        for index in range(first, len(plan)):
            name, start, stop, config = plan[index]
            parts = parts_of(index)
            fresh = run.saved <= start and index > 0
            if fresh:  # a phase starts from the last one's weights with an optimizer of its own
                opt = jax.jit(
                    lambda p, o=parts.optimizers: {g: o[g].init(p[g]) for g in p},
                    out_shardings=jax.tree.map(lambda s: s.sharding, parts.struct.opt),
                )(run.state.params)
                run.state = run.state.replace(opt=opt)
            if run.progress.stopped:
                break
            run.config = config
            why = run_phase(run, parts, index, max(start, run.saved), stop, index == len(plan) - 1)
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
