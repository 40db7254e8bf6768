"""Optical measurements: the height of a surface from fringe images.

This is an inverse problem without a differential equation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxvol.ops import fringes, surfaces
from jaxvol.pdes.problem import Condition, Problem
from jaxvol.types import Array, UserError

LOW, HIGH = (-1.0, -1.0), (1.0, 1.0)
# What the interferometer is, and where its images come from; for the points of `interferometry` and
# the images of jaxvol/data/fringes.py.
INSTRUMENT = {
    # um; each with phase steps 0, pi/2, pi and 3 pi/2
    "wavelengths": (5.0, 5.5, 6.05, 6.655),
    # um, the middle of where heights are looked for; `unwrapping` finds those within 16.6 um of it
    "centre": 12.0,
    "background": 128.0,  # of the images, in grey levels of 0 .. 255
    "modulation": 100.0,  # their amplitude
    # of users' stacks (jaxvol/data/io/image_stack.py); "" = simulated
    "folder": "",
    "size": 128,  # simulated: pixels along a side
    # simulated: standard deviation of the camera's noise, in grey levels
    "noise": 5.0,
    "bits": 8,  # simulated: of a pixel; 0 = neither rounded nor clipped
    # of the noise, and of random surfaces; config.seed is for training
    "simulation_seed": 0,
}
FIELDS = {
    "interferometry": {
        **INSTRUMENT,
        "sample": "sample_0000",  # which of the folder's stacks
        # () = the images | combinations of the wavelengths' phases, ((1, -1, 0, 0), ...)
        "match": (),
        "scale": 15.0,  # um per unit of the network's output
    }
}


class Measurement(NamedTuple):
    """What was measured: images [X, Y, 4 W] in grey levels, heights [X, Y] in um where known."""

    images: np.ndarray
    height: np.ndarray | None


def interferometry(p, measured: Measurement | None = None) -> Problem:
    """h(x, y) in um on [-1, 1]^2 from W times four images, on the pixels that they were taken on.

        L = w_data mean |f(h) - f(I)|^2 + w_pde mean (lap h)^2

    f is `modelled` and `compared` of ops/fringes.py.  The Laplacian is a penalty on roughness: h
    does not make it vanish.  With task.constraints="hard" h = centre + scale network.  x runs along
    the columns of an image, y along its rows, from the first one at -1.  Raises UserError for
    settings that make no sense and for files that cannot be used.
    """
    check(p)
    if p.folder and measured is None:
        raise ValueError("data.problem.folder is set: make the problem with data/measured.py")
    images, height = simulated(p) if measured is None else measured
    shape = images.shape[:2]
    known = np.full(shape, np.nan) if height is None else height
    unwrapped = fringes.unwrap(images, p.wavelengths, p.centre)
    estimates = {
        "unwrapping": unwrapped[..., None],
        "unwrapping, smoothed": fringes.smoothed(unwrapped)[..., None],
    }
    return Problem(
        ("x", "y"),
        ("h (µm)",),
        LOW,
        HIGH,
        ((1.0, 1.0),),
        lambda x, v, first, second, unknown: second[0],
        (as_condition(p, images),),
        lambda x, xp: known[nearest(shape, np.asarray(x))][..., None],
        shape,
        closed=False,
        estimates=estimates,
        known=height is not None,
        remainder="Laplacian (penalty)",
        fingerprint=fringes.fingerprint(images, height),
        lift=lambda x: jnp.full_like(x[:, :1], p.centre),
        distance=lambda x: jnp.full_like(x[:, :1], p.scale),
    )


def check(p) -> None:
    """Raises UserError for settings that make no sense."""
    fringes.check(p.wavelengths, p.modulation, p.size, p.noise, p.bits)
    for combination in p.match:
        fringes.equivalent(p.wavelengths, combination)
    if p.scale <= 0:
        raise UserError(f"data.problem.scale is {p.scale}; expected a positive number of um.")


def as_condition(p, images: np.ndarray) -> Condition:
    """The height, rendered, is what the images [X, Y, 4 W] show at each pixel."""
    shape = images.shape[:2]
    axes = [np.linspace(-1, 1, n) for n in shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    values = fringes.compared(images, p.wavelengths, p.match, p.modulation)

    def rendered(u: Array) -> Array:
        return fringes.modelled(u[:, 0], p.wavelengths, p.match, p.background, p.modulation)

    return Condition(
        "images",
        "data",
        (),
        lambda x: values[nearest(shape, x)],
        transform=rendered,
        places=places.reshape(-1, 2),
    )


def nearest(shape: tuple[int, ...], x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Index of the pixel that is nearest to each point x [.., 2]."""
    return tuple(
        np.clip(np.rint((x[..., i] + 1) / 2 * (n - 1)).astype(int), 0, n - 1)
        for i, n in enumerate(shape)
    )


def simulated(p) -> Measurement:
    """The published surface, seen by the instrument."""
    axis = np.linspace(-1, 1, p.size)
    # rows along y, as in a file
    height = surfaces.published(np.stack(np.meshgrid(axis, axis), -1))
    rng = np.random.default_rng([p.simulation_seed, 0])
    images = fringes.expose(rng, height, p.wavelengths, p.background, p.modulation, p.noise, p.bits)
    return Measurement(images.swapaxes(0, 1), height.T)
