"""Command line: flags to modes, errors to exit statuses.

    python -m jaxvol.main --config=configs/fno.py[:variant] [--config.a.b=value] [--workdir=DIR] [--mode=MODE]

Exit status: 0 finished, 75 saved but unfinished (run the same command again), 1 user or input error,
2 pre-flight FAIL or ERROR, 3 non-finite, 4 workdir in use.
"""
from __future__ import annotations

import dataclasses
import shutil
import sys
import time
import traceback
from logging import Formatter
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from jaxvol import build, checkpoint, compare, context, inference, preflight, sharding, train, validate, writer
from jaxvol.diagnostics import watch
from jaxvol.types import Alarm, NonFiniteError, Parts, UserError, WorkdirLocked

MODES = ("train", "preflight", "evaluate", "predict", "compare")
UNFINISHED, REFUSED = 75, 2


def parse(argv: list[str]) -> tuple[ConfigDict, str, Path]:
    """(config, mode, workdir) of a command line.  Raises UserError for anything that cannot be understood."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "config file, FILE.py or FILE.py:variant", flag_values=values,
                                    sys_argv=argv, lock_config=True)
    flags.DEFINE_enum("mode", "train", MODES, "what to do", flag_values=values)
    flags.DEFINE_string("workdir", "", "folder of the run; default runs/<config file>[-variant]", flag_values=values)
    flags.DEFINE_bool("help", False, "this text", flag_values=values)
    try:
        rest = values(argv)
    except Exception as error:      # absl, ml_collections and the config file itself raise many types
        if not isinstance(error, (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)):
            traceback.print_exc()
        raise UserError(f"The command line cannot be used: {str(error).splitlines()[-1]}") from error
    if values.help or not values["config"].value:
        raise UserError(f"{__doc__.split(chr(10) * 2)[1].strip()}\n    modes: {', '.join(MODES)}; configs: "
                        + ", ".join(sorted(f"configs/{p.name}" for p in Path("configs").glob("*.py") if p.stem != "base")))
    if rest[1:]:
        raise UserError(f"Arguments {' '.join(rest[1:])} are not understood; overrides look like --config.total_steps=100.")
    file, _, variant = values["config"].config_filename.partition(":")
    if not Path(file).is_file():        # absl reports it only when the config is first used
        raise UserError(f"--config={file}: there is no such file, seen from {Path.cwd()}.")
    default = Path("runs") / (f"{Path(file).stem}-{variant}" if variant else Path(file).stem)
    return values.config, values.mode, Path(values.workdir or default)


def prepare(config: ConfigDict) -> None:
    """Process-wide JAX settings of a run."""
    jax.config.update("jax_enable_x64", config.precision == "f64")
    if config.matmul_precision != "default":
        jax.config.update("jax_default_matmul_precision", config.matmul_precision)


def check_resume(config: ConfigDict, workdir: Path) -> None:
    """UserError if the workdir holds a run of another config; with resume=fresh its checkpoints are put aside."""
    file = workdir / "config.json"
    if not file.exists():
        return
    if config.resume == "fresh":
        for name in ("checkpoints", "metrics.csv", "perf.csv"):
            if (workdir / name).exists():
                aside = workdir / "discarded" / time.strftime("%Y%m%d-%H%M%S")
                aside.mkdir(parents=True, exist_ok=True)
                shutil.move(str(workdir / name), str(aside / name))
        return
    changed = build.differences(writer.read_config(file), config)
    if changed:
        raise UserError(f"{workdir} holds a run with another config:\n  - " + "\n  - ".join(changed) +
                        "\nUse the old values to go on, another --workdir for a new run, or --config.resume=fresh to start over.")


def do_train(config: ConfigDict, workdir: Path) -> int:
    """Train to the end or to the next interruption, then score the test split."""
    for doubt in validate.validate(config):
        logging.warning("%s", doubt)
    check_resume(config, workdir)
    mesh = sharding.make_mesh(config.mesh)
    plan = train.phases(config)
    cache: dict[int, Parts] = {}

    def parts_of(index: int) -> Parts:
        if index not in cache:
            cache.clear()           # one phase's dataset and programs at a time
            _, start, stop, phase = plan[index]
            cache[index] = context.parts(phase, mesh, stop - start)
        return cache[index]

    with jax.set_mesh(mesh), train.lock(workdir):
        parts = parts_of(0)
        if config.preflight.run and not checkpoint.steps(workdir) and not preflight.passed(config, workdir, parts):
            verdict = preflight.run(plan[0][3], workdir, mesh, plan[0][2], parts)
            if verdict.status in preflight.STOPS:
                print(f"The training was not started. Mend {verdict.first} first, or let it pass with "
                      f"--config.preflight.waive=\"('{verdict.first}',)\"; the report is {workdir}/preflight/report.html.")
                return REFUSED
        log = writer.open_run(workdir, config, jax.process_index() == 0)
        meta = {"config": config.to_json(), "config_hash": build.fingerprint(config), "data_hash": parts.dataset.hash,
                "versions": writer.versions()}
        run = train.Run(config=config, mesh=mesh, store=checkpoint.open_store(workdir, config.checkpoint.keep), writer=log,
                        meta=meta, figures=inference.example_figure, watch=watch.make(config))
        log.text(writer.table(parts.struct.params))
        status = "failed"
        try:
            status = train.train(run, parts_of, (lambda chosen: context.initial(chosen, mesh)) if config.init_from else None)
        finally:
            done, skipped = status in ("finished", "early_stopped"), cache[max(cache)].dataset.skipped()
            for line in skipped:
                logging.warning("skipped: %s", line)
            log.status({"state": status if done or status == "failed" else "saved", "step": run.saved,
                        "total": plan[-1][2], "reason": "" if done else status, "best": dataclasses.asdict(run.progress),
                        "skipped": skipped})
            log.close()
            run.store.manager.close()
    if not done:
        print(f"Stopped: {status}. Everything up to step {run.saved} of {plan[-1][2]} is saved in {workdir}; "
              "run the same command again to go on.")
        return UNFINISHED
    return do_evaluate(config, workdir)


def do_preflight(config: ConfigDict, workdir: Path) -> int:
    """The verdict only."""
    for doubt in validate.validate(config):
        logging.warning("%s", doubt)
    mesh = sharding.make_mesh(config.mesh)
    _, _, steps, phase = train.phases(config)[0]
    with jax.set_mesh(mesh):
        verdict = preflight.run(phase, workdir, mesh, steps, None)
    print(f"The report is {workdir}/preflight/report.html.")
    return REFUSED if verdict.status in preflight.STOPS else 0


def do_evaluate(config: ConfigDict, workdir: Path) -> int:
    """Score the split with the model and the baselines; the run's own config decides everything but `config.evaluate`."""
    mesh = sharding.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        print(inference.evaluate_run(config.evaluate, workdir, mesh))
    return 0


