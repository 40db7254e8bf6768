"""Particle-mesh N-body evolution of given initial conditions, by the optional package pmpp (PM++).

2LPT particles start at z = 49 and are moved by a symplectic leapfrog, equal steps in scale factor,
with forces on a mesh twice as fine as the particle lattice.  With cells of at most 2 Mpc/h its
power spectrum at z = 0 follows the non-linear one within about 10 % up to k = 0.65 h/Mpc; on
coarser meshes it does not, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.ops.cosmology import Cosmology, growth, hubble
from jaxvol.types import Array, UserError

Evolve = Callable[[Array], tuple[Array, Array]]

MESH_FACTOR = 2  # force mesh cells per particle along an axis
MAX_CELL = 2.0  # Mpc/h, of the force mesh
START = 0.02  # scale factor of the 2LPT start


def particle_mesh(grid: int, box_size: float, cosmology: Cosmology, a: float, steps: int) -> Evolve:
    """The function delta -> (displacement, velocity) that evolves n^3 particles in `steps` steps.

    They are evolved to scale factor `a`.  delta: [n, n, n] linear density contrast today, the same
    modes that a linear target holds.  The function returns two arrays [n, n, n, 3] in Mpc/h:
    displacement from the lattice, and velocity v / (a H), the shift into redshift space.  It
    compiles itself and must not be called inside another jit.

    Raises UserError: force-mesh cells larger than 2 Mpc/h; pmpp missing, or the installed JAX
    outside its range.
    """
    cell = box_size / (MESH_FACTOR * grid)
    if cell > MAX_CELL * (1.0 + 1e-6):
        raise UserError(
            f"particle-mesh evolution of {grid}^3 particles in {box_size:g} Mpc/h has force-mesh "
            f"cells of {cell:g} Mpc/h; expected at most {MAX_CELL:g}: take "
            f"grid >= {int(np.ceil(box_size / MAX_CELL / MESH_FACTOR))}, "
            f"a box_size <= {MAX_CELL * MESH_FACTOR * grid:g}, or evolution '2lpt'"
        )
    pmpp = _pmpp()
    with jax.enable_x64(True):  # its growth tables are float64, its particles float32
        conf = pmpp.Configuration(
            ptcl_spacing=box_size / grid,
            ptcl_grid_shape=(grid,) * 3,
            mesh_shape=MESH_FACTOR,
            a_start=START,
            a_stop=a,
            a_nbody_maxstep=(a - START) / steps * (1.0 + 1e-6),
            pallas_cic=False,
        )
        # A_s is not used: the modes come with their amplitude
        background = pmpp.Cosmology(
            conf, 1.0, cosmology.n_s, cosmology.omega_m, cosmology.omega_b, cosmology.h
        )
        background = pmpp.boltzmann(background, conf, transfer=False, varlin=False)
    # pmpp normalises D to a in matter domination, and wants Fourier modes in units of volume
    early = 1e-3
    scale = conf.ptcl_cell_vol * float(growth(early, cosmology).d1) / early
    # pmpp's velocity is a^2 dx/dt in units of H0
    to_velocity = 1.0 / (a**2 * float(hubble(a, cosmology)))

    @jax.jit
    def moved(delta: Array) -> tuple[Array, Array]:
        particles = pmpp.nbody(
            pmpp.lpt(jnp.fft.rfftn(delta) * scale, background, conf), background, conf
        )
        shape = (*delta.shape, 3)
        return particles.disp.reshape(shape), to_velocity * particles.vel.reshape(shape)

    def evolve(delta: Array) -> tuple[Array, Array]:
        with jax.enable_x64(True):
            return moved(jnp.asarray(delta, jnp.float32))

    return evolve


def _pmpp():
    """The five names of pmpp used here, in one namespace."""
    remedy = "install the extra 'nbody' in an environment with jax < 0.11, or take evolution '2lpt'"
    float64 = jax.config.jax_enable_x64
    try:
        from pmpp import Configuration
        from pmpp.cosmology.boltzmann import boltzmann
        from pmpp.cosmology.models import Cosmology as Background
        from pmpp.initial_conditions.lpt import lpt
        from pmpp.nbody import nbody
    except ImportError as error:
        raise UserError(
            "evolution 'pm' needs the package pmpp >= 1.1, which cannot be imported with jax "
            f"{jax.__version__} "
            f"({error}): {remedy}"
        ) from None
    finally:
        # its dependency mcfit turns float64 on for the whole process
        jax.config.update("jax_enable_x64", float64)
    if jax.__version_info__ >= (0, 11):
        raise UserError(f"evolution 'pm' needs jax < 0.11, found {jax.__version__}: {remedy}")
    return SimpleNamespace(
        Configuration=Configuration, boltzmann=boltzmann, Cosmology=Background, lpt=lpt, nbody=nbody
    )
