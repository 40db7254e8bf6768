"""What a prediction and an update cost: operations, seconds, steps per second."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import numpy as np

from jaxvol.evaluation import tables
from jaxvol.ops import flops
from jaxvol.runtime import monitoring
from jaxvol.types import Batch, Extra, Metrics, Params, Task


def forward_gflop(task: Task, params: Params, extra: Extra, batch: Batch, size: int) -> float:
    """Floating-point operations of one example's prediction in 1e9, those of products and FFTs
    (ops/flops.py).
    """
    return flops.count(task.predict, params, extra, batch) / size / 1e9


def steps_per_second(workdir: Path) -> float:
    """Median over the run's log, compilation left out; NaN where there is no log."""
    rates = [v for _, tag, v, _ in monitoring.rows(workdir) if tag == "perf/steps_per_sec"]
    return float(np.median(rates)) if rates else float("nan")


def seconds(task: Task, params: Params, extra: Extra, batch: Batch) -> float:
    """Time of one prediction of a batch: the quickest of three, compilation left out."""
    run = jax.jit(task.predict)

    def once() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run(params, extra, batch))
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(3))


def tta_report(
    name: str, model: str, without: Metrics, averaged: Metrics, cost: list[float], views: int
) -> tuple[dict, str]:
    """What test-time augmentation gained and cost: (for metrics.json, text).

    name:     of the transforms; model: of the network.
    without:  metrics of one prediction; averaged: of the mean over `views` predictions.
    cost:     seconds per example, without and with.
    The gain says per metric how much better the average is than one prediction, in the metric's
    own unit; negative = worse.
    """
    one, mean = tables.scalars(without), tables.scalars(averaged)
    gain = {k: tables.direction(k) * (mean[k] - one[k]) for k in mean if tables.direction(k)}
    record = {
        "transforms": name,
        "views": views,
        "without": without,
        "gain": gain,
        "time_ratio": cost[1] / cost[0],
        "seconds_per_example": {"without": cost[0], "with": cost[1]},
    }
    label = tables.pretty(model)
    lines = {f"{label}, one prediction": one, f"{label}, mean of {views} ({name})": mean}
    return record, (
        f"\n\nTest-time augmentation: the scores above are those of the mean over {views} views.\n"
        f"{tables.table(lines, list(lines)[1:])}\n"
        f"It takes {cost[1] / cost[0]:.3g} times as long: {cost[1]:.3g} instead of {cost[0]:.3g} s "
        "per example."
    )
