"""Heights of test surfaces: the published one, and random ones like it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np


def published(x: np.ndarray) -> np.ndarray:
    """The published test surface, [.., 2] on [-1, 1]^2 -> [..] in um; numpy's arrays or JAX's.

    h = 15 exp(-((x - .2)^2 + (y + .3)^2) / .2) + 5 x + 2.5 y + 10 sqrt((x + .5)^2 + (y - .4)^2)
    """
    xp = np if isinstance(x, np.ndarray) else jnp
    a, b = x[..., 0], x[..., 1]
    bump = 15 * xp.exp(-((a - 0.2) ** 2 + (b + 0.3) ** 2) / 0.2)
    return bump + 5 * a + 2.5 * b + 10 * xp.sqrt((a + 0.5) ** 2 + (b - 0.4) ** 2)


def smooth(rng: np.random.Generator, x: np.ndarray, low: float, high: float) -> np.ndarray:
    """A random smooth surface at points [.., 2] of [-1, 1]^2, between `low` and `high`.

    Made as `published` is: three to six Gaussian bumps of either sign and width 0.2 to 0.6, a
    slope, in half of the draws a cone; then scaled to fill 40 to 95 per cent of the range, at a
    random place in it.
    """
    height = x @ rng.normal(size=2)
    for _ in range(rng.integers(3, 7)):
        offset = x - rng.uniform(-1, 1, 2)
        height = height + 3 * rng.normal() * np.exp(
            -(offset**2).sum(-1) / (2 * rng.uniform(0.2, 0.6) ** 2)
        )
    if rng.uniform() < 0.5:
        height = height + 3 * rng.normal() * np.sqrt(((x - rng.uniform(-1, 1, 2)) ** 2).sum(-1))
    span = rng.uniform(0.4, 0.95) * (high - low)
    bottom = rng.uniform(low, high - span)
    return bottom + span * (height - height.min()) / max(np.ptp(height), 1e-9)
