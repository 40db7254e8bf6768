"""Prediction keeps containers, units and folders; one bad file does not keep the others from being
predicted.
"""

import json
import shutil

import h5py
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
import zarr
from ml_collections import ConfigDict

from jaxvol.evaluation import inputs, predict
from jaxvol.types import Field, NonFiniteError, Spec, UserError

OPEN = (False, False, False)


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


def run(pattern, tmp_path, spec=None, function=double, made_by=None, **more):
    """Files that predict wrote for a pattern below tmp_path, into tmp_path/run."""
    spec = spec_of() if spec is None else spec
    config = config_of(tmp_path / pattern, **more)
    return list(predict.predict(config, spec, function, tmp_path / "run", made_by or {}))


def test_glob_of_hdf5_keeps_folders_attributes_and_units(tmp_path):
    one, stack = volume(6, 7, 8), volume(3, 6, 7, 8, seed=1)
    write_h5(tmp_path / "in" / "a" / "x.h5", density=one, other=one)
    write_h5(tmp_path / "in" / "b" / "x.h5", density=stack, other=one)
    shapes = set()

    def watched(x):
        shapes.add(x.shape)
        return double(x)

    written = run(
        "in/*/x.h5",
        tmp_path,
        function=watched,
        tile=(4, 4, 4),
        key="density",
        made_by={"run": "fno", "config_hash": "abc"},
    )
    assert shapes == {(1, 4, 4, 4, 1)}  # one compiled shape
    assert written == [tmp_path / "run" / "predictions" / f / "x.h5" for f in "ab"]
    for path, x in zip(written, (one, stack), strict=True):
        with h5py.File(path) as file:
            prediction = file["prediction"]
            assert prediction.dtype == np.float32 and prediction.attrs["note"] == "kept"
            np.testing.assert_allclose(prediction[()], expected(x), atol=2e-5)
    note = json.loads((tmp_path / "run" / "predictions" / "a" / "x.h5.json").read_text())
    assert note["key"] == "density" and note["tile"] == [4, 4, 4] and note["config_hash"] == "abc"
    # no partial files left
    assert sorted(p.name for p in written[0].parent.iterdir()) == ["x.h5", "x.h5.json"]


def test_nifti_keeps_its_affine(tmp_path):
    affine = np.array([[2, 0, 0, -5], [0, 2, 0, 7], [0, 0, 2, 1], [0, 0, 0, 1.0]])
    x = volume(5, 6, 7)
    nibabel.save(nibabel.Nifti1Image(x, affine), tmp_path / "brain.nii.gz")
    (path,) = run("brain.nii.gz", tmp_path)
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
    plan = inputs.plan(tmp_path / "x.npy", tmp_path / "y.npy", tmp_path, "", spec)
    assert plan.axes == axes
    y = predict.predict_file(plan, spec, lambda v: 2 * v, (), 0.5)
    # same axes, channel by channel
    np.testing.assert_allclose(y, expected(x), atol=2e-5)


def test_faults_are_user_errors(tmp_path):
    np.save(tmp_path / "x.npy", volume(4, 4, 4))
    np.save(tmp_path / "nan.npy", np.full((4, 4, 4), np.nan, np.float32))
    np.save(tmp_path / "three.npy", volume(4, 4, 4, 3))
    write_h5(tmp_path / "k.h5", a=volume(4, 4, 4), b=volume(4, 4, 4))
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
            run(pattern, tmp_path, **more)
    with pytest.raises(NonFiniteError, match="not finite"):
        run("x.npy", tmp_path, function=lambda x: x / 0 * jnp.nan)
    assert not list((tmp_path / "run").rglob("*.npy"))  # nothing was written


def bad_nan(folder):
    np.save(folder / "bad.npy", np.full((4, 4, 4), np.nan, np.float32))
    return "bad.npy, key '': found 64 values that are NaN or infinite"


def bad_affine(folder):
    path = folder / "bad.nii"
    nibabel.save(nibabel.Nifti1Image(volume(4, 4, 4), np.eye(4)), path)
    data = path.read_bytes()
    header = nibabel.Nifti1Header(data[:348])
    header["srow_y"][1] = np.nan
    path.write_bytes(header.binaryblock + data[348:])
    return "bad.nii: its affine holds values that are NaN"


def bad_attribute(folder):
    write_h5(folder / "bad.h5", density=volume(4, 4, 4))
    with h5py.File(folder / "bad.h5", "a") as file:
        file.attrs.create("author", b"caf\xe9", dtype=h5py.string_dtype())
    return "bad.h5: its attribute 'author' is no text in UTF-8"


