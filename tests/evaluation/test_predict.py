"""Sliding windows agree with MONAI and with the whole volume; prediction keeps containers, units
and folders.
"""

import json

import h5py
import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvol.evaluation import predict
from jaxvol.ops import window
from jaxvol.types import Field, NonFiniteError, Spec, UserError
from tests import FIXTURES

GOLDEN = FIXTURES / "sliding_window.npz"
OPEN = (False, False, False)


@jax.jit
def conv(x, kernel, bias):
    """3x3x3 convolution with zero padding of [D, H, W, C]; kernel [K, C, 3, 3, 3] as PyTorch has
    it.
    """
    y = jax.lax.conv_general_dilated(
        x[None],
        kernel,
        (1, 1, 1),
        "SAME",
        dimension_numbers=("NDHWC", "OIDHW", "NDHWC"),
        precision="highest",
    )
    return y[0] + bias


def monai_predictor(golden):
    def function(x):
        d, h, w = (np.linspace(-1, 1, n, dtype=np.float32) for n in x.shape[:3])
        ramp = 0.5 * d[:, None, None] - 0.3 * h[None, :, None] + 0.2 * w
        return (
            np.tanh(conv(x, golden["param/conv.weight"], golden["param/conv.bias"]))
            + ramp[..., None]
        )

    return function


def test_matches_monai():
    golden = np.load(GOLDEN, allow_pickle=False)
    x = golden["input/x"][0].transpose(1, 2, 3, 0)
    for i, run in enumerate(json.loads(str(golden["config"]))["runs"]):
        roi, weights = run["roi_size"], golden[f"output/importance_map_{i}"]
        if run["mode"] == "gaussian":
            np.testing.assert_allclose(window.gaussian(roi), weights, rtol=1e-5)
        y = window.sliding(
            monai_predictor(golden),
            x,
            roi,
            run["overlap"],
            weights=None if run["mode"] == "gaussian" else weights,
        )
        expected = golden[f"output/y_{i}"][0].transpose(1, 2, 3, 0)
        np.testing.assert_allclose(y[..., : run["output_channels"]], expected, atol=1e-5)


def test_a_pointwise_function_is_exact_and_a_local_one_in_the_interior():
    x = np.random.default_rng(0).normal(size=(13, 17, 11, 2)).astype(np.float32)
    for wrap in (OPEN, (True, False, True)):
        # the last is larger than the volume on two axes
        for tile in ((6, 8, 5), (13, 4, 11), (20, 7, 30)):
            np.testing.assert_array_equal(window.sliding(np.sin, x, tile, 0.4, wrap), np.sin(x))
    kernel = np.random.default_rng(1).normal(size=(1, 2, 3, 3, 3)).astype(np.float32)

    def local(volume):
        return conv(volume, kernel, 0.5)

    # the outermost voxels of a tile see its padding
    trusted = np.pad(np.ones((6, 6, 6)), 1, constant_values=1e-12)
    tiled = window.sliding(local, x, (8, 8, 8), 0.5, weights=trusted)
    np.testing.assert_allclose(tiled[1:-1, 1:-1, 1:-1], local(x)[1:-1, 1:-1, 1:-1], atol=1e-5)


def test_a_tile_larger_than_the_volume_pads_both_sides():
    x = np.arange(1.0, 5.0, dtype=np.float32).reshape(4, 1, 1, 1)
    seen = []

    def spy(tile):
        seen.append(tile[:, 0, 0, 0].tolist())
        return tile

    np.testing.assert_array_equal(window.sliding(spy, x, (7, 1, 1), 0.5), x)
    np.testing.assert_array_equal(window.sliding(spy, x, (7, 1, 1), 0.5, (True, False, False)), x)
    # as MONAI: the odd voxel goes behind
    assert seen == [[0, 1, 2, 3, 4, 0, 0], [4, 1, 2, 3, 4, 1, 2]]


