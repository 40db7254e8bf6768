"""Optical measurements: the height of a surface from fringe images (an inverse problem without a
differential equation).
"""

from __future__ import annotations

import os

import jax.numpy as jnp
import numpy as np

from jaxvol.data.io import image_stack
from jaxvol.ops import fringes
from jaxvol.pdes.problem import Condition, Problem
from jaxvol.types import UserError

LOW, HIGH = (-1.0, -1.0), (1.0, 1.0)


def interferometry(p) -> Problem:
    """h(x, y) in um on [-1, 1]^2 from W times four images (ops/fringes.py), measured on the pixels
    that are the evaluation grid.

    L = w_data mean |f(h) - f(I)|^2 + w_pde mean (lap h)^2,   f = `modelled` and `compared` of
    ops/fringes.py
    The Laplacian is a penalty on roughness: h does not make it vanish.  With
    task.constraints="hard" h = centre + scale network. x runs along the columns of an image, y
    along its rows, from the first one at -1.  Raises UserError for settings that make no sense and
    for files that cannot be used.
    """
    fringes.check(p.wavelengths, p.modulation, p.size, p.noise, p.bits)
    for combination in p.match:
        fringes.equivalent(p.wavelengths, combination)
    if p.scale <= 0:
        raise UserError(f"data.problem.scale is {p.scale}; expected a positive number of um.")
    images, height = measured(p)
    shape = images.shape[:2]
    axes = [np.linspace(-1, 1, n) for n in shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    values = fringes.compared(images, p.wavelengths, p.match, p.modulation)

    def at(x: np.ndarray) -> tuple:
        return tuple(
            np.clip(np.rint((x[..., i] + 1) / 2 * (n - 1)).astype(int), 0, n - 1)
            for i, n in enumerate(shape)
        )

    def solution(x, xp):
        known = np.full(shape, np.nan) if height is None else height
        return known[at(np.asarray(x))][..., None]

    rendered = lambda u: fringes.modelled(
        u[:, 0], p.wavelengths, p.match, p.background, p.modulation
    )
    condition = Condition(
        "images",
        "data",
        (),
        lambda x: values[at(x)],
        transform=rendered,
        places=places.reshape(-1, 2),
    )
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
        (condition,),
        solution,
        shape,
        closed=False,
        estimates=estimates,
        known=height is not None,
        remainder="Laplacian (penalty)",
        fingerprint=image_stack.fingerprint(images, height),
        lift=lambda x: jnp.full_like(x[:, :1], p.centre),
        distance=lambda x: jnp.full_like(x[:, :1], p.scale),
    )


def measured(p) -> tuple[np.ndarray, np.ndarray | None]:
    """(images [X, Y, 4 W], heights [X, Y] or None) of a sample folder, or of the published surface,
    simulated.
    """
    if p.folder:
        known = image_stack.samples(p.folder)
        if p.sample not in known:
            raise UserError(
                f"data.problem.sample is {p.sample!r}, but {p.folder} has {', '.join(known[:10])}"
                f"{', ...' if len(known) > 10 else ''}."
            )
        images, height = image_stack.read(os.path.join(p.folder, p.sample), 4 * len(p.wavelengths))
        return images.swapaxes(0, 1), None if height is None else height.T
    axis = np.linspace(-1, 1, p.size)
    # rows along y, as in a file
    height = fringes.published(np.stack(np.meshgrid(axis, axis), -1))
    rng = np.random.default_rng([p.simulation_seed, 0])
    images = fringes.expose(rng, height, p.wavelengths, p.background, p.modulation, p.noise, p.bits)
    return images.swapaxes(0, 1), height.T
