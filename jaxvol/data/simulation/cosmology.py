"""The simulator behind jaxvol/data/cosmology.py: from the seed of a box to a pair of fields.

    white noise -> linear density contrast delta today (Gaussian, Eisenstein-Hu spectrum)
                -> particles displaced to `redshift` by 2LPT or a particle-mesh code
                -> cloud-in-cell density 1 + delta, or Poisson counts of biased tracers, on the grid

Box i of a split depends on (simulation_seed, split, i) and on nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.ops import cic, cosmology, lpt, nbody
from jaxvol.types import Array, Key

SPLIT_NUMBERS = {"train": 0, "val": 1, "test": 2}  # what is folded into the seed
# simulated together: bounds the memory, keeps small boxes fast
VOXELS_AT_ONCE = 2**19

Settings = dict[str, Any]  # what the boxes depend on, as JSON; see data/cosmology.box_settings
Simulator = Callable[[list[tuple[str, int]]], tuple[np.ndarray, np.ndarray]]


def simulator(settings: Settings) -> tuple[Simulator, int]:
    """(function from boxes (split, index) to their (input, target) [N, n, n, n] float32, the number
    N of boxes it takes at once).

    Raises UserError for a particle-mesh run that is too coarse or lacks its package.
    """
    grid, box_size, tracers = settings["grid"], settings["box_size"], settings.get("tracers")
    parameters = cosmology.Cosmology(**settings["parameters"])
    amplitude = lpt.mode_amplitude(grid, box_size, lambda k: cosmology.linear_power(k, parameters))
    evolve, together = _evolution(settings, parameters)

    def simulate(boxes: list[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
        seed = jax.random.key(settings["seed"])
        keys = jnp.stack(
            [
                jax.random.fold_in(jax.random.fold_in(seed, SPLIT_NUMBERS[split]), index)
                for split, index in boxes
            ]
        )
        deltas = initial(keys, amplitude)
        displacements, velocities = evolve(deltas)
        if tracers is None:
            return np.asarray(density(displacements, box_size)), np.asarray(deltas)
        rates, densities = tracer_rates(
            displacements, velocities, box_size, tracers["bias"], tracers["line_of_sight"]
        )
        mean = tracers["nbar"] * (box_size / grid) ** 3
        counts = [
            np.random.default_rng([settings["seed"], SPLIT_NUMBERS[split], index]).poisson(
                mean * rate.astype(np.float64)
            )
            for (split, index), rate in zip(boxes, np.asarray(rates))
        ]
        return np.stack(counts).astype(np.float32), np.asarray(densities)

    return simulate, together


def _evolution(settings: Settings, parameters: cosmology.Cosmology) -> tuple[Callable, int]:
    """(function from contrasts [N, n, n, n] to displacements and velocities, N)."""
    grid, box_size = settings["grid"], settings["box_size"]
    a = 1.0 / (1.0 + settings["redshift"])
    if settings["evolution"] == "pm":
        one = nbody.particle_mesh(grid, box_size, parameters, a, settings["pm_steps"])
        return lambda deltas: tuple(field[None] for field in one(deltas[0])), 1
    growth = cosmology.growth(a, parameters)
    together = max(1, min(16, VOXELS_AT_ONCE // grid**3))
    return functools.partial(second_order, growth=growth, box_size=box_size), together


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def initial(key: Key, amplitude: Array) -> Array:
    """Linear density contrasts today, [N, n, n, n], of N keys and the amplitude of the modes."""
    grid = amplitude.shape[0]
    return lpt.gaussian_field(jax.random.normal(key, (grid,) * 3, jnp.float32), amplitude)


@functools.partial(jax.jit, static_argnames="box_size")
def second_order(deltas: Array, growth: cosmology.Growth, box_size: float) -> tuple[Array, Array]:
    """2LPT displacements and velocities v / (a H) of [N, n, n, n] contrasts, both [N, n, n, n, 3]
    in Mpc/h.
    """
    d1, f1, d2, f2 = (jnp.asarray(value, deltas.dtype) for value in growth)
    first, second = jax.vmap(lambda delta: lpt.displacements(delta, box_size))(deltas)
    return d1 * first + d2 * second, f1 * d1 * first + f2 * d2 * second


@functools.partial(jax.jit, static_argnames="box_size")
def density(displacements: Array, box_size: float) -> Array:
    """1 + delta of the displaced lattices, [N, n, n, n, 3] in Mpc/h -> [N, n, n, n]."""
    return jax.vmap(cic.paint)(displacements * (displacements.shape[1] / box_size))


@functools.partial(jax.jit, static_argnames=("box_size", "axis"))
def tracer_rates(
    displacements: Array, velocities: Array, box_size: float, bias: float, axis: int
) -> tuple[Array, Array]:
    """Expected number of tracers per cell in units of its mean, in redshift space along `axis` (-1:
    real space), and 1 + delta of the matter; both [N, n, n, n].

    Tracers follow the matter: a particle at x counts rho(x)^(b - 1), so that their density is about
    rho^b in real space and distortions in redshift space come from the velocities of the matter
    (linear theory: b + f mu^2, Kaiser 1987).
    """

    def one(displacement: Array, velocity: Array) -> tuple[Array, Array]:
        matter = cic.paint(displacement)
        weight = cic.read(matter, displacement) ** (bias - 1.0)
        if axis >= 0:
            displacement = displacement.at[..., axis].add(velocity[..., axis])
        return cic.paint(displacement, weight / weight.mean()), matter

    cells = displacements.shape[1] / box_size
    return jax.vmap(one)(displacements * cells, velocities * cells)
