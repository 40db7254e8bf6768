"""The learning rate that the optimizer really uses, over the whole run, held against the config.

The group's own optimizer is run on one dummy weight for every update of the first phase, which
costs next to nothing; the first updates of the real step have to report the same rates.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.ops.quasi_newton import SEARCHED
from jaxvol.plots import figures
from jaxvol.training import optim
from jaxvol.types import Result

RANK = 30
NEEDS = ()
MEANING = {
    "peak": (
        "highest rate used, as a fraction of optimizer.learning_rate",
        "the schedule never reaches its peak: check warmup_steps, period and boundaries against "
        "total_steps",
    ),
    "excess": (
        "highest rate used, as a multiple of optimizer.learning_rate",
        "the schedule overshoots: check its factors",
    ),
    "dead_share": (
        "share of the updates whose rate is below a thousandth of the peak",
        "the schedule is shorter than the run, or its floor is zero for long: these updates learn "
        "nothing",
    ),
    "jump": (
        "largest factor between the rates of two updates in a row, after the warm-up",
        "a restart or a step of the schedule: wanted only with schedule 'step', 'cyclic' or "
        "'plateau'",
    ),
    "mismatch": (
        "difference between the rates that the real step reports and those of the schedule, "
        "relative to the peak",
        "the optimizer does not use the schedule that the config describes",
    ),
    "pretrained_start": (
        "rate of the first update on pretrained weights, as a fraction of optimizer.learning_rate",
        "a warm-up is for random weights: set optimizer.schedule.warmup_steps=0 with init_from",
    ),
}
LIMITS = {
    "peak": (">", 0.999, 0.9),  # fraction of the config's rate
    "excess": ("<", 1.001, 1.1),  # multiple of the config's rate
    "dead_share": ("<", 0.2, 0.5),  # share of updates
    "jump": ("<", 3.0, 1e9),  # factor between neighbours
    "mismatch": ("<", 1e-4, 1e-2),  # relative
    "pretrained_start": (">", 0.5, 0.2),  # fraction of the config's rate, with init_from only
}


def applies(config) -> bool:
    return config.optimizer.name not in SEARCHED


def rates(ctx: Context, group: str, steps: int) -> np.ndarray:
    """Learning rate of every update of a group, by running its optimizer on one dummy weight."""
    optimizer, weight = ctx.optimizers[group], {"w": jnp.zeros(2)}
    monitor = {"value": jnp.float32(jnp.inf), "count": jnp.int32(0)}

    def update(state, _):
        gradient = jax.tree.map(jnp.ones_like, weight)
        _, state = optimizer.update(
            gradient,
            state,
            weight,
            value=jnp.float32(1),
            grad=gradient,
            value_fn=lambda p: jnp.float32(1),
            monitor=monitor,
        )
        return state, ctx.readings(state)["lr"]

    return np.asarray(
        jax.jit(lambda s: jax.lax.scan(update, s, length=steps)[1])(optimizer.init(weight))
    )


def diagnose(ctx: Context) -> Result:
    """The worst group of each metric."""
    history = finite_part(probe.short_run(ctx)[1])
    measured, table, curves = [], [], {}
    for group in ctx.state.params:
        if f"{group}/lr" not in history[0]:
            continue
        planned = rates(ctx, group, ctx.steps)
        loss_of = probe.objective_of(ctx)[group]
        real, loss, norm = (
            np.array([row[name] for row in history])
            for name in (f"{group}/lr", f"{loss_of}/loss", f"{group}/grad_norm")
        )
        measured.append(measure(ctx.config, group, planned, real[: ctx.steps]))
        moving = real > 0
        table.append(
            {
                "group": group,
                "first": planned[0],
                "highest": planned.max(),
                "last": planned[-1],
                "rank correlation of rate and loss": rank_correlation(real[moving], loss[moving]),
                "of rate and gradient norm": rank_correlation(real[moving], norm[moving]),
            }
        )
        curves[group] = (planned, real, loss, norm)
    metrics = {
        name: (min if LIMITS[name][0] == ">" else max)(values[name] for values in measured)
        for name in measured[0]
    }
    return Result(metrics, {"rates": table}, {"learning rate": draw(curves)})


def finite_part(history: list[dict]) -> list[dict]:
    """The updates before the first that is not finite; at least one."""
    finite = [np.isfinite(list(row.values())).all() for row in history]
    return history[: finite.index(False)] or history[:1] if False in finite else history


def measure(config, group: str, planned: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Metric -> value of one group, from the rates of all updates and those that the first
    reported.
    """
    settings = optim.settings(config.optimizer, group)
    wanted, warmup = float(settings.learning_rate), int(settings.schedule.warmup_steps)
    # a group that waits reports 0 at the steps that do not move it
    used = planned[planned > 0]
    highest = used.max(initial=0.0)
    metrics = {
        "peak": highest / wanted,
        "excess": highest / wanted,
        "dead_share": float((used < 1e-3 * wanted).mean()) if len(used) else 1.0,
        "mismatch": float(np.abs(real - planned[: len(real)]).max() / wanted),
    }
    # these schedules jump because the config says so
    if config.optimizer.schedule.name not in ("step", "cyclic", "plateau"):
        factors = np.abs(np.diff(np.log(used[warmup:])))
        metrics["jump"] = float(np.exp(factors.max(initial=0.0)))
    if config.init_from:
        metrics["pretrained_start"] = used[0] / wanted
    return metrics


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; 0 where one of the two does not change."""
    return (
        float(spearmanr(a, b).statistic) if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0
    )


def draw(curves: dict):
    """The planned rate of the whole run, and rate, loss and gradient norm of the first updates."""
    figure = figures.canvas(10.0, 3.6)
    left, right = figure.subplots(1, 2)
    for (group, (planned, real, loss, norm)), colour in zip(curves.items(), figures.COLOURS):
        left.plot(planned, color=colour, label=f"{group}, planned")
        left.plot(real, ".", color=colour, markersize=4, label=f"{group}, reported by the step")
        for name, values, dash in (
            ("rate", real, ":"),
            ("loss", loss, "-"),
            ("gradient norm", norm, "--"),
        ):
            top = max(np.max(np.abs(values)), 1e-30)
            right.plot(
                np.asarray(values) / top, dash, color=colour, label=f"{group} {name} (/ {top:.3g})"
            )
    left.set(xlabel="update", ylabel="learning rate")
    right.set(xlabel="update", ylabel="fraction of its largest value")
    for panel in (left, right):
        panel.legend(fontsize=8)
    return figure
