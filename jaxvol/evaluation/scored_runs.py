"""What is known of evaluated runs: their scores, their configs, whether they can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxvol.config import identity
from jaxvol.evaluation import report
from jaxvol.scores import columns
from jaxvol.types import UserError

# Fields in which the runs of one line of a table may differ: their seed, and what may change when a
# run goes on.  That is all of `evaluate`, most of which only says what is scored afterwards (the
# scores bear it themselves, and `doubts` tells where it differs), and of `checkpoint` how often and
# how many are saved; what "best" means is not in it.
FREE = ("seed", *identity.RUN_ONLY)
# Not in which these differ, though a run may go on with others, because they shape the result: the
# length of a run, and how it is validated, which decides the "best" checkpoint, early stopping and
# the schedule `plateau`.
SHAPING = ("total_steps", "evaluate.every", "evaluate.max_examples", "evaluate.weights")


class Run(NamedTuple):
    """What is known of one evaluated workdir."""

    workdir: Path
    scores: dict[str, Any]  # its metrics.json
    family: str  # equal for runs that differ only in their seed
    seed: int
    task: dict[str, Any]  # its config.task, flattened


# Fields of config.task that say what is reported, and not what the row `loss` is.
REPORTING = ("metrics", "spectra")


def read(workdir: Path, split: str, checkpoint: str) -> Run:
    """The scores of a checkpoint on a split, and the config of one workdir.

    Where this checkpoint was not scored, the one that the run's own config names is taken, if it is
    for the same split; `doubts` says so.  UserError: nothing was scored, or a file is broken.
    """
    config = read_json(
        workdir / "config.json", "it is written when a run starts; is this the workdir of a run?"
    )
    config = config["config"] if "config" in config else config
    config = json.loads(config) if isinstance(config, str) else config
    if missing := {"seed", "evaluate"} - config.keys():
        raise UserError(
            f"{workdir / 'config.json'} has no field {', '.join(sorted(missing))}; is this the "
            "workdir of a run?"
        )
    folder = report.folder(workdir, config["evaluate"], split, checkpoint)
    if not folder.exists() and split == config["evaluate"]["split"]:
        folder = workdir / "evaluation"
    scores = read_json(
        folder / "metrics.json",
        f"score the run first: python -m jaxvol.main --config=... --workdir={workdir} "
        f"--mode=evaluate --config.evaluate.split={split} "
        f"--config.evaluate.checkpoint={checkpoint}",
    )
    if "model" not in scores or "baselines" not in scores:
        raise UserError(
            f"{folder / 'metrics.json'}: keys {sorted(scores)}; expected model and baselines"
        )
    task = identity.flatten(config["task"]) if "task" in config else {}
    return Run(workdir, scores, family(config), int(config["seed"]), task)


def family(config: Mapping[str, Any]) -> str:
    """All fields of a config that shape the result of a run, but for its seed."""
    shaping = {
        name: value
        for name, value in identity.flatten(config).items()
        if name in SHAPING or not any(name == f or name.startswith(f + ".") for f in FREE)
    }
    return json.dumps(shaping, sort_keys=True)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object from a file; UserError naming the file otherwise."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; expected an object; {remedy}")
    return value


def check_same_data(runs: Sequence[Run]) -> None:
    """UserError unless every run was scored on the same examples."""
    groups: dict[tuple, list[str]] = {}
    for run in runs:
        data = tuple(
            run.scores[k] if k in run.scores else None for k in ("data_hash", "split", "examples")
        )
        groups.setdefault(data, []).append(str(run.workdir))
    if len(groups) > 1:
        listed = "".join(
            f"\n  data {h}, split {s}, {n} examples: {', '.join(names)}"
            for (h, s, n), names in groups.items()
        )
        raise UserError(
            "these runs were scored on different examples, so their numbers cannot be "
            f"compared:{listed}\n"
            "Compare each group on its own, or evaluate all of them on the same data and split."
        )


def doubts(runs: Sequence[Run]) -> list[str]:
    """What makes the runs less comparable than the table looks."""
    warnings = []
    for key in ("weights", "checkpoint"):
        values = [str(run.scores[key]) if key in run.scores else "unknown" for run in runs]
        if len(set(values)) > 1:
            listed = (f"{run.workdir} {v}" for run, v in zip(runs, values, strict=True))
            warnings.append(f"the runs were scored with different {key}: {', '.join(listed)}")
    for run in runs:
        if "non_finite" in run.scores and "model" in run.scores["non_finite"]:
            warnings.append(
                f"{run.workdir} has values that are not finite: "
                f"{', '.join(run.scores['non_finite']['model'])}"
            )
    return warnings


def other_losses(runs: Sequence[Run]) -> list[str]:
    """Fields of config.task in which the losses of the runs differ; [] where one can rank them."""
    names = dict.fromkeys(name for run in runs for name in run.task)
    return [
        f"task.{name}"
        for name in names
        if name.split(".")[0] not in REPORTING
        and len({json.dumps(run.task[name] if name in run.task else None) for run in runs}) > 1
    ]


def is_loss(column: str) -> bool:
    """Whether a column is what was descended: `loss`, `cases/loss`."""
    return "loss" in column.split("/")


def directions(runs: Sequence[Run], names: Sequence[str]) -> dict[str, str]:
    """{column: "higher" or "lower"} as the evaluations stored it, the user's own metrics included.

    A column that runs mean differently has none, nor has a loss that they do not share.  Scores
    without stored directions say nothing of the user's own metrics.
    """
    stated = [
        run.scores["directions"] if "directions" in run.scores else columns.directions(names)
        for run in runs
    ]
    words = {name: {one[name] for one in stated if name in one} for name in names}
    differ = bool(other_losses(runs))
    return {
        name: word.pop()
        for name, word in words.items()
        if len(word) == 1 and not (differ and is_loss(name))
    }


def footnotes(runs: Sequence[Run]) -> list[str]:
    """What a reader has to know about columns of the table."""
    if fields := other_losses(runs):
        return [
            "loss: the runs minimised different losses, so that none is the best; they differ in "
            f"{', '.join(fields)}."
        ]
    return []
