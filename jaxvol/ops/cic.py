"""Cloud-in-cell painting of particles that started on a periodic lattice, and reading at them.

Particles are given by their displacement from the lattice point (i, j, l), in cells: positions
would lose the small displacements to rounding.  Hockney & Eastwood, Computer Simulation Using
Particles (1988), section 5-3.
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp

from jaxvol.types import Array


def _corners(displacement: Array):
    """Flat mesh index and weight of every particle's eight cells: 8 pairs of [n, n, n]."""
    shape = displacement.shape[:3]
    whole = jnp.floor(displacement)
    fraction = displacement - whole
    lattice = jnp.stack(
        jnp.meshgrid(*(jnp.arange(n, dtype=jnp.int32) for n in shape), indexing="ij"), axis=-1
    )
    cell = lattice + whole.astype(jnp.int32)
    for corner in itertools.product((0, 1), repeat=3):
        step = jnp.asarray(corner, jnp.int32)
        index = (cell + step) % jnp.asarray(shape, jnp.int32)
        weight = jnp.prod(jnp.where(step == 1, fraction, 1.0 - fraction), axis=-1)
        yield (index[..., 0] * shape[1] + index[..., 1]) * shape[2] + index[..., 2], weight


def paint(displacement: Array, weight: Array | None = None) -> Array:
    """Density of the displaced lattice: the sum over particles of weight times kernel.

    displacement: [D, H, W, 3] in cells, periodic
    weight:       [D, H, W], 1 when omitted
    Returns [D, H, W], 1 + delta, whose mean is the mean weight (1) up to rounding.
    """
    mesh = jnp.zeros(displacement.shape[:3], displacement.dtype).ravel()
    for index, share in _corners(displacement):
        mesh = mesh.at[index.ravel()].add((share if weight is None else share * weight).ravel())
    return mesh.reshape(displacement.shape[:3])


def read(mesh: Array, displacement: Array) -> Array:
    """Cloud-in-cell interpolation of `mesh` [D, H, W] at the displaced lattice points, [D, H, W].

    The transpose of `paint`.
    """
    return sum(share * mesh.ravel()[index] for index, share in _corners(displacement))
