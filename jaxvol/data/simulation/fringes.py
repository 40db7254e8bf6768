"""Simulated fringe images: random smooth surfaces, and the published one, as a camera sees them.

A surface is the same in every epoch and its camera noise is another one each time it is trained on,
a function of (seed, step, row) as every random choice is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from jaxvol.data.source import SPLITS
from jaxvol.ops import fringes, surfaces

# random surfaces use this share of the unambiguous range: noise would carry a height at one of its
# ends to the other one
INSIDE = 0.9


def simulator(
    optics: ConfigDict,
) -> Callable[[str, int, np.random.Generator | None], dict[str, np.ndarray]]:
    """(split, index, rng) -> {"input": images [1, n, n, 4 w] in grey levels, "target": height
    [1, n, n, 1] in um}, for w wavelengths.

    Surfaces are random (ops/surfaces.smooth), but for the first of the split "test", which is the
    published one.  rng draws the camera noise; None: the surface's own generator does.
    """
    axis = np.linspace(-1, 1, optics.size)
    y, x = np.meshgrid(axis, axis, indexing="ij")  # rows along y, from -1
    points = np.stack([x, y], -1)
    combination = fringes.beats(optics.wavelengths)[0]
    reach = INSIDE * fringes.reach(optics.wavelengths, combination)
    low, high = optics.centre - reach / 2, optics.centre + reach / 2

    def simulate(split: str, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        if split == "test" and index == 0:
            surface_rng = np.random.default_rng([optics.simulation_seed, 0])
            height = surfaces.published(points)
        else:
            words = [optics.simulation_seed, 1 + SPLITS.index(split), index]
            surface_rng = np.random.default_rng(words)
            height = surfaces.smooth(surface_rng, points, low, high)
        images = fringes.expose(
            rng or surface_rng,
            height,
            optics.wavelengths,
            optics.background,
            optics.modulation,
            optics.noise,
            optics.bits,
        )
        return {"input": images[None], "target": height[None, ..., None]}

    return simulate
