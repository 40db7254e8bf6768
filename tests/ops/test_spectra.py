"""Power spectra against Pylians, closed forms and a run on eight devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvol.ops import masked, spectra
from jaxvol.types import UserError
from tests import FIXTURES

DATA = FIXTURES
BOX = (100.0, 100.0, 100.0)


def noise(shape=(2, 16, 16, 16, 1), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("window,name", [(None, "None"), ("cic", "CIC")])
def test_pylians(window, name):
    z = np.load(DATA / "pk_pylians_32.npz", allow_pickle=False)
    size = json.loads(str(z["config"]))["BoxSize"]
    a, b = (z[f"input/delta{i}"][None, ..., None] for i in (1, 2))
    p_aa, p_bb, p_ab = (np.asarray(p)[0, :, 0] for p in spectra.spectra(a, b, (size,) * 3, window))
    shells = spectra.shells((32, 32, 32), (size,) * 3)
    expected = {
        key: z[f"output/MAS_{name}/{key}"]
        for key in ("k", "Pk1", "Pk2", "XPk_cross", "r", "Nmodes")
    }
    assert len(p_aa) == shells.last == 15
    # to the corner
    np.testing.assert_array_equal(shells.modes[1 : 1 + len(expected["Nmodes"])], expected["Nmodes"])
    np.testing.assert_allclose(shells.k[1:16], expected["k"][:15], rtol=1e-5)
    np.testing.assert_allclose(p_aa, expected["Pk1"][:15], rtol=1e-5)
    np.testing.assert_allclose(p_bb, expected["Pk2"][:15], rtol=1e-5)
    np.testing.assert_allclose(
        p_ab, expected["XPk_cross"][:15], rtol=1e-5, atol=1e-5 * np.abs(expected["XPk_cross"]).max()
    )
    np.testing.assert_allclose(
        spectra.cross_correlation(p_aa, p_bb, p_ab), expected["r"][:15], atol=1e-5
    )


@pytest.mark.parametrize("mode", [(0, 0, 3), (3, 0, 0), (1, -2, 2), (-2, 4, 1)])
def test_plane_wave(mode):
    """A cos(k x): two conjugate modes of |delta_k|^2 = A^2 / 4 share the shell's modes.

    There is nothing anywhere else.
    """
    n, amplitude = 12, 3.0
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1)
    wave = amplitude * np.cos(2 * np.pi / n * grid @ np.array(mode) + 0.4)[None, ..., None]
    shells, shell = spectra.shells((n, n, n), BOX), int(np.linalg.norm(mode))
    p = np.asarray(spectra.spectra(wave, 2 * wave + 7, BOX))[:, 0, :, 0]
    expected = np.zeros(shells.last)
    expected[shell - 1] = BOX[0] ** 3 * amplitude**2 / 4 / shells.modes[shell]
    np.testing.assert_allclose(p[0], expected, rtol=1e-5, atol=1e-5 * expected.max())
    np.testing.assert_allclose(p[1], 4 * expected, rtol=1e-5, atol=4e-5 * expected.max())
    np.testing.assert_allclose(p[2], 2 * expected, rtol=1e-5, atol=2e-5 * expected.max())


@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 7, 7), (8, 6, 9), (1, 10, 10)])
def test_parseval(shape):
    """The power of all shells, corners included, is the mean square of the fluctuations."""
    x, box = noise((2, *shape, 1)), tuple(2.0 * n for n in shape)
    power = np.abs(spectra.rfftn(masked.deviation(x))) ** 2
    shells = spectra.shells(shape, box)
    sums = spectra.shell_sums(jnp.asarray(power), shape, box, len(shells.k))
    np.testing.assert_allclose(
        np.sum(sums, axis=1) / np.prod(shape) ** 2, np.var(x, axis=(1, 2, 3)), rtol=1e-5
    )
    by_hand = [
        np.bincount(shells.bins.ravel(), (p[..., 0] * spectra.hermitian_weight(shape[2])).ravel())
        for p in power
    ]
    np.testing.assert_allclose(sums[..., 0], by_hand, rtol=1e-5, atol=1e-3)


def test_levels():
    """White noise has P = sigma^2 V / N^3 (an area in 2D), with and without missing voxels or a
    taper; r with itself is 1.
    """
    box, n = (64.0, 64.0, 64.0), 24
    x = 2 * noise((6, n, n, n, 1))
    level = 4 * 64.0**3 / n**3
    flat, _, cross = spectra.spectra(x, x, box)
    np.testing.assert_allclose(spectra.cross_correlation(flat, flat, cross), 1, rtol=1e-5)
    np.testing.assert_allclose(spectra.transfer(4 * flat, flat), 2, rtol=1e-6)
    mask = (noise(x.shape, 3) > -0.5).astype(np.float32)
    holes = np.where(mask > 0, x, np.nan)
    window = spectra.taper((n, n, n), (True, False, False))
    for p in (
        flat,
        spectra.spectra(holes, x, box, weights=mask)[0],
        spectra.spectra(x, x, box, weights=window)[0],
    ):
        assert abs(np.mean(p[:, 3:]) / level - 1) < 0.03
    plane = noise((20, 1, 32, 32, 1))
    assert abs(np.mean(spectra.spectra(plane, plane, (2.0, 64.0, 64.0))[0]) / 4.0 - 1) < 0.04


def test_a_constant_has_no_power():
    x = noise()
    p, _, cross = spectra.spectra(np.full_like(x, 0.1), x, BOX)
    assert not np.any(p) and not np.any(cross)


def test_unknown_window():
    with pytest.raises(UserError, match="tsc"):
        spectra.spectra(noise(), noise(), BOX, "tsc")


@pytest.mark.parametrize("axes", [("data",), ("space",), ("data", "space")])
def test_sharded_boxes(axes):
    """Spectra of a field split over devices by example and by depth equal those on one, and the
    field is not gathered.
    """
    devices = np.array(jax.devices()[:8])
    if len(devices) < 8:
        pytest.skip("needs 8 devices")
    mesh = Mesh(
        devices.reshape(8 if axes == ("data",) else 2 if "data" in axes else 1, -1),
        ("data", "space"),
        axis_types=(AxisType.Auto,) * 2,
    )
    spec = P(*[axis if axis in axes else None for axis in ("data", "space")])
    a, b = noise((8, 16, 16, 16, 1)), noise((8, 16, 16, 16, 1), 1)
    expected = spectra.spectra(a, b, BOX)
    with jax.set_mesh(mesh):
        put = [jax.device_put(x, NamedSharding(mesh, spec)) for x in (a, b)]
        compiled = spectra.spectra.lower(*put, BOX).compile()
        found = compiled(*put)
    for p, q in zip(found, expected):
        np.testing.assert_allclose(p, q, rtol=2e-5, atol=1e-5 * np.abs(expected[0]).max())
    gathered = [
        line
        for line in compiled.as_text().splitlines()
        if " all-gather" in line and "16,16" in line
    ]
    assert not gathered, gathered[:2]


def test_matrix_transform_of_any_size():
    """The transform that several devices use equals the FFT on odd, unequal and
    single-cell axes.
    """
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",), axis_types=(AxisType.Auto,))
    for shape in ((2, 6, 5, 8, 2), (2, 1, 9, 7, 1)):
        with jax.set_mesh(mesh):
            found = jax.jit(spectra.rfftn)(noise(shape))
        np.testing.assert_allclose(found, np.fft.rfftn(noise(shape), axes=(1, 2, 3)), atol=2e-5)
