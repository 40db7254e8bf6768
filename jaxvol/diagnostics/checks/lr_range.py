"""Learning-rate range test (Smith 2017, arXiv:1506.01186) with the real step, and three rules that
read it.

The step's own update is scaled to a rate that grows by a constant factor: an optimizer's update is
proportional to its rate, so nothing is compiled for it.  (Weight decay scales along.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.ops.quasi_newton import SEARCHED
from jaxvol.plots import figures
from jaxvol.training import optim
from jaxvol.types import Result

RANK = 46
NEEDS = ()
# highest over lowest rate; the config's rate lies at a tenth of the highest
SPAN = 1e4
MEANING = {
    "rate_over_divergence": (
        "the config's learning rate as a fraction of the rate at which the loss blows up",
        "lower optimizer.learning_rate, see the suggestions",
    ),
    "rate_over_suggestion": (
        "the config's learning rate as a fraction of the median suggestion",
        "the rate is much lower than the loss can bear: training will be slow; see the suggestions",
    ),
    "refused": (
        "share of the run's first updates that were refused because something was not finite, if "
        "the very first was not",
        "training diverges at once: lower optimizer.learning_rate or warm up for longer",
    ),
    "fall": (
        "share of the loss that falls during the range test",
        "no rate makes the loss fall: look at gradients and structure",
    ),
}
LIMITS = {
    "rate_over_divergence": ("<", 0.5, 1.0),  # fraction
    "refused": ("<", 0.0, 0.0),  # share of the first updates
    "rate_over_suggestion": (">", 0.01, 0.0),  # fraction
    "fall": (">", 0.05, 0.0),  # share of the loss
}


def applies(config) -> bool:
    return config.optimizer.name not in SEARCHED


def diagnose(ctx: Context) -> Result:
    """Rates from a thousandth to ten times the config's, one update each."""
    group = probe.learning_group(ctx)
    base = float(optim.settings(ctx.config.optimizer, group).learning_rate)
    rates, losses = losses_by_rate(ctx, group, base)
    suggested, smooth = suggestions(rates, losses), smoothed(losses)
    bad = [any(not np.isfinite(v) for v in row.values()) for row in probe.short_run(ctx)[1]]
    metrics = {
        # the last rate is the one that blew up, or the test came to its end
        "rate_over_divergence": base / rates[-1] if blown_up(losses) else 0.0,
        "refused": 0.0 if bad[0] else float(np.mean(bad)),
        "fall": 1 - smooth.min() / max(smooth[0], 1e-30),
    }
    if suggested:
        metrics["rate_over_suggestion"] = base / float(np.median(list(suggested.values())))
    groups = ctx.config.optimizer.groups
    of_group = group in groups and "learning_rate" in groups[group]
    field = f"optimizer.groups.{group}.learning_rate" if of_group else "optimizer.learning_rate"
    table = [
        {"rule": rule, "learning rate": rate, "override": f"--config.{field}={rate:.2g}"}
        for rule, rate in suggested.items()
    ]
    spread = max(suggested.values()) / min(suggested.values()) if suggested else np.nan
    return Result(
        metrics,
        {f"suggestions (they spread by a factor of {spread:.1f})": table},
        {"range test": draw(rates, losses, smooth, suggested, base)},
    )


def losses_by_rate(ctx: Context, group: str, base: float) -> tuple[np.ndarray, np.ndarray]:
    """(rates, losses) of updates at rates that grow by a constant factor, until the loss blows up
    or the rate is ten times `base`.
    """
    steps = max(ctx.config.preflight.steps // 2, 20)
    rates = base * 10 / SPAN * SPAN ** (np.arange(steps) / (steps - 1))
    state, losses = probe.copy(ctx.state), []

    @jax.jit
    def scaled(old, new, factor):
        return jax.tree.map(lambda a, b: a + factor * (b - a), old, new)

    for step, rate in enumerate(rates):
        old = probe.copy(state.params)
        state, metrics = ctx.step(state, ctx.batch(step), jnp.int32(step))
        used = float(metrics[f"{group}/lr"])
        losses.append(float(metrics[f"{probe.learner(ctx)}/loss"]))
        if blown_up(losses):
            break
        if used > 0:
            state = state.replace(params=scaled(old, state.params, jnp.float32(rate / used)))
    return rates[: len(losses)], np.asarray(losses)


def blown_up(losses) -> bool:
    """Whether the newest loss is not finite, or five times what it was at the start."""
    return not np.isfinite(losses[-1]) or losses[-1] > 5 * max(losses[0], min(losses))


def smoothed(losses: np.ndarray, width: int = 5) -> np.ndarray:
    """Running median, which a single batch cannot move."""
    half = width // 2
    padded = np.pad(np.nan_to_num(losses, nan=1e30, posinf=1e30), half, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


def suggestions(rates: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """Rule -> rate; nothing where the loss does not fall.

    steepest:            largest fall per factor of the rate
    tenth of the lowest: a tenth of the rate of the lowest loss
    valley:              where two thirds of the longest fall are done
    """
    smooth = smoothed(losses)
    low = int(smooth.argmin())
    if low < 3:
        return {}
    slope = np.gradient(np.log(np.maximum(smooth, 1e-30)), np.log(rates))
    start = int(smooth[:low].argmax())
    return {
        "steepest": float(rates[: low + 1][slope[: low + 1].argmin()]),
        "tenth of the lowest": float(rates[low] / 10),
        "valley": float(rates[start + int(2 / 3 * (low - start))]),
    }


def draw(rates, losses, smooth, suggested, base):
    """Loss against rate, with the suggestions and the config's own rate."""
    figure = figures.canvas(6.5, 3.8)
    panel = figure.subplots()
    panel.plot(rates, losses, ".", color="#999999", label="loss of each update")
    panel.plot(rates, smooth, color=figures.COLOURS[0], label="running median")
    styles = zip(figures.COLOURS[1:], figures.DASHES[1:])
    for (rule, rate), (colour, dash) in zip(suggested.items(), styles):
        panel.axvline(rate, color=colour, linestyle=dash, label=f"{rule}: {rate:.1g}")
    panel.axvline(base, color="black", label=f"config: {base:.1g}")
    low, high = figures.limits(losses[np.isfinite(losses)], 0.0)
    panel.set(
        xscale="log",
        xlabel="learning rate",
        ylabel="training loss",
        ylim=(low - 0.05 * (high - low), min(high, 3 * smooth[0])),
    )
    panel.legend(fontsize=8)
    return figure
