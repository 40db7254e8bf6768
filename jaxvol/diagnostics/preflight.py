"""The pre-flight of a run: its Context, the checks that apply, the report on disk, and whether an
earlier one still holds.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache as compilation
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.config import identity, phases
from jaxvol.diagnostics import baseline, context, probe, report
from jaxvol.diagnostics import engine as diagnostics
from jaxvol.runtime import modules, writer
from jaxvol.training import sharding
from jaxvol.types import Parts

STOPS = diagnostics.RED  # verdicts with which a training does not start


def checks() -> dict:
    """Name -> module of every check."""
    return {
        name: modules.module("diagnostics/checks", name)
        for name in modules.choices("diagnostics/checks")
    }


def passed(config: ConfigDict, workdir: Path, parts: Parts) -> bool:
    """Whether the report in the workdir is of this config and this data and lets the training
    start.
    """
    earlier = report.read(workdir / "preflight")
    return (
        earlier is not None
        and earlier["config_hash"] == identity.fingerprint(config)
        and earlier["data_hash"] == parts.dataset.hash
        and earlier["complete"]
        and not [
            check
            for check in earlier["checks"]
            if check["status"] in STOPS and check["name"] not in config.preflight.waive
        ]
    )


@contextlib.contextmanager
def compilation_cache():
    """Programs that several checks compile, kept in a folder that is deleted afterwards; the user's
    own cache, if there is one.
    """
    if jax.config.jax_compilation_cache_dir:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation.reset_cache()  # whether there is one was decided at the first compilation
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", None)
            compilation.reset_cache()


def look(config: ConfigDict, only: tuple[str, ...] = ()) -> diagnostics.Verdict:
    """The checks `only` (() = all that apply) of a config, for notebooks and scripts: a Verdict
    with tables and figures, no files.
    """
    known, mesh = checks(), sharding.make_mesh(config.mesh)
    if only:
        known = {name: known[name] for name in only}
    _, _, steps, phase = phases.plan(config)[0]
    with tempfile.TemporaryDirectory() as folder, compilation_cache(), jax.set_mesh(mesh):
        return diagnostics.run(context.make(phase, mesh, Path(folder), steps), known)


def run(
    config: ConfigDict, workdir: Path, mesh: Mesh, steps: int, parts: Parts | None
) -> diagnostics.Verdict:
    """Run the checks, print the table and write `<workdir>/preflight/`."""
    known = checks()
    # a check that does not exist is named before anything is compiled
    diagnostics.order(config, known)
    with compilation_cache():
        seen = context.make(config, mesh, workdir, steps, parts)
        verdict = diagnostics.run(seen, known)
    for name in verdict.waived:
        logging.warning(
            "pre-flight: %s is waived; whatever it finds does not stop the training", name
        )
    info = {
        "config_hash": identity.fingerprint(config),
        "data_hash": seen.dataset.hash,
        "complete": not config.preflight.only,
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "versions": writer.versions(),
    }
    if jax.process_index() == 0:
        found = baseline.record(verdict, *probe.recorded(seen))
        changes = (
            baseline.moved(baseline.read(config.preflight.baseline), found)
            if config.preflight.baseline
            else None
        )
        report.write(workdir / "preflight", verdict, info, workdir.name, changes)
        baseline.write(workdir / "preflight", found)
        print(report.text(verdict))
        if changes is not None:
            print(report.text_of_changes(changes, config.preflight.baseline))
    return verdict
