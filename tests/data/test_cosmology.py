"""The simulated boxes: what is in them, on what they depend, and the particle-mesh evolution."""

import functools
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.data import cosmology as boxes
from jaxvol.data.simulation import cosmology as simulation
from jaxvol.ops import cosmology, lpt, nbody
from jaxvol.types import UserError
from tests.data.toys import config_of
from tests.ops.test_lpt import spectra

PLANCK = cosmology.Cosmology()


def make_config(folder, **data):
    """Small boxes, cached in `folder`."""
    small = {
        "cache_dir": str(folder),
        "grid": 16,
        "box_size": 64.0,
        "boxes.train": 2,
        "boxes.val": 1,
        "boxes.test": 1,
    }
    return config_of("cosmology", **small | data)


def every_box(source):
    return {
        (split, i): source.read(split, i, None)
        for split in source.sizes
        for i in range(source.sizes[split])
    }


def same(a, b):
    return a.keys() == b.keys() and all(
        np.array_equal(a[key][name], b[key][name]) for key in a for name in ("input", "target")
    )


@pytest.fixture(scope="module")
def matter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matter")
    return folder, boxes.source(make_config(folder, **{"boxes.train": 8}))


def test_boxes_are_physical(matter):
    """Mean density 1, target of the linear spectrum, and 2LPT that keeps the large scales and loses
    the small ones.
    """
    _, source = matter
    x, y = (
        np.stack([source.read("train", i, None)[name][..., 0] for i in range(8)])
        for name in ("input", "target")
    )
    np.testing.assert_allclose(x.mean(axis=(1, 2, 3)), 1, atol=1e-5)
    assert x.min() >= 0
    axes = np.meshgrid(*[np.fft.fftfreq(16) * 16] * 3, indexing="ij")
    k = np.sqrt(sum(c**2 for c in axes)) * 2 * np.pi / 64
    assert y.var() == pytest.approx(cosmology.linear_power(k, PLANCK).sum() / 64**3, rel=0.15)
    pxx, pyy, pxy, _ = spectra(x - 1, y, 8)
    r = pxy / np.sqrt(pxx * pyy)
    assert r[0] > 0.9 and 0.3 < r[2] < 0.9 and abs(r[6]) < 0.2, r
    batch = boxes.make(make_config(matter[0])).batch(0, slice(0, 2))
    assert all(abs(v.mean()) < 0.1 and abs(v.std() - 1) < 0.1 for v in batch.values()), (
        "normalised: log density, delta"
    )
    assert source.spec.spacing == (4.0,) * 3
    assert source.spec.periodic == source.spec.wrap == (True,) * 3


def test_faint_initial_conditions_stay_linear(tmp_path):
    config = make_config(tmp_path, redshift=1.0)
    config.data.parameters.sigma8 = 0.8159e-3
    box = boxes.source(config).read("train", 0, None)
    pxx, pyy, pxy, _ = spectra(box["input"][..., 0] - 1, box["target"][..., 0], 1)
    # the painting window is 0.98
    np.testing.assert_allclose(pxy / pyy, cosmology.growth(0.5, PLANCK).d1, rtol=0.05)
    assert pxy / np.sqrt(pxx * pyy) > 0.99


def test_tracers_are_poisson_biased_and_squeezed_along_the_line_of_sight(tmp_path):
    config = make_config(tmp_path, pairs="tracers2dm", **{"boxes.train": 4})
    config.data.tracers.nbar = 0.5
    source = boxes.source(config)
    counts = np.stack([source.read("train", i, None)["input"] for i in range(4)])
    mean = 0.5 * 4**3
    assert (counts == np.rint(counts)).all() and (counts >= 0).all()
    assert abs(counts.sum() / (mean * counts.size) - 1) < 5 / np.sqrt(mean * counts.size)
    assert source.spec.fields["input"].kind == "line_of_sight=2"
    assert source.spec.fields["target"].kind == "scalar"
    # linear theory (Kaiser 1987): a wave along the line of sight has amplitude b + f, a wave across
    # it b
    n, box_size, amplitude = 32, 100.0, 0.05
    growth = cosmology.growth(1.0, PLANCK)
    wave = np.cos(2 * np.pi * np.arange(n) / n)
    for axis, expected in ((0, 2.0 + growth.f1), (1, 2.0)):
        profile = np.moveaxis(np.broadcast_to(wave[:, None, None], (n,) * 3), 0, axis)
        moved = simulation.second_order(
            jnp.asarray(amplitude * profile, jnp.float32)[None], growth, box_size
        )
        rate, _ = simulation.tracer_rates(*moved, box_size, 2.0, 0)
        assert float(2 * (np.asarray(rate[0]) * profile).mean()) / amplitude == pytest.approx(
            expected, rel=0.02
        )
    config.data.tracers.redshift_space = False
    assert boxes.specify(boxes.box_settings(config.data)).fields["input"].kind == "scalar"