def test_periodic_tiles_commute_with_shifts_by_their_stride():
    x = np.random.default_rng(0).normal(size=(16, 12, 8, 1)).astype(np.float32)
    ramp = np.linspace(0, 1, 8, dtype=np.float32)[:, None, None, None]

    def edgy(volume):
        # depends on where the tile lies
        return np.cumsum(volume, axis=0) * ramp + np.cumsum(volume, axis=1)

    def tiled(v):
        return window.sliding(edgy, v, (8, 6, 8), 0.5, (True, True, False))

    np.testing.assert_allclose(
        tiled(np.roll(x, (4, -3), (0, 1))), np.roll(tiled(x), (4, -3), (0, 1)), atol=1e-5
    )
    open_ends = window.sliding(edgy, np.roll(x, 4, 0), (8, 6, 8), 0.5)
    assert np.abs(open_ends - np.roll(window.sliding(edgy, x, (8, 6, 8), 0.5), 4, 0)).max() > 0.1


@pytest.mark.parametrize(
    "size, tile, overlap", [(40, 16, 0.5), (37, 16, 0.25), (9, 3, 0.0), (7, 5, 0.9), (5, 8, 0.5)]
)
def test_tiles_cover_and_spread_evenly(size, tile, overlap):
    first = window.starts(size, tile, overlap)
    covered = np.zeros(max(size, tile), bool)
    for s in first:
        covered[s : s + tile] = True
    assert (
        covered.all() and first == sorted(set(first)) and (tile > size or first[-1] == size - tile)
    )
    ring = window.starts(size, tile, overlap, wrap=True)
    gaps = np.diff([*ring, size]) if len(ring) > 1 else np.array([size])
    assert np.ptp(gaps) <= 1 and gaps.max() <= max(int(tile * (1 - overlap)), 1) + (
        0 if tile < size else size
    )


def spec_of(channels=1, outputs=1, shape=(8, 8, 8), wrap=OPEN):
    scaled = ({"name": "standardise", "mean": [10.0] * channels, "std": [2.0] * channels},)
    back = ({"name": "standardise", "mean": [-1.0] * outputs, "std": [3.0] * outputs},)
    return Spec(
        fields={
            "input": Field(tuple(f"in{i}" for i in range(channels)), normaliser=scaled),
            "target": Field(tuple(f"out{i}" for i in range(outputs)), normaliser=back),
        },
        shape=shape,
        spacing=(2.0, 2.0, 2.0),
        wrap=wrap,
    )


def config_of(pattern, tile=(), key=""):
    return ConfigDict(
        {
            "precision": "f32",
            "predict": {"input": str(pattern), "key": key, "tile": tile, "overlap": 0.5},
        }
    )


def double(x):
    return 2 * x[..., :1]


def expected(x):
    return 3 * (2 * (x - 10) / 2) - 1  # normalise, double, undo


def volume(*shape, seed=0):
    return np.random.default_rng(seed).normal(10, 2, size=shape).astype(np.float32)


