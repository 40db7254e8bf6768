"""Growth, linear spectrum, Gaussian fields, 2LPT and painting against theory and other codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import hyp2f1, jv

from jaxvol.ops import cic, cosmology, lpt

PLANCK = cosmology.Cosmology()
# colossus 1.4.0: Om .3075, Ob .0486, h .6774, ns .9667, s8 .8159, flat, relspecies=False, model
# "eisenstein98"
K = np.array([0.001, 0.01, 0.02, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0, 5.0])
COLOSSUS_POWER = np.array(
    [3851.89, 21968.3, 23895.3, 12474.2, 9718.57, 5672.8, 1953.26, 310.115, 66.8965, 1.35063]
)
# camb 2.0.5, same parameters without neutrino mass, scaled to the same sigma8
CAMB_POWER = np.array(
    [3890.84, 22418.2, 24448.9, 12453.4, 9724.85, 5504.01, 1968.5, 315.449, 67.8935, 1.34024]
)
A = np.array([0.01, 0.1, 0.5, 0.8])
COLOSSUS_GROWTH = np.array([0.012764, 0.127588, 0.609256, 0.877027])


displace = jax.jit(lpt.displacements, static_argnums=1)
painted, read = jax.jit(cic.paint), jax.jit(cic.read)


def spectra(x, y, bins):
    """Summed |x|^2, |y|^2 and x y* over shells of |k| in units of the fundamental, 1 ... bins, and
    modes per shell.
    """
    n = x.shape[-1]
    f = np.fft.fftfreq(n) * n
    shell = np.rint(np.sqrt(f[:, None, None] ** 2 + f[:, None] ** 2 + f**2)).astype(int)
    fx, fy = (np.fft.fftn(z.astype(np.float64), axes=(-3, -2, -1)) for z in (x, y))
    powers = [
        (p.real.reshape(-1, n, n, n).mean(0)) for p in (abs(fx) ** 2, abs(fy) ** 2, fx * fy.conj())
    ]
    return [np.bincount(shell.ravel(), weights=p.ravel())[1 : bins + 1] for p in powers] + [
        np.bincount(shell.ravel())[1 : bins + 1]
    ]


def test_growth_against_closed_form_and_colossus():
    a = np.linspace(0.01, 1.0, 37)

    def grown(a):  # flat LCDM without radiation
        return a * hyp2f1(1 / 3, 1, 11 / 6, -(1 - PLANCK.omega_m) / PLANCK.omega_m * a**3)

    found = cosmology.growth(a, PLANCK)
    np.testing.assert_allclose(found.d1, grown(a) / grown(1.0), rtol=1e-7)
    np.testing.assert_allclose(cosmology.growth(A, PLANCK).d1, COLOSSUS_GROWTH, rtol=1e-4)
    step = 1e-4
    for value, rate in ((0, 1), (2, 3)):
        up, down = (cosmology.growth(a[:-1] * np.exp(s), PLANCK)[value] for s in (step, -step))
        np.testing.assert_allclose(found[rate][:-1], np.log(up / down) / (2 * step), rtol=1e-5)
    # Bouchet et al. 1995: D_2 = -3/7 D^2 Om(a)^(-1/143), f_2 = 2 Om(a)^(6/11), good to about half a
    # per cent
    om = cosmology.matter_fraction(a, PLANCK)
    np.testing.assert_allclose(found.d2, -3 / 7 * found.d1**2 * om ** (-1 / 143), rtol=3e-4)
    np.testing.assert_allclose(found.f2, 2 * om ** (6 / 11), rtol=5e-3)
    matter_only = PLANCK._replace(omega_m=1 - 1e-9)
    np.testing.assert_allclose(
        cosmology.growth(0.3, matter_only), [0.3, 1, -3 / 7 * 0.09, 2], rtol=1e-6
    )
    with pytest.raises(ValueError, match="0.001"):
        cosmology.growth(1e-5, PLANCK)


def test_power_against_stored_numbers_and_sigma8():
    np.testing.assert_allclose(cosmology.linear_power(K, PLANCK), COLOSSUS_POWER, rtol=1e-4)
    # the accuracy of the fit
    np.testing.assert_allclose(cosmology.linear_power(K, PLANCK), CAMB_POWER, rtol=0.04)
    k = np.geomspace(2e-5, 50, 20000)
    assert cosmology.top_hat_std(8.0, k, cosmology.linear_power(k, PLANCK)) == pytest.approx(
        0.8159, rel=1e-4
    )
    np.testing.assert_array_equal(cosmology.linear_power(np.zeros(2), PLANCK), 0)


@pytest.mark.parametrize("parameters", [PLANCK, cosmology.Cosmology(0.25, 0.06, 0.75, 0.92, 0.7)])
def test_power_and_growth_against_installed_colossus(parameters):
    colossus = pytest.importorskip("colossus.cosmology.cosmology")
    oracle = colossus.setCosmology(
        "oracle",
        params={
            "flat": True,
            "H0": 100 * parameters.h,
            "Om0": parameters.omega_m,
            "Ob0": parameters.omega_b,
            "ns": parameters.n_s,
            "sigma8": parameters.sigma8,
            "relspecies": False,
        },
        persistence="",
    )
    expected = oracle.matterPowerSpectrum(K, model="eisenstein98")
    np.testing.assert_allclose(cosmology.linear_power(K, parameters), expected, rtol=1e-3)
    np.testing.assert_allclose(
        cosmology.growth(A, parameters).d1, oracle.growthFactor(1 / A - 1), rtol=1e-4
    )


def test_gaussian_field_has_the_spectrum_asked_for():
    n, box_size, count = 16, 100.0, 64
    amplitude = lpt.mode_amplitude(n, box_size, lambda k: cosmology.linear_power(k, PLANCK))
    noise = jax.random.normal(jax.random.key(1), (count, n, n, n))
    fields = np.asarray(jax.jit(jax.vmap(lpt.gaussian_field, (0, None)))(noise, amplitude))
    assert abs(fields.mean(axis=(1, 2, 3))).max() < 1e-6
    measured, _, _, modes = spectra(fields, fields, n // 2)
    k = np.sqrt(sum(c**2 for c in np.meshgrid(*[np.fft.fftfreq(n) * n] * 3, indexing="ij")))
    shells = np.rint(k)
    power = cosmology.linear_power(k * 2 * np.pi / box_size, PLANCK)
    expected = np.array([power[shells == s].mean() for s in range(1, n // 2 + 1)])
    ratio = measured / modes * box_size**3 / n**6 / expected
    # a Gaussian field: modes / 2 independent complex numbers
    error = np.sqrt(2 / (modes * count))
    assert (abs(ratio - 1) < 4.5 * error).all(), ratio
    assert error.max() < 0.05


def test_plane_wave_is_the_exact_zeldovich_solution():
    n, box_size, amplitude = 32, 100.0, 0.5
    k = 2 * np.pi / box_size
    q = np.arange(n) * box_size / n
    delta = jnp.asarray(
        np.broadcast_to(amplitude * np.cos(k * q)[:, None, None], (n,) * 3), jnp.float32
    )
    first, second = displace(delta, box_size)
    np.testing.assert_allclose(
        first[..., 0],
        np.broadcast_to(-amplitude / k * np.sin(k * q)[:, None, None], (n,) * 3),
        atol=1e-4,
    )
    np.testing.assert_allclose(first[..., 1:], 0, atol=1e-4)
    np.testing.assert_allclose(second, 0, atol=1e-4)
    # no second order in any direction: phi,ii phi,jj = phi,ij^2
    phase = k * (q[:, None, None] + 2 * q[:, None] - q)
    np.testing.assert_allclose(
        displace(jnp.asarray(amplitude * np.cos(phase), jnp.float32), box_size)[1], 0, atol=1e-4
    )
    # before shell crossing the density is 1 + 2 sum_m J_m(m A) cos(m k x): the mean of cos(m k
    # x(q)) over q is J_m(m A)
    density = np.asarray(painted(first * n / box_size)).mean(axis=(1, 2))
    for m in (1, 2, 3):
        window = np.sinc(m / n) ** 2  # of cloud-in-cell
        assert 2 * np.mean(density * np.cos(m * k * q)) / window == pytest.approx(
            2 * jv(m, m * amplitude), abs=0.01
        )


def test_crossed_waves_reach_second_order_perturbation_theory():
    """delta_2 of A cos kx + B cos ky is 2 F_2 A B cos kx cos ky.

    F_2 = 5/7 for orthogonal equal wave vectors.
    """
    n, box_size, a, b = 16, 50.0, 0.06, 0.04
    phase = 2 * np.pi * np.arange(n) / n
    delta = jnp.asarray(
        np.broadcast_to(a * np.cos(phase)[:, None, None] + b * np.cos(phase)[:, None], (n,) * 3),
        jnp.float32,
    )
    first, second = displace(delta, box_size)
    q = np.stack(np.meshgrid(phase, phase, phase, indexing="ij"), -1)
    # with and without the second-order displacement
    for d2, expected in ((-3 / 7, 10 / 7), (0.0, 1.0)):
        x = q + np.asarray(first + d2 * second, np.float64) * 2 * np.pi / box_size
        # int rho f dx = int f(x(q)) dq
        found = 4 * np.mean(np.cos(x[..., 0]) * np.cos(x[..., 1]))
        assert found / (a * b) == pytest.approx(expected, rel=5e-3)


def test_displacements_undo_their_divergence_on_odd_and_even_grids():
    for n in (9, 8):
        # a Nyquist mode has no gradient
        keep, half = (abs(f(n) * n) < n / 2 for f in (np.fft.fftfreq, np.fft.rfftfreq))
        modes = (
            np.fft.rfftn(np.random.default_rng(0).normal(size=(n,) * 3))
            * keep[:, None, None]
            * keep[:, None]
            * half
        )
        modes[0, 0, 0] = 0
        first, _ = displace(
            jnp.asarray(np.fft.irfftn(modes, (n,) * 3, (0, 1, 2)), jnp.float32), 30.0
        )
        k = lpt.wavenumbers(n, 30.0)
        divergence = sum(1j * k[i] * np.fft.rfftn(np.asarray(first[..., i])) for i in range(3))
        np.testing.assert_allclose(divergence, -modes, atol=1e-4)


def test_painting_conserves_mass_interpolates_linearly_and_is_the_transpose_of_reading():
    rng = np.random.default_rng(0)
    displacement = jnp.asarray(rng.normal(scale=3, size=(6, 8, 10, 3)), jnp.float32)
    weight, mesh = (jnp.asarray(rng.normal(size=(6, 8, 10)), jnp.float32) for _ in range(2))
    assert float(painted(displacement).astype(jnp.float32).mean()) == pytest.approx(1, abs=1e-6)
    assert float(jnp.vdot(painted(displacement, weight), mesh)) == pytest.approx(
        float(jnp.vdot(weight, read(mesh, displacement))), rel=1e-4
    )
    for axis, shift, whole, part in ((0, 0.25, 0, 0.25), (1, -1.25, -2, 0.75), (2, 13.5, 13, 0.5)):
        moved = painted(jnp.zeros((6, 8, 10, 3)).at[..., axis].set(shift), weight)
        base_roll = np.roll(weight, whole, axis)
        np.testing.assert_allclose(
            moved, (1 - part) * base_roll + part * np.roll(base_roll, 1, axis), atol=1e-6
        )