def bad_key(folder):
    write_h5(folder / "bad.h5", density=volume(4, 4, 4))
    with h5py.File(folder / "bad.h5", "a") as file:
        file[b"caf\xe9"] = volume(4, 4, 4)
    return "bad.h5: "


def bad_bytes(folder):
    (folder / "bad.npz").write_bytes(b"PK\x03\x04 torn")
    return "bad.npz: cannot be read as .npz"


def folder_as_note(folder):
    np.save(folder / "bad.npy", volume(4, 4, 4))
    (folder.parent / "run" / "predictions" / "bad.npy.json").mkdir(parents=True)
    return "bad.npy.json, but a folder that is no prediction has this name"


def folder_as_output(folder):
    np.save(folder / "bad.npy", volume(4, 4, 4))
    mine = folder.parent / "run" / "predictions" / "bad.npy"
    mine.mkdir(parents=True)
    (mine / "precious").write_text("mine")
    return "predictions/bad.npy, but a folder that is no prediction has this name"


@pytest.mark.parametrize(
    "spoil",
    [
        bad_nan,
        bad_affine,
        bad_attribute,
        bad_key,
        bad_bytes,
        folder_as_note,
        folder_as_output,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_one_bad_file_is_one_sentence_and_the_others_go_on(tmp_path, spoil):
    folder = tmp_path / "in"
    folder.mkdir()
    x = volume(4, 4, 4)
    for name in ("a.npy", "z.npy"):
        np.save(folder / name, x)
    message = spoil(folder)
    written = []
    with pytest.raises(UserError) as caught:
        config = config_of(folder / "*")
        written.extend(predict.predict(config, spec_of(), double, tmp_path / "run", {}))
    with pytest.raises(UserError) as alone:
        run(f"in/{next(folder.glob('bad*')).name}", tmp_path)
    root = tmp_path / "run" / "predictions"
    for name in ("a.npy", "z.npy"):
        np.testing.assert_allclose(np.load(root / name), expected(x), atol=2e-5)
    first, only = str(caught.value).splitlines()
    assert first == "1 of 3 files were not predicted:" and only == f"  - {alone.value}"
    assert message in only and str(folder) in only
    # nothing of the bad one was written, and what had its name is as it was
    left = sorted(path.relative_to(root).as_posix() for path in root.rglob("bad*/*"))
    assert left == (["bad.npy/precious"] if spoil is folder_as_output else [])
    assert not any(path.is_file() for path in root.glob("bad*"))


def test_an_earlier_prediction_is_replaced_and_a_zarr_folder_of_others_is_not(tmp_path):
    x = volume(4, 4, 4)
    zarr.save_array(tmp_path / "in.zarr", x)
    output = tmp_path / "run" / "predictions" / "in.zarr"
    for factor in (1, 2):  # the second run replaces what the first one wrote
        run("in.zarr", tmp_path, function=lambda v, factor=factor: factor * v)
        last = 3 * factor * (x - 10) / 2 - 1
        np.testing.assert_allclose(zarr.open(output)["prediction"][...], last, atol=2e-5)
    shutil.rmtree(output)
    zarr.save_group(output, prediction=x, mine=x)
    with pytest.raises(UserError, match="in.zarr, but a folder that is no prediction"):
        run("in.zarr", tmp_path)
    np.testing.assert_array_equal(zarr.open(output)["mine"][...], x)


def test_predictions_stay_in_their_folder_and_spare_the_input(tmp_path):
    root = tmp_path / "run" / "predictions"
    (tmp_path / "sub" / "inner").mkdir(parents=True)
    np.save(tmp_path / "x.npy", volume(4, 4, 4))
    with pytest.raises(UserError, match="outside of"):
        run("sub/*/../../x.npy", tmp_path)
    assert inputs.targets(str(tmp_path / "sub" / ".." / "x.npy"), root)[0][1] == root / "x.npy"
    root.mkdir(parents=True)
    np.save(root / "x.npy", volume(4, 4, 4))
    with pytest.raises(UserError, match="overwrite"):
        run("run/predictions/*.npy", tmp_path)
    (root / "away").symlink_to(tmp_path / "sub")
    (tmp_path / "in" / "away").mkdir(parents=True)
    np.save(tmp_path / "in" / "away" / "x.npy", volume(4, 4, 4))
    with pytest.raises(UserError, match="outside of"):
        run("in/*/x.npy", tmp_path)
    assert not (tmp_path / "sub" / "x.npy").exists()