def test_a_box_depends_on_its_seed_split_and_index_only(matter, tmp_path):
    _, source = matter
    small = boxes.source(make_config(tmp_path))
    for split, i in (("train", 0), ("train", 1), ("val", 0), ("test", 0)):
        for name in ("input", "target"):
            np.testing.assert_array_equal(
                small.read(split, i, None)[name], source.read(split, i, None)[name]
            )
    realisations = (("train", 0), ("train", 1), ("val", 0), ("test", 0))
    targets = [source.read(split, i, None)["target"].ravel() for split, i in realisations]
    # 4096 correlated cells: chance alone gives 0.05
    assert abs(np.corrcoef(targets) - np.eye(4)).max() < 0.2
    config = make_config(tmp_path, simulation_seed=7)
    config.seed = 123
    other = boxes.source(config)
    assert not same(every_box(other), every_box(small)) and other.hash != small.hash != source.hash
    assert boxes.source(make_config(tmp_path)).hash == small.hash


def test_senseless_settings_are_one_error_that_names_them_all(tmp_path):
    config = make_config(tmp_path, pairs="dm2dm", redshift=-1.0)
    config.data.parameters.omega_b = 0.9
    config.data.boxes.val = 0
    with pytest.raises(UserError) as error:
        boxes.source(config)
    for word in (
        "data.pairs is 'dm2dm': expected dm2ic or tracers2dm",
        "data.redshift",
        "parameters.omega_b",
        "boxes.val",
    ):
        assert word in str(error.value)


def test_particle_mesh_refuses_coarse_meshes_and_names_its_extra(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cells of 4 Mpc/h; expected at most 2"):
        boxes.source(make_config(tmp_path, evolution="pm", box_size=128.0))
    monkeypatch.setitem(sys.modules, "pmpp", None)
    with pytest.raises(UserError, match="pmpp.*extra 'nbody'.*evolution '2lpt'"):
        boxes.source(make_config(tmp_path, evolution="pm"))


@pytest.mark.skipif(
    not find_spec("pmpp") or jax.__version_info__ >= (0, 11),
    reason="needs pmpp, which needs jax < 0.11",
)
def test_particle_mesh_evolves_the_modes_of_the_target(matter, tmp_path, monkeypatch):
    # compiled once in this test
    monkeypatch.setattr(nbody, "particle_mesh", functools.lru_cache(nbody.particle_mesh))
    config = make_config(tmp_path, evolution="pm", pm_steps=12, **{"boxes.train": 1})
    box = boxes.source(config).read("train", 0, None)
    reference = matter[1].read("train", 0, None)
    assert not jax.config.jax_enable_x64  # importing pmpp turns it on
    np.testing.assert_array_equal(box["target"], reference["target"])
    assert box["input"].mean() == pytest.approx(1, abs=1e-5)
    pxx, pyy, pxy, _ = spectra(box["input"][..., 0] - 1, reference["input"][..., 0] - 1, 3)
    assert (pxy / np.sqrt(pxx * pyy))[0] > 0.97
    # small displacements: linear theory for positions and velocities, up to the resolution of the
    # forces
    n, box_size = 16, 64.0
    wave = jnp.asarray(
        np.broadcast_to(0.01 * np.cos(2 * np.pi * np.arange(n) / n)[:, None, None], (n,) * 3),
        jnp.float32,
    )
    first, _ = lpt.displacements(wave, box_size)
    growth = cosmology.growth(1.0, PLANCK)
    position, velocity = nbody.particle_mesh(n, box_size, PLANCK, 1.0, 12)(wave)
    for moved, expected in ((position, growth.d1), (velocity, growth.d1 * growth.f1)):
        assert float(jnp.vdot(moved, first) / jnp.vdot(first, first)) == pytest.approx(
            expected, rel=0.06
        )
