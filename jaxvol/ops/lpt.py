"""Gaussian initial conditions and second-order Lagrangian perturbation theory on a periodic cube.

A particle that starts at lattice point q lies at x(q, t) = q + D(t) psi_1(q) + D_2(t) psi_2(q) with

    div psi_1 = -delta,                                       psi_1 = -grad phi_1
    div psi_2 = sum_{i<j} (phi_1,ii phi_1,jj - phi_1,ij^2),   psi_2 = grad phi_2

where delta is the linear density contrast today and phi_1,ij = d^2 phi_1 / dq_i dq_j (Bouchet et
al. 1995, A&A 296, 575; Scoccimarro 1998, MNRAS 299, 1097, appendix D).  Lengths in Mpc/h, k in
h/Mpc.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxvol.types import Array


def wavenumbers(grid: int, box_size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Components of k for `rfftn` of a cube, in h/Mpc, float64.

    Shapes [n, 1, 1], [1, n, 1], [1, 1, n // 2 + 1].
    """
    full = 2.0 * np.pi * np.fft.fftfreq(grid, box_size / grid)
    half = 2.0 * np.pi * np.fft.rfftfreq(grid, box_size / grid)
    return full[:, None, None], full[None, :, None], half[None, None, :]


def mode_amplitude(
    grid: int, box_size: float, power: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """What turns the transform of white noise into that of a field with spectrum `power`.

    sqrt(P(k) / cell volume), with power: k in h/Mpc -> (Mpc/h)^3.  Returns float32 [n, n, n // 2 +
    1] with 0 at k = 0, so that the mean is 0.
    """
    k = np.sqrt(sum(component**2 for component in wavenumbers(grid, box_size)))
    k[0, 0, 0] = 1.0
    amplitude = np.sqrt(power(k) / (box_size / grid) ** 3)
    amplitude[0, 0, 0] = 0.0
    return amplitude.astype(np.float32)


def gaussian_field(noise: Array, amplitude: Array) -> Array:
    """Gaussian random field [n, n, n] from white noise of unit variance and `mode_amplitude`.

    P(k) = V / n^6 <|delta_k|^2> for the unnormalised transform delta_k = amplitude * noise_k, with
    <|noise_k|^2> = n^3.
    """
    return jnp.fft.irfftn(jnp.fft.rfftn(noise) * amplitude, s=noise.shape)


def displacements(delta: Array, box_size: float) -> tuple[Array, Array]:
    """First and second order displacement fields psi_1, psi_2, Mpc/h, for growth factors of 1.

    They are defined at the top of this file.  delta: [n, n, n] linear density contrast today.
    Returns two arrays [n, n, n, 3].  Odd derivatives of the Nyquist frequency are set to zero: that
    mode has no definite sign of k.
    """
    grid = delta.shape[0]
    exact = wavenumbers(grid, box_size)
    k_squared = sum(component**2 for component in exact)
    k_squared[0, 0, 0] = 1.0
    nyquist = np.pi * grid / box_size
    odd = [
        jnp.asarray(np.where(np.abs(c) > nyquist * (1.0 - 1e-9), 0.0, c), delta.dtype)
        for c in exact
    ]
    even = [jnp.asarray(c, delta.dtype) for c in exact]
    inverse_laplacian = jnp.asarray(-1.0 / k_squared, delta.dtype).at[0, 0, 0].set(0.0)

    def real(modes):
        return jnp.fft.irfftn(modes, s=delta.shape)

    def gradient(modes):
        return jnp.stack([real(1j * k * modes) for k in odd], axis=-1)

    potential = inverse_laplacian * jnp.fft.rfftn(delta)
    diagonal = [real(-(k**2) * potential) for k in even]
    source = diagonal[0] * diagonal[1] + diagonal[1] * diagonal[2] + diagonal[2] * diagonal[0]
    for i, j in ((0, 1), (1, 2), (2, 0)):
        source = source - real(-odd[i] * odd[j] * potential) ** 2
    return -gradient(potential), gradient(inverse_laplacian * jnp.fft.rfftn(source))