def do_predict(config: ConfigDict, workdir: Path) -> int:
    """Predict files with a trained model."""
    with jax.set_mesh(sharding.one_device()):
        inference.predict_run(config, workdir)
    return 0


def do_compare(config: ConfigDict, workdir: Path) -> int:
    """Put several evaluated runs side by side."""
    runs = [name.strip() for name in config.compare.runs.split(",") if name.strip()]
    if not runs:
        raise UserError("--mode=compare needs --config.compare.runs=WORKDIR,WORKDIR,...")
    print(compare.compare(runs, workdir))
    return 0


def quiet_libraries() -> None:
    """Show our own messages, without stamps, and of other packages only errors (Orbax tells forty lines per save)."""
    ours = str(Path(__file__).parent)
    flags.FLAGS.mark_as_parsed()        # absl's logger waits for its own flags, which we do not use
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.addFilter(lambda record: record.pathname.startswith(ours) or record.levelno >= logging.converter.STANDARD_ERROR)
    handler.setFormatter(Formatter("%(message)s"))


def cli(argv: list[str]) -> int:
    """Run one command line; returns the exit status."""
    quiet_libraries()
    try:
        config, mode, workdir = parse(argv)
        prepare(config)
        return {"train": do_train, "preflight": do_preflight, "evaluate": do_evaluate, "predict": do_predict, "compare": do_compare}[mode](config, workdir)
    except UserError as error:
        print(f"\njaxvol: {error}", file=sys.stderr)
        return 1
    except Alarm as error:
        print(f"\njaxvol: {error}", file=sys.stderr)
        return REFUSED
    except NonFiniteError as error:
        print(f"\njaxvol: {error}", file=sys.stderr)
        return 3
    except WorkdirLocked as error:
        print(f"\njaxvol: {error}", file=sys.stderr)
        return 4


if __name__ == "__main__":
    sys.exit(cli(sys.argv))
