"""jaxvol trains 3D models that can be trusted: `python -m jaxvol.main --config=configs/fno.py`.

The same from Python; everything heavy is imported only when it is called:

    predict, config, spec = jaxvol.load("runs/fno")     # trained weights as a function
    verdict = jaxvol.preflight(config)                  # the checks, with tables and figures
    status = jaxvol.train(config, "runs/mine")          # what --mode=train does
"""

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "experiment", "load", "predict", "preflight", "train"]


def load(workdir, which="best", weights="ema", transforms="none"):
    """(predict, config, spec) of a run, see jaxvol.evaluation.loading.load.

    which: best | final | <step>; weights: ema | raw; transforms: see config.evaluate.tta.
    """
    from jaxvol.evaluation import loading

    return loading.load(workdir, which, weights, transforms)


def experiment(name, variant=""):
    """The config of an experiment that comes with jaxvol: `experiment("fno", "quick")`.

    It is not locked: change it, then hand it to `preflight` or `train`.
    """
    from jaxvol.config import experiments

    return experiments.load(name).get_config(variant)


def preflight(config, only=()):
    """The checks `only` (() = all that apply) of a config: a Verdict with tables and figures.

    See jaxvol.diagnostics.preflight.look; nothing is written.
    """
    from jaxvol.diagnostics import preflight as checks

    return checks.look(config, tuple(only))


def train(config, workdir):
    """Pre-flight, train and evaluate in `workdir`, or go on where it stopped.

    Returns the exit status of the command line: 0 finished, 75 saved but unfinished, 2 refused by
    the pre-flight.  Errors are raised (jaxvol.types.UserError and its kind).
    """
    return _run("do_train", config, workdir)


def evaluate(config, workdir):
    """Score a run's split as `config.evaluate` says; writes `<workdir>/evaluation/`.  Returns 0."""
    return _run("do_evaluate", config, workdir)


def predict(config, workdir):
    """Predict the files of `config.predict.input`; writes `<workdir>/predictions/`.  Returns 0."""
    return _run("do_predict", config, workdir)


def _run(mode, config, workdir):
    from pathlib import Path

    from jaxvol import main
    from jaxvol.runtime import quiet

    quiet.libraries()
    main.prepare(config)
    return getattr(main, mode)(config, Path(workdir))
