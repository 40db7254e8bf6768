"""The pre-flight: run the checks in order, hold what they measured against limits, give a verdict.

A check is a file of jaxvol/diagnostics/checks, or a module of the user's own that the config names
in `preflight.checks`, with

    RANK             its place: what causes trouble comes before what suffers from it, and the first
                     red check is the cause
    applies(config)  whether it has anything to measure in this run
    diagnose(ctx)    Context -> Result
    prepare(ctx)     optional: compiles what takes long, on another thread while earlier checks run;
                     an error that it raises counts as the check's
    MEANING          {metric: (what it means when it is out of its limit, what to do)}
    LIMITS           {metric: (">" or "<", warn, fail)}: the metric has to be on that side of `warn`
                     for PASS and of `fail` for not FAIL; `config.preflight.limits.<name>` overrides

A metric that is not a number, and a check that raises, stop the run as well.  So does a check that
measures nothing that has a limit, unless its Result says why (`skip`).
"""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any

import jax
from absl import logging

from jaxvol.diagnostics.records import Context
from jaxvol.types import Result, UserError

PASS, WARN, FAIL, SKIP, ERROR = "PASS", "WARN", "FAIL", "SKIP", "ERROR"
WORST = (PASS, WARN, FAIL, ERROR)  # in this order
RED = (FAIL, ERROR)
SIGN = {"<": "≤", ">": "≥"}
# checks whose cheap readings are looked at while training (watch.py)
WATCHED = ("gradients", "prediction", "adversarial")
Limits = dict[str, tuple[str, float, float]]  # metric -> (side, warn, fail)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A check's result with its status and the reason for it."""

    name: str
    status: str
    result: Result
    limits: Limits
    reason: str = ""
    remedy: str = ""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """PASS, WARN, FAIL or ERROR, the check that explains it, and the outcome of every check."""

    status: str
    first: str
    outcomes: tuple[Outcome, ...]
    waived: tuple[str, ...]


def judge(value: float, limit: tuple[str, float, float]) -> str:
    """Status of one metric; NaN fails, an infinity only on the wrong side of the limit."""
    side, warn, fail = limit
    if math.isnan(value):
        return FAIL
    sign = 1.0 if side == ">" else -1.0
    return FAIL if sign * value < sign * fail else WARN if sign * value < sign * warn else PASS


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def outcome(
    name: str, module: ModuleType, result: Result, limits: Limits, seconds: float
) -> Outcome:
    """Hold the metrics of one check against its limits."""
    if result.skip:
        return Outcome(name, SKIP, result, limits, result.skip, seconds=seconds)
    if reason := unmeasured(module, result, limits):
        remedy = "mend the check, or remove the limit"
        return Outcome(name, ERROR, result, limits, reason, remedy, seconds)
    statuses = {
        metric: judge(float(result.metrics[metric]), limit)
        for metric, limit in limits.items()
        if metric in result.metrics
    }
    status = max(statuses.values(), key=WORST.index)
    bad = [metric for metric in sorted(statuses) if statuses[metric] != PASS]
    bad.sort(key=lambda metric: WORST.index(statuses[metric]), reverse=True)
    reasons = []
    for metric in bad:
        side, warn, fail = limits[metric]
        expected = f"{SIGN[side]} {number(warn if statuses[metric] == WARN else fail)}"
        meaning = module.MEANING[metric][0]
        value = number(result.metrics[metric])
        reasons.append(f"{metric} is {value}, expected {expected}: {meaning}")
    remedies = dict.fromkeys(module.MEANING[metric][1] for metric in bad)
    return Outcome(name, status, result, limits, "; ".join(reasons), "; ".join(remedies), seconds)


def unmeasured(module: ModuleType, result: Result, limits: Limits) -> str:
    """Why limits without a measurement are an error; "" where they are none.

    A metric may be absent from a run; a Result without `absent` leaves out whatever it did not
    measure of MEANING.
    """
    absent = module.MEANING if result.absent is None else result.absent
    if missing := sorted(set(limits) - set(result.metrics) - set(absent)):
        return f"the check has limits for {', '.join(missing)} and did not measure them"
    if not set(limits) & set(result.metrics):
        return "the check measured nothing that has a limit, and did not say why"
    return ""


def limits_of(config: Any, name: str, module: ModuleType) -> Limits:
    """Metric -> limit of one check: its own LIMITS, and what the config has instead of them."""
    block = config.preflight.limits
    changed = block[name].items() if name in block else ()
    return {**module.LIMITS, **{metric: tuple(limit) for metric, limit in changed}}


def order(config: Any, checks: dict[str, ModuleType]) -> list[str]:
    """Names of the checks to run, by rank.  UserError when `only` or `waive` names one that does
    not exist.
    """
    named = set(config.preflight.only) | set(config.preflight.waive)
    if unknown := sorted(named - set(checks)):
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
        preparations = {
            name: beside.submit(prepared, checks[name].prepare, context)
            for name in names
            if hasattr(checks[name], "prepare") and not unmet(context, checks[name])
        }
        for i, name in enumerate(names):
            logging.info("pre-flight %d/%d: %s", i + 1, len(names), name)
            outcomes.append(examined(context, name, checks[name], preparations.get(name)))
    return verdict(outcomes, tuple(config.preflight.waive))


def examined(
    context: Context, name: str, module: ModuleType, preparation: Future | None
) -> Outcome:
    """The outcome of one check, whatever happens in it."""
    began, limits = time.monotonic(), limits_of(context.config, name, module)
    if missing := unmet(context, module):
        return outcome(name, module, Result(skip=missing), limits, 0.0)
    try:
        if preparation is not None:
            preparation.result()
        result = module.diagnose(context)
        return outcome(name, module, result, limits, time.monotonic() - began)
    except Exception as error:  # whatever it is, it is a reason not to start
        where = traceback.extract_tb(error.__traceback__)[-1]
        label = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return Outcome(
            name,
            ERROR,
            Result(),
            limits,
            f"it raised {label}{error} ({where.name}, line {where.lineno})",
            "mend what it says; if the check itself is wrong, waive it",
            time.monotonic() - began,
        )


def unmet(context: Context, module: ModuleType) -> str:
    """What a check needs and the run's task does not have, as the reason to skip it."""
    needs = module.NEEDS if hasattr(module, "NEEDS") else ()
    missing = [name for name in needs if name not in context.task.provides]
    return f"it needs {', '.join(missing)}, which this task does not have" if missing else ""


def prepared(prepare: Callable[[Context], None], context: Context) -> None:
    """`prepare` on a thread of its own, which does not inherit the mesh; processes that compile
    together do it in one order, later.
    """
    if jax.process_count() == 1:
        with jax.set_mesh(context.mesh):
            prepare(context)


def verdict(outcomes: list[Outcome], waived: tuple[str, ...]) -> Verdict:
    """The worst status of what was not waived; the first red check, or else the first WARN,
    explains it.
    """
    counted = [o for o in outcomes if o.name not in waived and o.status != SKIP]
    status = max((o.status for o in counted), key=WORST.index, default=PASS)
    red = [o.name for o in counted if o.status in RED]
    warned = [o.name for o in counted if o.status == WARN]
    return Verdict(status, (red or warned or [""])[0], tuple(outcomes), waived)