def write_h5(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value
            file[key].attrs["note"] = "kept"


def test_glob_of_hdf5_keeps_folders_attributes_and_units(tmp_path):
    one, stack = volume(6, 7, 8), volume(3, 6, 7, 8, seed=1)
    write_h5(tmp_path / "in" / "a" / "x.h5", density=one, other=one)
    write_h5(tmp_path / "in" / "b" / "x.h5", density=stack, other=one)
    shapes = set()

    def watched(x):
        shapes.add(x.shape)
        return double(x)

    written = predict.predict(
        config_of(tmp_path / "in" / "*" / "x.h5", (4, 4, 4)),
        spec_of(),
        watched,
        tmp_path / "run",
        {"run": "fno", "config_hash": "abc"},
        key="density",
    )
    assert shapes == {(1, 4, 4, 4, 1)}  # one compiled shape
    assert written == [tmp_path / "run" / "predictions" / f / "x.h5" for f in "ab"]
    for path, x in zip(written, (one, stack)):
        with h5py.File(path) as file:
            assert (
                file["prediction"].dtype == np.float32
                and file["prediction"].attrs["note"] == "kept"
            )
            np.testing.assert_allclose(file["prediction"][()], expected(x), atol=2e-5)
    note = json.loads((tmp_path / "run" / "predictions" / "a" / "x.h5.json").read_text())
    assert note["key"] == "density" and note["tile"] == [4, 4, 4] and note["config_hash"] == "abc"
    # no partial files left
    assert sorted(p.name for p in written[0].parent.iterdir()) == ["x.h5", "x.h5.json"]


def test_nifti_keeps_its_affine(tmp_path):
    affine = np.array([[2, 0, 0, -5], [0, 2, 0, 7], [0, 0, 2, 1], [0, 0, 0, 1.0]])
    x = volume(5, 6, 7)
    nibabel.save(nibabel.Nifti1Image(x, affine), tmp_path / "brain.nii.gz")
    (path,) = predict.predict(
        config_of(tmp_path / "brain.nii.gz"), spec_of(), double, tmp_path / "run", {}
    )
    image = nibabel.load(path)
    np.testing.assert_array_equal(image.affine, affine)
    np.testing.assert_allclose(image.get_fdata(), expected(x), atol=2e-5)


@pytest.mark.parametrize(
    "shape, channels, training, axes",
    [
        ((5, 6, 7), 1, (8, 8, 8), "DHW"),
        ((5, 6, 7, 2), 2, (8, 8, 8), "DHWC"),
        ((2, 5, 6, 7), 2, (8, 8, 8), "CDHW"),
        ((4, 5, 6, 7), 1, (8, 8, 8), "NDHW"),
        ((4, 2, 5, 6, 7), 2, (8, 8, 8), "NCDHW"),
        ((16, 16), 1, (1, 8, 8), "HW"),
        ((9, 16, 16), 1, (1, 8, 8), "NHW"),
        ((16, 16, 3), 3, (1, 8, 8), "HWC"),
        ((1, 16, 16), 1, (1, 8, 8), "CHW"),
    ],
)
def test_axes_are_understood_and_given_back(tmp_path, shape, channels, training, axes):
    x = volume(*shape)
    np.save(tmp_path / "x.npy", x)
    spec = spec_of(channels, channels, training)
    found = predict.plan(tmp_path / "x.npy", tmp_path / "y.npy", "", spec)
    assert found.axes == axes
    y = predict.predict_file(found, spec, lambda v: 2 * v, (), 0.5)
    # same axes, channel by channel
    np.testing.assert_allclose(y, expected(x), atol=2e-5)


def test_faults_are_user_errors(tmp_path):
    np.save(tmp_path / "x.npy", volume(4, 4, 4))
    np.save(tmp_path / "nan.npy", np.full((4, 4, 4), np.nan, np.float32))
    np.save(tmp_path / "three.npy", volume(4, 4, 4, 3))
    write_h5(tmp_path / "k.h5", a=volume(4, 4, 4), b=volume(4, 4, 4))

    def run(pattern, spec=spec_of(), function=double, **more):
        return predict.predict(
            config_of(tmp_path / pattern, **more), spec, function, tmp_path / "run", {}
        )

    for pattern, more, message in (
        ("none*.npy", {}, "matches no volume"),
        ("nan.npy", {}, "64 values that are NaN"),
        (
            "three.npy",
            {"spec": spec_of(2)},
            r"found shape \(4, 4, 4, 3\); the model takes 2 channel",
        ),
        ("k.h5", {"key": "c"}, "no key 'c'"),
        ("x.npy", {"tile": (4, 4)}, "predict.tile"),
    ):
        with pytest.raises(UserError, match=message):
            run(pattern, **more)
    with pytest.raises(NonFiniteError, match="not finite"):
        run("x.npy", function=lambda x: x / 0 * jnp.nan)
    assert not list((tmp_path / "run").rglob("*.npy"))  # nothing was written


def test_predictions_stay_in_their_folder_and_spare_the_input(tmp_path):
    root = tmp_path / "run" / "predictions"
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "x.npy", volume(4, 4, 4))
    (tmp_path / "sub" / "inner").mkdir()
    with pytest.raises(UserError, match="outside of"):
        predict.targets(str(tmp_path / "sub" / "*" / ".." / ".." / "x.npy"), root)
    assert predict.targets(str(tmp_path / "sub" / ".." / "x.npy"), root)[0][1] == root / "x.npy"
    root.mkdir(parents=True)
    np.save(root / "x.npy", volume(4, 4, 4))
    with pytest.raises(UserError, match="overwrite"):
        predict.targets(str(root / "*.npy"), root)
    (root / "away").symlink_to(tmp_path / "sub")
    (tmp_path / "in" / "away").mkdir(parents=True)
    np.save(tmp_path / "in" / "away" / "x.npy", volume(4, 4, 4))
    with pytest.raises(UserError, match="outside of"):
        predict.targets(str(tmp_path / "in" / "*" / "x.npy"), root)
