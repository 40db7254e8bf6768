"""Background, growth and linear matter power spectrum of a flat LCDM universe.

In float64 on the host.  Units: wavenumbers k in h/Mpc, lengths in Mpc/h, power spectra in
(Mpc/h)^3, scale factor a = 1 / (1 + z) with a = 1 today.  Radiation and neutrino masses are
neglected in the growth, as in the N-body and LPT codes that use it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

CMB_TEMPERATURE = 2.7255  # K, Fixsen 2009, arXiv:0911.1955


class Cosmology(NamedTuple):
    """Parameters of flat LCDM.

    The defaults are Planck 2015 (arXiv:1502.01589, table 4, last column).
    """

    omega_m: float = 0.3075  # matter density today, as a fraction of the critical density
    omega_b: float = 0.0486  # baryon density today, same unit; part of omega_m
    h: float = 0.6774  # Hubble constant / (100 km/s/Mpc)
    n_s: float = 0.9667  # slope of the primordial power spectrum
    # standard deviation of the linear density in spheres of 8 Mpc/h today
    sigma8: float = 0.8159


class Growth(NamedTuple):
    """First and second order growth factors and rates f_i = dln D_i / dln a, shaped like a."""

    d1: np.ndarray  # D(a), 1 today
    f1: np.ndarray
    d2: np.ndarray  # D_2(a), negative, -3/7 D^2 in a universe of matter only
    f2: np.ndarray


def matter_fraction(a, cosmology: Cosmology):
    """Omega_m(a) = Om a^-3 / E(a)^2."""
    return cosmology.omega_m / (
        cosmology.omega_m + (1.0 - cosmology.omega_m) * np.asarray(a, np.float64) ** 3
    )


def hubble(a, cosmology: Cosmology):
    """E(a) = H(a) / H0 = sqrt(Om a^-3 + 1 - Om)."""
    return np.sqrt(cosmology.omega_m / np.asarray(a, np.float64) ** 3 + 1.0 - cosmology.omega_m)


def growth(a, cosmology: Cosmology) -> Growth:
    """Growing modes of first and second order, by integration in x = ln a from matter domination.

    D''   + (2 + dlnE/dx) D'   - 3/2 Om(a) D   = 0
    D_2'' + (2 + dlnE/dx) D_2' - 3/2 Om(a) D_2 = -3/2 Om(a) D^2
    with D = a and D_2 = -3/7 a^2 at a = 1e-4, then D(1) = 1 (Bouchet et al. 1995, A&A 296, 575).

    a: scale factor(s), 1e-3 or larger.  Raises ValueError outside that range.
    """
    a = np.asarray(a, np.float64)
    if np.any(a < 1e-3) or np.any(a > 10.0):
        raise ValueError(
            f"growth is tabulated for 0.001 <= a <= 10, got a from {a.min():g} to {a.max():g}"
        )
    start = 1e-4

    def derivative(x, y):
        om = matter_fraction(np.exp(x), cosmology)
        drag = 2.0 - 1.5 * om
        return [
            y[1],
            1.5 * om * y[0] - drag * y[1],
            y[3],
            1.5 * om * (y[2] - y[0] ** 2) - drag * y[3],
        ]

    first, second = start, -3.0 / 7.0 * start**2
    solution = solve_ivp(
        derivative,
        (np.log(start), np.log(10.0)),
        [first, first, second, 2.0 * second],
        method="DOP853",
        rtol=1e-10,
        atol=1e-14,
        dense_output=True,
    ).sol
    today = solution(0.0)[0]
    d1, d1_rate, d2, d2_rate = solution(np.log(a).ravel()).reshape(4, *a.shape)
    return Growth(d1 / today, d1_rate / d1, d2 / today**2, d2_rate / d2)


def transfer(k, cosmology: Cosmology):
    """Matter transfer function with baryon acoustic oscillations, T(k -> 0) = 1.

    Eisenstein & Hu 1998, ApJ 496, 605, arXiv:astro-ph/9709112, equations 2-24.  k in h/Mpc, any
    shape; k = 0 gives 1.
    """
    k = np.maximum(np.asarray(k, np.float64), 1e-10) * cosmology.h  # 1/Mpc, the paper's unit
    om, ob = cosmology.omega_m * cosmology.h**2, cosmology.omega_b * cosmology.h**2
    baryons = ob / om
    theta = CMB_TEMPERATURE / 2.7
    z_eq, k_eq = 2.5e4 * om / theta**4, 0.0746 * om / theta**2
    b1, b2 = 0.313 * om**-0.419 * (1.0 + 0.607 * om**0.674), 0.238 * om**0.223
    z_drag = 1291.0 * om**0.251 / (1.0 + 0.659 * om**0.828) * (1.0 + b1 * ob**b2)
    r_drag, r_eq = (31.5e3 * ob / theta**4 / z for z in (z_drag, z_eq))
    sound = (
        2.0
        / (3.0 * k_eq)
        * np.sqrt(6.0 / r_eq)
        * np.log((np.sqrt(1.0 + r_drag) + np.sqrt(r_drag + r_eq)) / (1.0 + np.sqrt(r_eq)))
    )
    k_silk = 1.6 * ob**0.52 * om**0.73 * (1.0 + (10.4 * om) ** -0.95)
    q, ks = k / (13.41 * k_eq), k * sound

    def pressureless(alpha, beta):  # equations 10, 19, 20
        log = np.log(np.e + 1.8 * beta * q)
        return log / (log + (14.2 / alpha + 386.0 / (1.0 + 69.9 * q**1.08)) * q**2)

    a1 = (46.9 * om) ** 0.670 * (1.0 + (32.1 * om) ** -0.532)
    a2 = (12.0 * om) ** 0.424 * (1.0 + (45.0 * om) ** -0.582)
    alpha_c = a1**-baryons * a2 ** -(baryons**3)
    beta_c = 1.0 / (
        1.0
        + 0.944
        / (1.0 + (458.0 * om) ** -0.708)
        * ((1.0 - baryons) ** ((0.395 * om) ** -0.0266) - 1.0)
    )
    f = 1.0 / (1.0 + (ks / 5.4) ** 4)
    cdm = f * pressureless(1.0, beta_c) + (1.0 - f) * pressureless(alpha_c, beta_c)

    y = (1.0 + z_eq) / (1.0 + z_drag)
    root = np.sqrt(1.0 + y)
    alpha_b = (
        2.07
        * k_eq
        * sound
        * (1.0 + r_drag) ** -0.75
        * y
        * (-6.0 * root + (2.0 + 3.0 * y) * np.log((root + 1.0) / (root - 1.0)))
    )
    beta_b = 0.5 + baryons + (3.0 - 2.0 * baryons) * np.sqrt((17.2 * om) ** 2 + 1.0)
    phase = ks / (1.0 + (8.41 * om**0.435 / ks) ** 3) ** (1.0 / 3.0)
    baryon = (
        pressureless(1.0, 1.0) / (1.0 + (ks / 5.2) ** 2)
        + alpha_b / (1.0 + (beta_b / ks) ** 3) * np.exp(-((k / k_silk) ** 1.4))
    ) * np.sinc(phase / np.pi)
    return baryons * baryon + (1.0 - baryons) * cdm


def top_hat_std(radius: float, k, power):
    """Standard deviation of a field in spheres.

    sigma^2 = int dlnk k^3 P / (2 pi^2) W^2 with W = 3 (sin x - x cos x) / x^3, x = k radius.
    k: [N] increasing, h/Mpc, power: [N] (Mpc/h)^3, radius in Mpc/h.
    """
    x = k * radius
    window = 3.0 * (np.sin(x) - x * np.cos(x)) / x**3
    return np.sqrt(np.trapezoid(k**3 * power * window**2 / (2.0 * np.pi**2), np.log(k)))


def linear_power(k, cosmology: Cosmology):
    """Linear matter power spectrum today, P(k) = A k^n_s T(k)^2 with A fixed by sigma8; P(0) = 0.

    k in h/Mpc, any shape; returns (Mpc/h)^3.  At another time multiply by D(a)^2.
    """
    table = np.geomspace(1e-4, 1e2, 4096)
    shape = table**cosmology.n_s * transfer(table, cosmology) ** 2
    k = np.asarray(k, np.float64)
    return (
        (cosmology.sigma8 / top_hat_std(8.0, table, shape)) ** 2
        * k**cosmology.n_s
        * transfer(k, cosmology) ** 2
    )
