"""While a run trains: the readings that cost next to nothing, at every evaluation, against the
limits of the pre-flight.

Clipped share of the gradient, share of each term of a generator, balance of a discriminator,
collapse and saturation of the predictions.  (A step that is not finite stops every run by itself.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from jaxvol.diagnostics import engine, probe
from jaxvol.diagnostics.checks import adversarial, gradients, prediction
from jaxvol.types import Alarm, Parts, Result

MODULES = dict(zip(engine.WATCHED, (gradients, prediction, adversarial)))


def measure(
    readings: dict[str, float], y: np.ndarray | None, target: np.ndarray | None
) -> dict[str, dict[str, float]]:
    """check -> metric -> value, from the values that the last update reported and from predictions
    next to their targets.
    """
    metrics: dict[str, dict[str, float]] = {name: {} for name in MODULES}
    lost = [
        1 - readings[f"{name.removesuffix('/grad_norm')}/clipped_norm"] / value
        for name, value in readings.items()
        if name.endswith("/grad_norm") and value > 0
    ]
    if lost:
        metrics["gradients"]["clipped"] = max(lost)
    shares = [value for name, value in readings.items() if "/share_" in name]
    if len(shares) > 1:
        metrics["gradients"]["largest_share"] = max(shares)
    if "disc/accuracy_real" in readings:
        metrics["adversarial"] = {
            "one_sided": abs(readings["disc/accuracy_real"] - readings["disc/accuracy_fake"]),
            "response": abs(readings["disc/D_real"] - readings["disc/D_fake"]),
        }
    if y is not None and target is not None:
        metrics["prediction"] = prediction.shape(y, target)
    return {check: values for check, values in metrics.items() if values}


def judge(config: Any, measured: dict[str, dict[str, float]]) -> list[engine.Outcome]:
    """What is out of its limits."""
    outcomes = []
    for check, metrics in measured.items():
        limits = engine.limits_of(config, check, MODULES[check])
        outcomes.append(engine.outcome(check, MODULES[check], Result(metrics), limits, 0.0))
    return [o for o in outcomes if o.status != engine.PASS]


def make(config: Any) -> Callable[[Parts, tuple, dict, dict, int], None]:
    """(parts, params and extra that are validated, evaluation batch, readings of the last update,
    step): warn of what is out of its limits.  It raises Alarm where `preflight.stop_on` names the
    check that is red.
    """

    @functools.lru_cache(maxsize=1)
    def forward(task):
        return jax.jit(task.predict)

    def look(parts: Parts, pair: tuple, batch: dict, readings: dict[str, float], step: int) -> None:
        y = target = None
        # no process sees the whole of the others' volumes
        if "target" in batch and "input" in batch and jax.process_count() == 1:
            real = prediction.known(batch)
            if real.any():
                y = forward(parts.task)(*pair, probe.unmarked(batch))
                y = np.asarray(jax.device_get(y), np.float64)[real]
                target = np.asarray(batch["target"], np.float64)[real]
        for o in judge(config, measure(readings, y, target)):
            logging.warning(
                "step %d: %s is %s: %s (%s)", step, o.name, o.status, o.reason, o.remedy
            )
            if o.status == engine.FAIL and o.name in config.preflight.stop_on:
                raise Alarm(
                    f"Stopped at step {step}: {o.name} is red, and config.preflight.stop_on names "
                    f"it. {o.reason}. {o.remedy}. The newest checkpoint is kept."
                )

    return look
