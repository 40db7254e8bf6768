"""P(k), T(k), r(k) of the prediction after a short run, and how the model treats directions and
scales.

The response to direction is read off the model's Jacobian: white noise times a small number is
added to the input, and the power of the output's change is compared between octants of k space and
at the frequencies of the patch grid.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.plots import figures
from jaxvol.plots import spectra as plots
from jaxvol.training import averages
from jaxvol.types import Result

RANK = 81
NEEDS = ("volumes",)
REPEATS = 4
MEANING = {
    "octants": (
        "largest over smallest variation of the response with k among the Fourier octants, before "
        "training",
        "some directions of k space are not treated: a corner block of the spectral weights is "
        "missing",
    ),
    "axes": (
        "largest over smallest mean response along the three axes of k space",
        "one axis is treated unlike the others",
    ),
    "patches": (
        "power of the output's change at the frequencies of the patch grid over that next to them",
        "the patch grid shows in the output: overlapping patches or a convolutional head remove it",
    ),
    "high_k": (
        "power of the output's change at the highest frequencies over that at the lowest",
        "checkerboards: look at transposed convolutions, strides and aliasing",
    ),
}
LIMITS = {
    "octants": ("<", 4.0, 8.0),  # ratio of standard deviations
    "axes": ("<", 2.0, 5.0),  # ratio of powers
    "patches": ("<", 5.0, 100.0),  # ratio of powers
    "high_k": ("<", 10.0, 1000.0),  # ratio of powers
}


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """The response of the weights after `preflight.steps` updates, and of those at the start for
    `octants`; cubic volumes only.
    """
    if min(ctx.spec.shape) < 8 or len(set(ctx.spec.shape)) > 1:
        return Result(
            skip=f"volumes of {ctx.spec.shape} voxels have no octants to compare: needs cubes of "
            "at least 8 voxels"
        )
    state, _ = probe.short_run(ctx)
    weights = averages.weights_of(state, "raw")
    batch = probe.unmarked(ctx.put(probe.examples(ctx)))
    # around an empty volume, a network that has no places to tell apart mixes no frequencies
    empty = {**batch, "input": jnp.zeros_like(batch["input"])}
    power, _ = response(ctx, weights, batch)
    _, transfer = response(ctx, averages.weights_of(ctx.state, "raw"), empty)
    metrics = {
        "octants": octants(transfer),
        "axes": axes(power),
        "patches": patches(power),
        "high_k": high(power),
    }
    pictures = {"response": draw(power)}
    scores, _ = ctx.score(*weights, probe.split(ctx), ctx.config.preflight.examples)
    if "spectra" in scores:
        pictures["spectra"] = plots.draw({"after the short run": scores["spectra"]}, ctx.spec.unit)
    return Result(metrics, figures=pictures)


def response(ctx: Context, weights, batch) -> tuple[np.ndarray, np.ndarray]:
    """What white noise around the inputs of a batch becomes, over all frequencies (fft order):
    (power per unit of noise, [2, n, n, n], complex transfer function [n, n, n]).

    The first power is that of the part that goes with the noise: what one frequency of the input
    does to the same frequency of the output.  The second is that of the whole change.
    """
    x, total = batch["input"], 0.0
    base = probe.prediction(ctx, weights, batch)
    for seed in range(REPEATS):
        noise = 0.03 * jax.random.normal(jax.random.key(seed), x.shape, x.dtype)
        change = probe.prediction(ctx, weights, {**batch, "input": x + noise}) - base
        a, b = (
            np.fft.fftn(np.asarray(v, np.float64)[..., 0], axes=(1, 2, 3)) for v in (noise, change)
        )
        total = total + np.stack(
            [(np.conj(a) * b).sum(0), (np.abs(a) ** 2).sum(0), (np.abs(b) ** 2).sum(0)]
        )
    transfer = total[0] / total[1]
    return np.stack([np.abs(transfer) ** 2, np.abs(total[2]) / np.abs(total[1])]), transfer


def wavenumbers(n: int) -> np.ndarray:
    """k along D, H, W in waves per box, [3, n, n, n] in fft order."""
    return np.meshgrid(*[np.fft.fftfreq(n, 1 / n)] * 3, indexing="ij")


def octants(transfer: np.ndarray) -> float:
    """Largest over smallest standard deviation of the transfer function among the four pairs of
    opposite octants; |k| up to 3 n / 8, without the planes between octants.

    A linear bypass gives every frequency the same, so that the deviation is what tells frequencies
    apart.
    """
    n = transfer.shape[0]
    k = wavenumbers(n)
    inside = (sum(i**2 for i in k) <= (3 * n / 8) ** 2) & np.all([i != 0 for i in k], 0)
    cut = [
        transfer[inside & (k[0] * k[1] * a > 0) & (k[1] * k[2] * b > 0)]
        for a in (1, -1)
        for b in (1, -1)
    ]
    spread = [float(np.sqrt((np.abs(v - v.mean()) ** 2).mean())) for v in cut]
    if max(spread) <= 1e-6 * np.abs(transfer).max():
        return 1.0
    return max(spread) / max(min(spread), 1e-30)


def axes(power: np.ndarray) -> float:
    """Largest over smallest mean power in cones of 45 degrees around the axes, |k| from 2 to
    n / 4.
    """
    k, n = wavenumbers(power.shape[1]), power.shape[1]
    size = np.sqrt(sum(i**2 for i in k))
    means = [power[0][(size >= 2) & (size <= n / 4) & (np.abs(i) > 0.71 * size)].mean() for i in k]
    return float(max(means) / max(min(means), 1e-30))


def patches(power: np.ndarray) -> float:
    """Power along the axes at multiples of n / patch over that of the neighbouring frequencies;
    the largest of the patch sizes 2, 4, 8.
    """
    n, worst = power.shape[1], 0.0
    line = np.mean([power[1][:, 0, 0], power[1][0, :, 0], power[1][0, 0, :]], 0)
    for size in (p for p in (2, 4, 8) if n % p == 0 and n // p >= 4):
        at = [m * n // size for m in range(1, size // 2 + 1)]
        near = [i for m in at for i in (m - 2, m - 1, m + 1, m + 2) if 0 < i < n and i not in at]
        worst = max(worst, float(line[at].mean() / max(line[near].mean(), 1e-30)))
    return worst


def high(power: np.ndarray) -> float:
    """Mean power where all |k_i| are above 0.4 n over that where all are below 0.1 n."""
    k, n = wavenumbers(power.shape[1]), power.shape[1]
    top = np.all([np.abs(i) > 0.4 * n for i in k], 0)
    low = np.all([np.abs(i) < 0.1 * n for i in k], 0)
    return float(power[1][top].mean() / max(power[1][low].mean(), 1e-30))


def draw(power: np.ndarray):
    """Cuts through the response in the planes k_D = 0 and k_W = 0, logarithmic."""
    figure = figures.canvas(9.5, 4.2)
    n = power.shape[1]
    values = np.log10(np.maximum(np.fft.fftshift(power[0]), 1e-12 * power[0].max() + 1e-300))
    low, high_end = figures.limits(values)
    for panel, cut, names in zip(
        figure.subplots(1, 2), (values[n // 2], values[:, :, n // 2]), (("W", "H"), ("H", "D"))
    ):
        image = panel.imshow(
            cut, extent=(-n / 2, n / 2, n / 2, -n / 2), vmin=low, vmax=high_end, cmap="viridis"
        )
        panel.set(
            xlabel=f"k along {names[0]} (waves per box)",
            ylabel=f"k along {names[1]} (waves per box)",
        )
        figure.colorbar(image, ax=panel, label="log10 response", fraction=0.046)
    return figure
