"""The pre-flight of a run: its Context, the checks that apply, the report on disk, and whether an
earlier one still holds.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from types import ModuleType

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache as compilation
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.config import identity, phases
from jaxvol.diagnostics import baseline, context, probe, report
from jaxvol.diagnostics import engine as diagnostics
from jaxvol.runtime import modules, provenance
from jaxvol.training import sharding
from jaxvol.types import Parts, UserError

STOPS = diagnostics.RED  # verdicts with which a training does not start
CHECKS = "diagnostics/checks"
# what a check defines besides diagnose(), and an example of each
DEFINED = {
    "RANK": "RANK = 90",
    "MEANING": 'MEANING = {"error": ("what it means when it is too large", "what to do")}',
    "LIMITS": 'LIMITS = {"error": ("<", 0.1, 0.5)}, which is WARN above 0.1 and FAIL above 0.5',
    "applies": "def applies(config): return True",
}


def checks(paths: tuple[str, ...] = ()) -> dict[str, ModuleType]:
    """Name -> module of every check: those of jaxvol, and the user's own at the module `paths`
    (`config.preflight.checks`).  A check has the name of its file.

    Raises UserError for a module that does not exist, that is no complete check, or whose name is
    taken.
    """
    modules_of = {name: modules.module(CHECKS, name) for name in modules.choices(CHECKS)}
    for path in paths:
        name, module = path.rpartition(".")[2], modules.module(CHECKS, path)
        if name in modules_of:
            raise UserError(
                f"config.preflight.checks names {path!r}, and there is a check {name!r} already, "
                f"{modules_of[name].__file__}. Give the file another name."
            )
        complete(path, module)
        modules_of[name] = module
    return modules_of


def complete(path: str, module: ModuleType) -> None:
    """Raise UserError where the user's check lacks something: without limits it could only PASS."""
    lacking = [
        example
        for name, example in DEFINED.items()
        if not hasattr(module, name) or name == "LIMITS" and not module.LIMITS
    ]
    if lacking:
        raise UserError(
            f"config.preflight.checks names {path!r}, and {module.__file__} is no complete check. "
            f"Add to it, for example: {'; '.join(lacking)}."
        )
    if unexplained := sorted(set(module.LIMITS) - set(module.MEANING)):
        raise UserError(
            f"config.preflight.checks names {path!r}, and {module.__file__} has limits for "
            f"{', '.join(unexplained)} without saying what they mean. Add to its MEANING a pair "
            "(what it means, what to do) for each."
        )


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
    """Keeps programs that several checks compile in a folder that is deleted afterwards, or in the
    user's own cache, if there is one.
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
    known, mesh = checks(config.preflight.checks), sharding.make_mesh(config.mesh)
    if only:
        known = {name: known[name] for name in only}
    phase = phases.plan(config)[0]
    with tempfile.TemporaryDirectory() as folder, compilation_cache(), jax.set_mesh(mesh):
        return diagnostics.run(context.make(phase.config, mesh, Path(folder), phase.steps), known)


def run(
    config: ConfigDict, workdir: Path, mesh: Mesh, steps: int, parts: Parts | None
) -> diagnostics.Verdict:
    """Run the checks, print the table and write `<workdir>/preflight/`."""
    known = checks(config.preflight.checks)
    # a check that does not exist is named before anything is compiled
    diagnostics.order(config, known)
    with compilation_cache():
        ctx = context.make(config, mesh, workdir, steps, parts)
        verdict = diagnostics.run(ctx, known)
    for name in verdict.waived:
        logging.warning(
            "pre-flight: %s is waived; whatever it measures does not stop the training", name
        )
    info = {
        "config_hash": identity.fingerprint(config),
        "data_hash": ctx.dataset.hash,
        "complete": not config.preflight.only,
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "versions": provenance.versions(),
    }
    if jax.process_index() == 0:
        recorded = baseline.record(verdict, *probe.recorded(ctx))
        changes = (
            baseline.moved(baseline.read(config.preflight.baseline), recorded)
            if config.preflight.baseline
            else None
        )
        report.write(workdir / "preflight", verdict, info, workdir.name, changes)
        baseline.write(workdir / "preflight", recorded)
        print(report.text(verdict))
        if changes is not None:
            print(report.text_of_changes(changes, config.preflight.baseline))
    return verdict
