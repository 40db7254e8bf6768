"""Columns of the tables of results: in which direction they are better, their order, and which of
them sentences are about.

A metric states this where it is defined, as attributes of its function: `direction` ("higher" or
"lower") and, where sentences lead with it, `headline`.  What summaries report beside functions
stands in SUMMARIES of jaxvol/scores/metrics.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxvol.scores import entries, metrics

SIGNS = {"higher": 1, "lower": -1, "": 0}
WORDS = {sign: word for word, sign in SIGNS.items()}


def direction(name: str, configured: Iterable[Any] = ()) -> int:
    """+1 where more of a column is better, -1 where less is, 0 where nobody knows.

    configured: `config.task.metrics`, which leads to the user's own functions.  An evaluator or a
    class may stand before or behind: `cases/vrmse`, `vrmse/gas` and `vrmse_mean` count as `vrmse`;
    a number of examples, `vrmse_count`, has no direction.
    """
    if name.endswith("_count"):
        return 0
    stated = {key: f.direction for key, f in entries.functions(metrics).items()}
    stated |= metrics.SUMMARIES
    for entry in map(entries.metric, configured):
        if "." in entry.path:
            stated[entry.name] = getattr(entries.function(metrics, entry), "direction", "")
    for part in name.split("/"):
        for key in sorted(stated, key=len, reverse=True):
            if part == key or part.startswith(f"{key}_"):
                return SIGNS[stated[key]]
    return 0


def directions(names: Iterable[str], configured: Iterable[Any] = ()) -> dict[str, str]:
    """{column: "higher" or "lower"} of those whose direction is known, as metrics.json keeps it.

    configured: see `direction`.
    """
    configured = tuple(configured)
    signs = {name: direction(name, configured) for name in names}
    return {name: WORDS[sign] for name, sign in signs.items() if sign}


def rank(name: str) -> int:
    """Place of a column: functions in the order of metrics.py, then everything else, then the loss
    and its terms.
    """
    known = list(entries.functions(metrics))
    return known.index(name) if name in known else len(known) + name.startswith("loss")


def headline(name: str) -> str:
    """What sentences call a metric that they are about; "" where there are none about it."""
    known = entries.functions(metrics)
    return getattr(known[name], "headline", "") if name in known else ""


def wrong_best(best: str, configured: Iterable[Any]) -> list[str]:
    """What is wrong with `config.checkpoint.best_metric`, beside a sound `config.task.metrics`."""
    names = [entries.metric(entry).name for entry in configured]
    if best not in (*names, "loss"):
        return [
            f"checkpoint.best_metric is {best!r}, which is neither in task.metrics nor 'loss'; "
            f"task.metrics has {', '.join(names)}."
        ]
    return [] if direction(best, configured) else [undirected(best)]


def undirected(best: str) -> str:
    """The sentence for a `config.checkpoint.best_metric` whose direction nobody knows."""
    return (
        f"checkpoint.best_metric is {best!r}, and nothing says whether more or less of it is "
        f'better: write {best}.direction = "higher" or {best}.direction = "lower" below the '
        "function that config.task.metrics names, or choose another metric."
    )
