"""Command line: flags to modes, errors to exit statuses.

    python -m jaxvol.main --config=configs/fno.py[:variant] [--config.a.b=value] [--workdir=DIR]
                          [--mode=MODE]

Exit status: 0 finished, 75 saved but unfinished (run the same command again), 1 user or input
error, 2 pre-flight FAIL or ERROR, 3 non-finite, 4 workdir in use.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.config import command_line, identity, phases, validate
from jaxvol.config.phases import Phase
from jaxvol.diagnostics import preflight, watch
from jaxvol.evaluation import compare, evaluate, pictures, predict, sweep
from jaxvol.evaluation.evaluators import examples
from jaxvol.runtime import (
    console,
    errors,
    monitoring,
    processes,
    provenance,
    quiet,
    text,
    writer,
)
from jaxvol.training import assemble, checkpoint, loop, restore, resume, sharding
from jaxvol.training.progress import Run
from jaxvol.types import Alarm, Interrupted, NonFiniteError, Parts, UserError, WorkdirLocked

UNFINISHED, REFUSED = monitoring.UNFINISHED, 2


def prepare(config: ConfigDict) -> None:
    """Process-wide JAX settings of a run, and the other processes of it."""
    jax.config.update("jax_enable_x64", config.precision == "f64")
    if config.matmul_precision != "default":
        jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    if processes.start(config.distributed) is not None and not processes.first():
        logging.set_verbosity(logging.ERROR)


def do_train(config: ConfigDict, workdir: Path) -> int:
    """Train to the end or to the next interruption, then score the test split."""
    for doubt in validate.validate(config):
        logging.warning("%s", doubt)
    mesh = sharding.make_mesh(config.mesh)
    plan = phases.plan(config)
    cache: dict[int, Parts] = {}

    def parts_of(index: int) -> Parts:
        if index not in cache:
            cache[index] = assemble.phase_parts(plan, index, mesh, cache)
        return cache[index]

    with jax.set_mesh(mesh), processes.lock(workdir):
        processes.once(lambda: resume.check_resume(config, workdir))
        assemble.check_phases(plan, parts_of)
        if refused(config, workdir, mesh, plan[0], parts_of(0)):
            return REFUSED
        run = open_run(config, workdir, mesh, parts_of(0))
        status = finish(run, parts_of, cache)
    if status not in ("finished", "early_stopped"):
        tell(
            f"Stopped: {status}. Everything up to step {run.saved} of {run.total} is saved in "
            f"{workdir}; run the same command again to go on."
        )
        return UNFINISHED
    return do_evaluate(config, workdir)


def refused(config: ConfigDict, workdir: Path, mesh: Mesh, phase: Phase, parts: Parts):
    """Whether the pre-flight of a fresh run stops it; a run that goes on is not looked at again."""
    if not config.preflight.run or checkpoint.steps(workdir):
        return False
    if preflight.passed(config, workdir, parts):
        return False
    verdict = preflight.run(phase.config, workdir, mesh, phase.stop, parts)
    if verdict.status not in preflight.STOPS:
        return False
    tell(
        f"The training was not started. Mend {verdict.first} first, or let it pass with "
        f"--config.preflight.waive=\"('{verdict.first}',)\"; the report is "
        f"{workdir}/preflight/report.html."
    )
    return True


def open_run(config: ConfigDict, workdir: Path, mesh: Mesh, parts: Parts) -> Run:
    """The workdir's files and the checkpoint store, ready for the loop."""
    log = writer.open_run(workdir, config, processes.first())
    log.text(writer.table(parts.struct.params))
    return Run(
        config=config,
        mesh=mesh,
        store=checkpoint.open_store(workdir, config.checkpoint.keep),
        writer=log,
        meta={
            "config": config.to_json(),
            "config_hash": identity.fingerprint(config),
            "data_hash": parts.dataset.hash,
            "versions": provenance.versions(),
        },
        score=examples.score,
        figures=pictures.example_figure,
        watch=watch.make(config),
    )


def finish(run: Run, parts_of: Callable[[int], Parts], cache: dict[int, Parts]) -> str:
    """Train until the loop says why it ended; status.json says so too, whatever happens."""
    workdir = run.writer.workdir
    try:
        status = loop.train(run, parts_of, lambda: restore.initial(run.config, run.mesh))
    except Exception as error:
        saved = max(checkpoint.steps(workdir), default=None)
        explained = run.writer.moved() or errors.explain(error, workdir, saved, run.fits)
        reason = str(explained).splitlines()[0][:500]
        failure = {"state": "failed", "step": run.saved, "reason": reason}
        close(run, failure, cache, failed=True)
        raise explained from error
    done = status in ("finished", "early_stopped")
    state, reason = (status, "") if done else ("saved", status)
    close(run, {"state": state, "step": run.saved, "reason": reason}, cache)
    return status


