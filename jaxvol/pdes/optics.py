"""Optical measurements: the height of a surface from fringe images (an inverse problem without a differential equation)."""
from __future__ import annotations

import math
import os

import jax.numpy as jnp
import numpy as np

from jaxvol import stacks
from jaxvol.ops import fringes
from jaxvol.pdes.problem import Condition, Problem
from jaxvol.types import Array, UserError

LOW, HIGH = (-1.0, -1.0), (1.0, 1.0)


def interferometry(p) -> Problem:
    """h(x, y) in um on [-1, 1]^2 from W times four images (ops/fringes.py), measured on the pixels that are the evaluation grid.

    L = w_data mean (I(h) - I)^2 + w_pde mean (lap h)^2: the Laplacian is a penalty on roughness, and h does not make it vanish.
    `match` chooses what is compared at a pixel: () the images, as published, which has a local minimum in every fringe; or
    combinations n of the phases, b^2 / 2 mean_n |exp(4 pi i h / Lambda_n) - exp(i psi_n)|^2, unimodal over the range Lambda_n / 2
    and for n = unit vectors the same as the images' but for a constant.  Long ranges first is the remedy: config.phases.
    h = centre + scale network.  x runs along the columns of an image, y along its rows, from the first one at -1.
    """
    check(p)
    images, height = measured(p)
    shape = images.shape[:2]
    axes = [np.linspace(-1, 1, n) for n in shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    values = compare(p, images)

    def at(x: np.ndarray) -> tuple:
        return tuple(np.clip(np.rint((x[..., i] + 1) / 2 * (n - 1)).astype(int), 0, n - 1) for i, n in enumerate(shape))

    def solution(x, xp):
        known = np.full(shape, np.nan) if height is None else height
        return known[at(np.asarray(x))][..., None]

    model = lambda u: transformed(p, u[:, 0])
    condition = Condition("images", "data", (), lambda x: values[at(x)], transform=model, places=places.reshape(-1, 2))
    estimate = fringes.unwrap(images, p.wavelengths, p.centre)[..., None]
    return Problem(("x", "y"), ("h (µm)",), LOW, HIGH, ((1.0, 1.0),), lambda x, v, first, second, unknown: second[0], (condition,),
                   solution, shape, closed=False, penalty=True, estimates={"unwrapping": estimate}, fingerprint=stacks.fingerprint(images, height),
                   lift=lambda x: jnp.full_like(x[:, :1], p.centre), distance=lambda x: jnp.full_like(x[:, :1], p.scale))


def check(p) -> None:
    """UserError for wavelengths, combinations or a size that make no sense."""
    if not p.wavelengths or min(p.wavelengths) <= 0:
        raise UserError(f"data.problem.wavelengths is {tuple(p.wavelengths)}; expected positive numbers in um.")
    for combination in p.match:
        fringes.equivalent(p.wavelengths, combination)
    if p.size < 3 or p.bits not in range(17) or p.noise < 0 or p.scale <= 0 or p.modulation <= 0:
        raise UserError(f"data.problem has size={p.size}, bits={p.bits}, noise={p.noise}, scale={p.scale}, modulation={p.modulation}; "
                        "expected size >= 3, bits 0 to 16, noise >= 0, scale and modulation > 0.")


def measured(p) -> tuple[np.ndarray, np.ndarray | None]:
    """(images [X, Y, 4 W], heights [X, Y] or None) of a sample folder, or of the published surface, simulated."""
    if p.folder:
        known = stacks.samples(p.folder)
        if p.sample not in known:
            raise UserError(f"data.problem.sample is {p.sample!r}, but {p.folder} has {', '.join(known[:10])}"
                            f"{', ...' if len(known) > 10 else ''}.")
        images, height = stacks.read(os.path.join(p.folder, p.sample), 4 * len(p.wavelengths))
        return images.swapaxes(0, 1), None if height is None else height.T
    axis = np.linspace(-1, 1, p.size)
    height = fringes.published(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1))
    rng = np.random.default_rng([p.simulation_seed, 0])
    return fringes.expose(rng, height, p.wavelengths, p.background, p.modulation, p.noise, p.bits), height


def compare(p, images: np.ndarray) -> np.ndarray:
    """What `transformed` of the right height equals, [.., k]."""
    if not p.match:
        return images / math.sqrt(images.shape[-1])
    wrapped = fringes.phases(images)
    psi = np.stack([fringes.combined(wrapped, n) for n in p.match], -1)
    return np.concatenate([np.cos(psi), np.sin(psi)], -1) * p.modulation / math.sqrt(2 * len(p.match))


def transformed(p, height: Array) -> Array:
    """Images, or cosines and sines of combined phases, of heights [N], [N, k], scaled so that summed squares are a mean over images."""
    if not p.match:
        return fringes.render(height, p.wavelengths, p.background, p.modulation) / math.sqrt(4 * len(p.wavelengths))
    turns = jnp.asarray([4 * math.pi / fringes.equivalent(p.wavelengths, n) for n in p.match], height.dtype)
    psi = height[:, None] * turns
    return jnp.concatenate([jnp.cos(psi), jnp.sin(psi)], -1) * p.modulation / math.sqrt(2 * len(p.match))
