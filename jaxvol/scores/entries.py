"""Entries of `config.task.metrics` and `config.task.losses`: from names and arguments to functions.

    metrics = ("vrmse", ("psnr", {"data_range": 800.0}), "mylab.metrics.my_metric")
    losses  = (("mse", 1.0), ("h1", 0.1, {"spacing": (1.0, 1.0, 1.0)}), ("mylab.losses.mine", 1.0))

A name without a dot is a function of jaxvol/scores/metrics.py or losses.py.  One with dots is the
path of the user's own function, which takes and returns what those do; its column or term bears the
last part of the path.  A parameter named like a field of the spec (`spacing`, `periodic`) is filled
in, unless the entry gives it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple

from jaxvol.runtime import modules
from jaxvol.scores import losses, metrics
from jaxvol.types import Array, Spec, UserError

Score = Callable[[Array, Array, Array | None], Array]
DIRECTIONS = ("higher", "lower")  # what `direction` of a metric may be
OF_SPEC = {*Spec.__dataclass_fields__, "box_size"}  # parameters that are filled in


class Entry(NamedTuple):
    """One entry of the config, taken apart."""

    path: str  # as the config has it: vrmse, mylab.metrics.my_metric
    arguments: dict[str, Any]
    weight: float = 1.0  # of a loss

    @property
    def name(self) -> str:
        """Of the column or the term."""
        return self.path.rpartition(".")[2]


def functions(module: ModuleType) -> dict[str, Callable]:
    """The public functions (pred, target, mask, ...) of a module (losses or metrics), in its order:
    what a config may name.
    """
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and inspect.isfunction(value)
        and list(inspect.signature(value).parameters)[:3] == ["pred", "target", "mask"]
    }


def metric(entry: Any) -> Entry:
    """Of `config.task.metrics`: a name, or (name, {argument: value}).  Raises UserError."""
    match (entry,) if isinstance(entry, str) else entry:
        case (str() as path,):
            return Entry(path, {})
        case (str() as path, arguments) if hasattr(arguments, "items"):
            return Entry(path, dict(arguments))
    raise UserError(
        f"config.task.metrics has {entry!r}; an entry is a name, or (name, {{argument: value}})."
    )


def loss(entry: Any) -> Entry:
    """Of `config.task.losses`: (name, weight), or (name, weight, {argument: value}).  Raises
    UserError.
    """
    match entry:
        case (str() as path, int() | float() as weight):
            return Entry(path, {}, weight)
        case (str() as path, int() | float() as weight, arguments) if hasattr(arguments, "items"):
            return Entry(path, dict(arguments), weight)
    raise UserError(
        f"config.task.losses has {entry!r}; an entry is (name, weight), or "
        "(name, weight, {argument: value})."
    )


def once(entries: Iterable[Entry], field: str) -> list[Entry]:
    """The entries.  Raises UserError where two would be one column or one term."""
    entries = list(entries)
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"config.task.{field} has {', '.join(twice)} more than once; expected each name once, "
            "as it names a column or a term."
        )
    if field == "metrics" and "loss" in names:
        raise UserError(
            "config.task.metrics has a metric called loss, and every table has a column of that "
            "name: what is descended; rename the function."
        )
    return entries


def function(module: ModuleType, entry: Entry) -> Callable:
    """What an entry names, in `module` (losses or metrics) or of the user's own.

    Raises UserError where there is no such function, and where it does not take the arguments.
    """
    field = f"task.{module.__name__.rpartition('.')[2]}"
    known = functions(module)
    if "." in entry.path:
        named = modules.function(entry.path, field)
    elif entry.path in known:
        named = known[entry.path]
    else:
        raise UserError(
            f"config.{field} has {entry.path!r}; expected one of {', '.join(sorted(known))}, or "
            "the path of a function of yours, package.module.function."
        )
    signature = inspect.signature(named)
    filled_in = dict.fromkeys(p for p in signature.parameters if p in OF_SPEC)
    try:
        signature.bind(None, None, None, **filled_in | entry.arguments)
    except TypeError as error:
        raise UserError(
            f"config.{field} has {entry.path!r} with the arguments {entry.arguments}, but it "
            f"takes {entry.name}{signature}: {error}."
        ) from error
    return named


def bound(module: ModuleType, entry: Entry, spec: Spec) -> Score:
    """The function (pred, target, mask) of an entry, with its arguments and what the spec says.

    Raises UserError as `function` does.
    """
    named = function(module, entry)
    given = {p: getattr(spec, p) for p in inspect.signature(named).parameters if p in OF_SPEC}
    given |= entry.arguments
    return functools.partial(named, **given) if given else named


def metric_functions(entries: Iterable[Any], spec: Spec) -> dict[str, Score]:
    """{column: function} of `config.task.metrics`.  Raises UserError for a wrong entry."""
    return {
        entry.name: bound(metrics, entry, spec) for entry in once(map(metric, entries), "metrics")
    }


def wrong_losses(entries: Iterable[Any]) -> list[str]:
    """What is wrong with `config.task.losses`, one sentence each."""
    return _wrong(losses, loss, entries)


def wrong_metrics(entries: Iterable[Any]) -> list[str]:
    """What is wrong with `config.task.metrics`, one sentence each."""
    return _wrong(metrics, metric, entries)


def _wrong(module: ModuleType, take_apart: Callable, entries: Iterable[Any]) -> list[str]:
    """What is wrong with the entries, one sentence each."""
    sound, problems = [], []
    for entry in entries:
        try:
            one = take_apart(entry)
            stated = getattr(function(module, one), "direction", "lower")
            if stated not in DIRECTIONS:
                raise UserError(
                    f"{one.path}.direction is {stated!r}; it has to be one of "
                    f"{', '.join(DIRECTIONS)}."
                )
            sound.append(one)
        except UserError as error:
            problems.append(str(error))
    try:
        once(sound, module.__name__.rpartition(".")[2])
    except UserError as error:
        problems.append(str(error))
    return problems