def close(run: Run, status: dict, cache: dict[int, Parts], failed: bool = False) -> None:
    """Say what was skipped and what came of a training, write status.json, close its files.

    failed: an error is on its way to the user, and none from here may take its place.
    """
    skipped = cache[max(cache)].dataset.skipped()
    for line in skipped:
        logging.warning("skipped: %s", line)
    workdir, progress = run.writer.workdir, run.progress
    try:
        newest = max(checkpoint.steps(workdir), default=None)
        summary = monitoring.summary(workdir)
        run.writer.status(
            {
                **status,
                "total": run.total,
                "checkpoint": newest,
                "best": dataclasses.asdict(progress),
                "skipped": skipped,
                "summary": {**summary._asdict(), "goodput": summary.goodput},
            }
        )
        best = run.config.checkpoint.best_metric, progress.best_value, progress.best_step
        tell(monitoring.sentence(summary, best, run.taken, max(run.saved, 0)))
        run.writer.close()
        # Orbax would wait for a process that may be gone
        if not (failed and processes.several()):
            run.store.manager.close()
    except Exception as error:
        if not failed:
            raise errors.explain(
                error, workdir, max(checkpoint.steps(workdir), default=None), None
            ) from error
        if not errors.disk(error):  # which is told already
            logging.error("%s while the run was closed: %s", type(error).__name__, error)


def tell(words: str) -> None:
    """Print, once for all processes."""
    if processes.first():
        console.say(words)


def do_preflight(config: ConfigDict, workdir: Path) -> int:
    """The verdict only."""
    for doubt in validate.validate(config):
        logging.warning("%s", doubt)
    mesh = sharding.make_mesh(config.mesh)
    phase = phases.plan(config)[0]
    with jax.set_mesh(mesh):
        verdict = preflight.run(phase.config, workdir, mesh, phase.stop, None)
    tell(f"The report is {workdir}/preflight/report.html.")
    return REFUSED if verdict.status in preflight.STOPS else 0


def do_evaluate(config: ConfigDict, workdir: Path) -> int:
    """Score a split; the run's own config decides everything but `config.evaluate`."""
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        tell(evaluate.evaluate_run(config.evaluate, workdir, mesh))
    return 0


def do_predict(config: ConfigDict, workdir: Path) -> int:
    """Predict files with a trained model."""
    with jax.set_mesh(sharding.one_device()):
        predict.predict_run(config, workdir)
    return 0


def do_compare(config: ConfigDict, workdir: Path) -> int:
    """Put several evaluated runs side by side."""
    runs = [name.strip() for name in config.compare.runs.split(",") if name.strip()]
    if not runs:
        raise UserError("--mode=compare needs --config.compare.runs=WORKDIR,WORKDIR,...")
    console.say(compare.compare(runs, workdir, config.evaluate))
    return 0


def do_sweep(config: ConfigDict, workdir: Path, argv: list[str]) -> int:
    """Train every point of the config file's sweep() in a process of its own, and rank them."""
    return sweep.sweep(config.sweep, argv[1:], workdir, (sys.executable, "-m", "jaxvol.main"))


STATUS = {
    UserError: 1,
    Alarm: REFUSED,
    NonFiniteError: 3,
    WorkdirLocked: 4,
    Interrupted: UNFINISHED,
}


def cli(argv: list[str]) -> int:
    """Run one command line; returns the exit status."""
    quiet.libraries()
    modes = {
        "train": do_train,
        "preflight": do_preflight,
        "evaluate": do_evaluate,
        "predict": do_predict,
        "compare": do_compare,
    }
    try:
        config, mode, workdir = command_line.parse(argv)
        if mode == "sweep":  # this process computes nothing: its points need the devices
            return do_sweep(config, workdir, argv)
        prepare(config)
        return modes[mode](config, workdir)
    except command_line.Help as page:
        print(page)
        return 0
    except KeyboardInterrupt:
        print(
            "\njaxvol: interrupted. What was saved is sound; run the same command again to go on.",
            file=sys.stderr,
        )
        return UNFINISHED
    except Exception as error:
        if type(error) in STATUS or isinstance(error, UserError):
            status = STATUS[type(error)] if type(error) in STATUS else 1
            console.say(f"\njaxvol: {text.message(str(error))}", sys.stderr)
        elif jax.distributed.is_initialized():
            status = 1
            traceback.print_exc()
        else:
            raise
        if jax.distributed.is_initialized():
            # the others may wait for this process, and it must not wait for them
            processes.leave(status)
        return status


if __name__ == "__main__":
    sys.exit(cli(sys.argv))
