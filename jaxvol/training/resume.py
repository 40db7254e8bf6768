"""Where a run goes on: at its newest sound checkpoint, if that is its own, or at step 0."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from jaxvol.config import identity
from jaxvol.config.phases import Phase
from jaxvol.runtime import monitoring, provenance, text
from jaxvol.runtime.regular_files import open_regular
from jaxvol.training import checkpoint, handover
from jaxvol.training.progress import Progress, Run
from jaxvol.types import TrainState, UserError


def restore_or_init(run: Run, plan: list[Phase], parts_of: Callable, initial: Callable) -> int:
    """Restore the newest sound checkpoint, or make the state of step 0.  Returns the phase to go on
    with.
    """

    def template(meta: dict):
        check_belongs(run, plan, meta)
        return checkpoint.as_dict(parts_of(meta["phase"]).struct)

    restored = checkpoint.restore_newest(run.store, template)
    lost = monitoring.recorded(run.writer.workdir)
    if lost is not None and (restored is None or restored[1]["step"] < lost):
        missing = (
            f"status.json says that step {lost} was saved, but {run.store.directory} does not "
            "have it"
        )
        if restored is None:
            raise UserError(
                f"{missing}, nor any other. Put the folder back, or start over with "
                "--config.resume=fresh."
            )
        logging.error("%s: GOING ON FROM STEP %d.", missing, restored[1]["step"])
    if restored is None:
        run.state = handover.start(parts_of(0))
        run.state = handover.load_pretrained(run.state, initial(), run.config.init_partial)
        run.progress.starts = [0]
        return 0
    tree, meta = restored
    index = meta["phase"]
    if meta["data_hash"] != parts_of(index).dataset.hash:
        raise UserError(
            f"The data changed since step {meta['step']} was saved (hash {meta['data_hash']} -> "
            f"{parts_of(index).dataset.hash}). Put the old data back, or start over with "
            "--config.resume=fresh."
        )
    run.state = TrainState(**tree)
    run.progress = Progress(**meta["progress"])
    run.progress.restarts += 1
    run.saved = meta["step"]
    logging.info("resumed from step %d", run.saved)
    if run.saved > plan[-1].stop:
        logging.warning(
            "total_steps is %d, and this run has done %d already: nothing is trained, and the "
            "weights of step %d are those of the finished run.",
            plan[-1].stop,
            run.saved,
            run.saved,
        )
    return index


def check_belongs(run: Run, plan: list[Phase], meta: dict) -> None:
    """UserError for a checkpoint of an earlier format, and for one of another run."""
    where = f"Checkpoint {run.store.directory}/{meta['step']}"
    if "format" not in meta or meta["format"] != checkpoint.FORMAT:
        made_by = meta["versions"]["jaxvol"] if "jaxvol" in meta["versions"] else "an earlier one"
        raise UserError(
            f"{where} was saved by jaxvol {made_by} in an earlier format. It can be evaluated, and "
            "predict with; training cannot go on from it. Start another run from its weights "
            "(--config.init_from), or start over with --config.resume=fresh."
        )
    names = [phase.name for phase in plan]
    if meta["phase"] >= len(plan) or meta["phase_name"] != names[meta["phase"]]:
        raise UserError(
            f"{where} is of phase {meta['phase_name']!r}, but this run has the phases "
            f"{', '.join(names)}. Use the run's own config, or another --workdir."
        )
    expected = plan[meta["phase"]].config
    changed = identity.differences(identity.config_from(meta["config"]), expected)
    if changed:
        raise UserError(
            f"{where} is of a run with another config:\n  - "
            + "\n  - ".join(changed)
            + "\nUse the old values to go on, another --workdir for a new run, or "
            "--config.resume=fresh to start over."
        )


def check_files(workdir: Path) -> None:
    """UserError where something else than a file has the name of a file of the run, or than a
    folder that of a folder: a named pipe would be waited for, a folder cannot be replaced.
    """
    for name in ("config.json", "status.json", "metrics.csv", "perf.csv"):
        if os.path.lexists(workdir / name):
            try:
                open_regular(workdir / name).close()
            except OSError as error:
                what = text.plain(error, 300)
                raise UserError(f"{what}. Move it away, or choose another --workdir.") from error
    for name in ("checkpoints", "tensorboard", "images", "preflight", "evaluation"):
        if os.path.lexists(workdir / name) and not (workdir / name).is_dir():
            raise UserError(
                f"{workdir / name} is no folder. Move it away, or choose another --workdir."
            )


def check_resume(config: ConfigDict, workdir: Path) -> None:
    """UserError if the workdir holds a run of another config; with resume=fresh its checkpoints are
    put aside.
    """
    check_files(workdir)
    file = workdir / "config.json"
    if not file.exists():
        return
    if config.resume == "fresh":
        aside = workdir / "discarded" / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9}"
        for name in ("checkpoints", "metrics.csv", "perf.csv", "status.json"):
            if (workdir / name).exists():
                aside.mkdir(parents=True, exist_ok=True)
                shutil.move(str(workdir / name), str(aside / name))
        return
    changed = identity.differences(provenance.read_config(file), config)
    if changed:
        raise UserError(
            f"{workdir} holds a run with another config:\n  - "
            + "\n  - ".join(changed)
            + "\nUse the old values to go on, another --workdir for a new run, or "
            "--config.resume=fresh to start over."
        )
