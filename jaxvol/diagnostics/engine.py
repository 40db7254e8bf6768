"""The pre-flight: run the checks in order, hold what they measured against the limits of the
config, give one verdict.

A check is a file of this folder with
    RANK             its place: what causes trouble comes before what suffers from it, and the first
    red check is the cause applies(config)  whether it has anything to measure in this run
    diagnose(ctx)    Context -> Result
    prepare(ctx)     optional: compiles what takes long, on another thread while earlier checks run;
    whatever it raises is the check's
    MEANING          {metric: (what it means when it is out of its limit, what to do)}
and limits `config.preflight.limits.<name>.<metric> = (">" or "<", warn, fail)`: the metric has to
be on that side of `warn` for PASS and of `fail` for not FAIL.  A metric that is not a number, and a
check that raises, stop the run as well.
"""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import jax
from absl import logging

from jaxvol.types import Context, Result, UserError

PASS, WARN, FAIL, SKIP, ERROR = "PASS", "WARN", "FAIL", "SKIP", "ERROR"
WORST = (PASS, WARN, FAIL, ERROR)  # in this order
RED = (FAIL, ERROR)
SIGN = {"<": "≤", ">": "≥"}
# whose cheap readings are looked at while training (watch.py)
WATCHED = ("gradients", "prediction", "adversarial")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A check's result with its status and the reason for it."""

    name: str
    status: str
    result: Result
    limits: dict[str, tuple[str, float, float]]
    reason: str = ""
    remedy: str = ""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """PASS, WARN, FAIL or ERROR, the check that explains it, and what every check found."""

    status: str
    first: str
    outcomes: tuple[Outcome, ...]
    waived: tuple[str, ...]


def judge(value: float, limit: tuple[str, float, float]) -> str:
    """Status of one metric; what is not finite fails, unless it lies infinitely far on the right
    side.
    """
    side, warn, fail = limit
    if math.isnan(value):
        return FAIL
    sign = 1.0 if side == ">" else -1.0
    return FAIL if sign * value < sign * fail else WARN if sign * value < sign * warn else PASS


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def outcome(
    name: str,
    module: ModuleType,
    result: Result,
    limits: dict[str, tuple[str, float, float]],
    seconds: float,
) -> Outcome:
    """Hold the metrics of one check against its limits."""
    if result.skip:
        return Outcome(name, SKIP, result, limits, reason=result.skip, seconds=seconds)
    silent = sorted(set(limits) - set(result.metrics) - set(result.absent))
    if silent:
        return Outcome(
            name,
            ERROR,
            result,
            limits,
            seconds=seconds,
            remedy="mend the check, or remove the limit",
            reason=f"the check has limits for {', '.join(silent)} and measured none of them",
        )
    found = {
        metric: judge(float(result.metrics[metric]), limit)
        for metric, limit in limits.items()
        if metric in result.metrics
    }
    status = max(found.values(), key=WORST.index, default=PASS)
    bad = sorted((m for m, s in found.items() if s != PASS), key=lambda m: -WORST.index(found[m]))
    reasons = [
        f"{metric} is {number(result.metrics[metric])}, expected {SIGN[limits[metric][0]]} "
        f"{number(limits[metric][1 if found[metric] == WARN else 2])}: {module.MEANING[metric][0]}"
        for metric in bad
    ]
    return Outcome(
        name,
        status,
        result,
        limits,
        "; ".join(reasons),
        "; ".join(dict.fromkeys(module.MEANING[m][1] for m in bad)),
        seconds,
    )


def limits_of(config: Any, name: str) -> dict[str, tuple[str, float, float]]:
    """The limits of one check, as a plain dict."""
    block = config.preflight.limits
    return {metric: tuple(limit) for metric, limit in block[name].items()} if name in block else {}


def order(config: Any, checks: dict[str, ModuleType]) -> list[str]:
    """Names of the checks to run, by rank.  UserError when `only` or `waive` names one that does
    not exist.
    """
    asked = set(config.preflight.only) | set(config.preflight.waive)
    if unknown := sorted(asked - set(checks)):
        raise UserError(
            f"config.preflight names the check(s) {', '.join(unknown)}; there are "
            f"{', '.join(sorted(checks))}."
        )
    if unwatched := sorted(set(config.preflight.stop_on) - set(WATCHED)):
        raise UserError(
            f"config.preflight.stop_on names {', '.join(unwatched)}; while training only "
            f"{', '.join(WATCHED)} are looked at."
        )
    names = config.preflight.only or [
        name for name, module in checks.items() if module.applies(config)
    ]
    return sorted(names, key=lambda name: (checks[name].RANK, name))


def run(context: Context, checks: dict[str, ModuleType]) -> Verdict:
    """Run the checks that apply and judge them; a check that raises is an ERROR, not the end."""
    config, outcomes = context.config, []
    names = order(config, checks)
    with ThreadPoolExecutor(1) as beside:
        begun = {
            name: beside.submit(prepared, checks[name].prepare, context)
            for name in names
            if hasattr(checks[name], "prepare")
        }
        for i, name in enumerate(names):
            logging.info("pre-flight %d/%d: %s", i + 1, len(names), name)
            began, limits = time.monotonic(), limits_of(config, name)
            try:
                if name in begun:
                    begun[name].result()
                result = checks[name].diagnose(context)
                outcomes.append(
                    outcome(name, checks[name], result, limits, time.monotonic() - began)
                )
            except Exception as error:  # whatever it is, it is a reason not to start
                where = traceback.extract_tb(error.__traceback__)[-1]
                what = (
                    f"{type(error).__name__}: {error}"
                    if not isinstance(error, UserError)
                    else str(error)
                )
                outcomes.append(
                    Outcome(
                        name,
                        ERROR,
                        Result(),
                        limits,
                        f"it raised {what} ({where.name}, line {where.lineno})",
                        "mend what it says; if the check itself is wrong, waive it",
                        time.monotonic() - began,
                    )
                )
    return verdict(outcomes, tuple(config.preflight.waive))


def prepared(prepare: Callable[[Context], None], context: Context) -> None:
    """`prepare` on a thread of its own, which does not inherit the mesh; processes that compile
    together do it in one order, later.
    """
    if jax.process_count() == 1:
        with jax.set_mesh(context.mesh):
            prepare(context)


def verdict(outcomes: list[Outcome], waived: tuple[str, ...]) -> Verdict:
    """The worst status of what was not waived; the first red check, or the first WARN,
    explains it.
    """
    counted = [o for o in outcomes if o.name not in waived and o.status != SKIP]
    status = max((o.status for o in counted), key=WORST.index, default=PASS)
    red = [o.name for o in counted if o.status in RED] or [
        o.name for o in counted if o.status == WARN
    ]
    return Verdict(status, red[0] if red else "", tuple(outcomes), waived)
