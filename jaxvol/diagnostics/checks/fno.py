"""Fourier modes against the Nyquist frequency and against what the target holds beyond them; the
operator on another resolution and under shifts.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.plots import figures
from jaxvol.training import averages
from jaxvol.types import Batch, Result, TrainState

RANK = 39
NEEDS = ("volumes",)
MEANING = {
    "beyond_nyquist": (
        "axes whose modes exceed half the grid",
        "lower model.modes: these weights would act on aliases",
    ),
    "lost": (
        "share of the target's variance beyond the kept modes, which only the bypass can give",
        "raise model.modes, or accept a blurred prediction",
    ),
    "shift": (
        "difference between the output for an input shifted by half a cell and the shifted output, "
        "relative to its variation",
        "the response depends on where the grid lies: aliasing by the activations, coordinates or "
        "padding",
    ),
    "resolution": (
        "difference between the outputs on the grid and on twice the resolution, where they meet, "
        "relative to their variation",
        "the model does not represent a function of space: norms over voxels, padding, or aliasing",
    ),
}
LIMITS = {
    "beyond_nyquist": ("<", 0.0, 0.0),  # axes
    "lost": ("<", 0.5, 0.95),  # share of the variance
    "shift": ("<", 0.3, 3.0),  # relative
    "resolution": ("<", 0.3, 3.0),  # relative
}


def applies(config) -> bool:
    return config.model.name == "fno"


def diagnose(ctx: Context) -> Result:
    """The weights after the short run; `shift` and `resolution` need periodic axes and no norm."""
    state, _ = probe.short_run(ctx)
    modes, shape = tuple(ctx.config.model.modes), ctx.spec.shape
    batch = ctx.batch(0)
    target = np.asarray(batch["target"], np.float64)
    metrics = {
        "beyond_nyquist": float(sum(m > n // 2 for m, n in zip(modes, shape))),
        "lost": beyond(target, modes),
    }
    table = [
        {"modes": m, "share": beyond(target, tuple(min(m, n // 2) for n in shape))}
        for m in (2, 4, 8, 12, 16, 24, 32)
        if m <= max(shape) // 2
    ]
    periodic = all(p or n == 1 for p, n in zip(ctx.spec.periodic, shape))
    if periodic and ctx.config.model.norm == "none":
        metrics |= as_an_operator(ctx, state, batch)
    return Result(
        metrics,
        {"variance of the target beyond m modes per axis": table},
        {"variance beyond the modes": draw(table, max(modes))},
    )


def as_an_operator(ctx: Context, state: TrainState, batch: Batch) -> dict[str, float]:
    """`shift` and `resolution`: an operator on functions of a periodic box commutes with shifts by
    half a cell, and gives the same values on twice the grid.
    """
    weights, x = averages.weights_of(state, "raw"), np.asarray(batch["input"][:1])

    def f(v: np.ndarray) -> np.ndarray:
        return probe.prediction(ctx, weights, {"input": jnp.asarray(v, jnp.float32)})

    long = [n > 1 for n in ctx.spec.shape]
    half, every_other = (
        tuple(0.5 if is_long else 0.0 for is_long in long),
        tuple(slice(None, None, 2 if is_long else 1) for is_long in long),
    )
    y, moved, fine = f(x), f(shifted(x, half)), f(refined(x))[:, *every_other]
    variation = max(float(y.std()), 1e-12)
    return {
        "shift": float(np.sqrt(((moved - shifted(y, half)) ** 2).mean())) / variation,
        "resolution": float(np.sqrt(((fine - y) ** 2).mean())) / variation,
    }


def beyond(target: np.ndarray, modes: tuple[int, ...]) -> float:
    """Share of the variance at |k_i| > modes_i on any axis."""
    power = (np.abs(np.fft.fftn(target, axes=(1, 2, 3))) ** 2).sum((0, -1))
    power[0, 0, 0] = 0
    k = np.meshgrid(*[np.abs(np.fft.fftfreq(n, 1 / n)) for n in power.shape], indexing="ij")
    outside = np.any([i > m for i, m in zip(k, modes)], 0)
    return float(power[outside].sum() / max(power.sum(), 1e-300))


def shifted(x: np.ndarray, by: tuple[float, ...]) -> np.ndarray:
    """Trigonometric shift of [B, D, H, W, C] by fractions of a cell; the Nyquist planes, where a
    shift is ambiguous, are dropped.
    """
    f = np.fft.fftn(x, axes=(1, 2, 3))
    for axis, s in zip((1, 2, 3), by):
        n = x.shape[axis]
        k = np.fft.fftfreq(n, 1 / n)
        phase = np.exp(-2j * np.pi * k * s / n) * (np.abs(k) * 2 != n if s else 1)
        f = f * phase.reshape([-1 if a == axis else 1 for a in range(5)])
    return np.fft.ifftn(f, axes=(1, 2, 3)).real


def refined(x: np.ndarray) -> np.ndarray:
    """The same trigonometric polynomial on twice the grid along axes longer than one."""
    for axis in (a for a in (1, 2, 3) if x.shape[a] > 1):
        n = x.shape[axis]
        f = np.fft.rfft(x, axis=axis)
        if n % 2 == 0:
            f[tuple(slice(-1, None) if a == axis else slice(None) for a in range(5))] *= 0.5
        x = np.fft.irfft(f, 2 * n, axis=axis) * 2
    return x


def draw(rows: list[dict], modes: int):
    """What is lost against the number of modes."""
    figure = figures.canvas(5.2, 3.2)
    panel = figure.subplots()
    panel.plot(
        [row["modes"] for row in rows],
        [max(row["share"], 1e-6) for row in rows],
        "o-",
        color=figures.COLOURS[0],
    )
    panel.axvline(modes, color=figures.COLOURS[1], linestyle="--", label=f"model.modes = {modes}")
    panel.set(
        xlabel="modes kept per axis", ylabel="share of the target's variance beyond", yscale="log"
    )
    panel.legend()
    return figure
