"""The users' files: pairing, splits, layouts, manifests; what does not fit is named."""

import h5py
import nibabel
import numpy as np
import pytest

from jaxvol.config import base
from jaxvol.data import layout, manifest, volumes
from jaxvol.data.io import files
from jaxvol.types import UserError

RNG = np.random.default_rng(0)


def config_of(data, **overrides):
    config = base.common()
    config.data = data
    with config.data.unlocked():
        config.data.update_from_flattened_dict(overrides)
    return config


def error(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    return str(caught.value)


def h5(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return str(path)


@pytest.fixture
def subcubes(tmp_path):
    """Ten input files of three subcubes, and outputs that are twice the inputs."""
    for i in range(10):
        x = RNG.normal(size=(3, 4, 4, 4)).astype(np.float32)
        h5(tmp_path / "input" / f"s_{i}.h5", subcubes=x)
        h5(tmp_path / "output" / f"s_{i}.h5", subcubes=2 * x)
    return {
        "root": str(tmp_path),
        "input.files": "input/*.h5",
        "target.files": "output/*.h5",
        "input.key": "subcubes",
        "target.key": "subcubes",
    }


def test_stacked_pairs_are_read_and_divided_by_file(subcubes, tmp_path):
    source = volumes.source(config_of(base.data("volumes"), **subcubes))
    assert source.sizes == {"train": 24, "val": 3, "test": 3} and source.spec.shape == (4, 4, 4)
    names = {split: source.names(split) for split in source.sizes}
    stems = {split: {name.split("[")[0] for name in names[split]} for split in names}
    assert not stems["train"] & (stems["val"] | stems["test"]) and not stems["val"] & stems["test"]
    assert sum(map(len, stems.values())) == 10
    for split, index in (("train", 7), ("test", 2)):
        example = source.read(split, index, None)
        name, row = names[split][index][:-1].split("[")
        np.testing.assert_array_equal(
            example["input"][..., 0], files.read(str(tmp_path / name), "subcubes")[int(row)]
        )
        np.testing.assert_array_equal(example["target"], 2 * example["input"])
    again = volumes.source(config_of(base.data("volumes"), **subcubes))
    assert again.hash == source.hash and again.names("test") == names["test"]
    other = volumes.source(config_of(base.data("volumes"), **subcubes, **{"split.seed": 1}))
    assert other.hash != source.hash


def test_the_pipeline_takes_them(subcubes):
    dataset = volumes.make(config_of(base.data("volumes"), **subcubes))
    batch = dataset.batch(0, slice(0, 2))
    assert batch["input"].shape == (2, 4, 4, 4, 1)
    # both standardised, target = 2 input
    np.testing.assert_allclose(batch["input"], batch["target"], atol=1e-5)


def test_unpaired_files_are_named(subcubes, tmp_path):
    (tmp_path / "output" / "s_3.h5").rename(tmp_path / "output" / "s_33.h5")
    message = error(volumes.source, config_of(base.data("volumes"), **subcubes))
    assert (
        "1 input files have no target: 's_3'" in message
        and "1 target files have no input: 's_33'" in message
    )


def test_broken_files_are_listed_or_skipped(subcubes, tmp_path):
    h5(tmp_path / "input" / "s_2.h5", other=np.zeros((3, 4, 4, 4)))
    h5(tmp_path / "output" / "s_5.h5", subcubes=np.zeros((3, 4, 4, 5)))
    (tmp_path / "output" / "s_8.h5").write_bytes(
        (tmp_path / "output" / "s_8.h5").read_bytes()[:700]
    )
    message = error(volumes.source, config_of(base.data("volumes"), **subcubes))
    assert "3 of 10 files" in message and "data.on_error='skip'" in message
    assert "no key 'subcubes'; keys found: 'other' (3, 4, 4, 4)" in message
    assert (
        "the target has 3 examples of (4, 4, 5); expected 3 of (4, 4, 4)" in message
        and "truncated" in message
    )
    source = volumes.source(config_of(base.data("volumes"), **subcubes, on_error="skip"))
    assert sum(source.sizes.values()) == 21
    message = error(
        volumes.source, config_of(base.data("volumes"), **subcubes, on_error="skip", max_skips=2)
    )
    assert "data.max_skips=2" in message


def test_named_datasets_of_one_file_per_sample(tmp_path):
    """The layout of A-SIM: input (2, n, n, n), output (1, 1, n, n, n), channels first."""
    x, y = RNG.normal(size=(4, 2, 3, 4, 5)), RNG.normal(size=(4, 1, 1, 3, 4, 5))
    for i in range(4):
        h5(tmp_path / f"sim_{i}.h5", input=x[i], output_rho=y[i], output_tscphi=np.zeros(3))
    settings = {
        "root": str(tmp_path),
        "layout": "single",
        "channel_axis": 0,
        "input.files": "*.h5",
        "input.key": "input",
        "input.channels": ("ngal", "vpec"),
        "target.key": "output_rho",
        "split.fractions": (0.5, 0.25, 0.25),
    }
    source = volumes.source(config_of(base.data("volumes"), **settings))
    assert source.sizes == {"train": 2, "val": 1, "test": 1}
    for split in source.sizes:
        i = int(source.names(split)[0].split("_")[1][0])
        example = source.read(split, 0, None)
        np.testing.assert_array_equal(example["input"], np.moveaxis(x[i], 0, -1))
        np.testing.assert_array_equal(example["target"][..., 0], y[i, 0, 0])
    message = error(
        volumes.source, config_of(base.data("volumes"), **{**settings, "channel_axis": -1})
    )
    assert (
        "found shape (2, 3, 4, 5), which has 5 channels (data.channel_axis=-1); expected 2, as "
        "data.input names" in message
    )
    message = error(
        volumes.source,
        config_of(base.data("volumes"), **{**settings, "target.key": "output_tscphi"}),
    )
    assert "found shape (3,); expected 3 spatial axes" in message


@pytest.mark.parametrize(
    "shape, ndim, axis, stacked",
    [
        ((5, 2, 3, 4), 3, -1, True),
        ((5, 2, 3, 4, 6), 3, -1, True),
        ((5, 6, 2, 3, 4), 3, 0, True),
        ((2, 3, 4), 3, 0, False),
        ((5, 3, 4), 2, -1, True),
        ((5, 1, 6, 3, 4), 2, 0, True),
        ((1, 1, 3, 4), 2, 0, False),
    ],
)
def test_axes_agree_with_moving_them_by_hand(shape, ndim, axis, stacked):
    array = RNG.normal(size=shape)
    found = layout.axes(shape, ndim, axis, stacked)
    one = array[-1] if stacked else array
    while one.ndim > ndim + 1:
        one = one[0]
    by_hand = one[..., None] if one.ndim == ndim else one if axis == -1 else np.moveaxis(one, 0, -1)
    by_hand = by_hand[None] if ndim == 2 else by_hand
    piece = tuple(slice(0, n) for n in found.shape)
    np.testing.assert_array_equal(
        found.arrange(array[found.index(found.examples - 1, piece)]), by_hand
    )
    assert found.examples == (5 if stacked else 1) and by_hand.shape == (
        *found.shape,
        found.channels,
    )


def test_planes_of_bool_become_volumes_of_depth_1(tmp_path):
    """The layout of the Darcy files: x [N, 16, 16] bool, y float32, a file for training and one for
    testing.
    """
    for split, n in (("train", 6), ("test", 2)):
        np.savez(
            tmp_path / f"darcy_{split}_16.npz",
            x=RNG.random((n, 16, 16)) > 0.5,
            y=RNG.random((n, 16, 16), np.float32),
        )
    settings = {
        "root": str(tmp_path),
        "ndim": 2,
        "input.key": "x",
        "target.key": "y",
        "input.train": "darcy_train_16.npz",
        "input.test": "darcy_test_16.npz",
    }
    source = volumes.source(config_of(base.data("volumes"), **settings))
    assert source.sizes == {"train": 6, "val": 0, "test": 2} and source.spec.shape == (1, 16, 16)
    example = source.read("test", 1, None)
    stored = np.load(tmp_path / "darcy_test_16.npz")
    assert example["input"].dtype == np.float32
    np.testing.assert_array_equal(example["input"][0, ..., 0], stored["x"][1])
    np.testing.assert_array_equal(example["target"][0, ..., 0], stored["y"][1])
    source = volumes.source(
        config_of(base.data("volumes"), **settings, **{"input.val": "darcy_test_16.npz"})
    )
    assert source.names("val") == source.names("test")
    message = error(
        volumes.source,
        config_of(base.data("volumes"), **settings, **{"input.val": "darcy_train_16.npz"}),
    )
    assert "darcy_train_16.npz' in train, val" in message
    del settings["input.train"], settings["input.test"]
    settings["input.files"] = "darcy_train_16.npz"
    assert "found 1 files or groups for the 3 splits" in error(
        volumes.source, config_of(base.data("volumes"), **settings)
    )
    source = volumes.source(
        config_of(
            base.data("volumes"),
            **settings,
            **{"split.over": "examples", "split.fractions": (0.5, 0.5, 0)},
        )
    )
    assert source.sizes == {"train": 3, "val": 3, "test": 0}
    assert not set(source.names("train")) & set(source.names("val"))


@pytest.fixture
def patients(tmp_path):
    """Two NIfTI scans of each of four patients, and their manifest."""
    affine = np.diag([2.0, 3, 4, 1])
    lines = ["scan,truth,seen,patient,part"]
    for i, part in enumerate(("train", "train", "val", "test")):
        for visit in "ab":
            for kind in ("ct", "cta"):
                image = nibabel.Nifti1Image(RNG.normal(size=(3, 4, 5)).astype(np.float32), affine)
                nibabel.save(image, tmp_path / f"{kind}{i}{visit}.nii.gz")
            np.save(tmp_path / f"m{i}{visit}.npy", np.indices((3, 4, 5))[0] * 7)
            lines.append(f"ct{i}{visit}.nii.gz,cta{i}{visit}.nii.gz,m{i}{visit}.npy,p{i},{part}")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    return {
        "layout": "single",
        "manifest.path": str(tmp_path / "m.csv"),
        "manifest.input": "scan",
        "manifest.target": "truth",
        "manifest.mask": "seen",
        "manifest.group": "patient",
        "manifest.split": "part",
    }


def test_manifest_with_groups_masks_and_spacing(patients, tmp_path):
    source = volumes.source(config_of(base.data("volumes"), **patients))
    assert source.sizes == {"train": 4, "val": 2, "test": 2} and source.spec.spacing == (
        2.0,
        3.0,
        4.0,
    )
    example = source.read("val", 1, None)
    np.testing.assert_array_equal(
        example["target"][..., 0], nibabel.load(tmp_path / "cta2b.nii.gz").get_fdata()
    )
    np.testing.assert_array_equal(example["mask"][..., 0], np.indices((3, 4, 5))[0] > 0)
    # by fractions over patients
    source = volumes.source(config_of(base.data("volumes"), **{**patients, "manifest.split": ""}))
    homes = [{name[2] for name in source.names(split)} for split in ("train", "val", "test")]
    assert sorted(map(len, homes)) == [1, 1, 2] and set.union(*homes) == set("0123")


def test_a_group_in_two_splits_is_named(patients, tmp_path):
    table = tmp_path / "m.csv"
    table.write_text(table.read_text().replace("p2,val", "p3,val"))
    assert "'p3' in val, test" in error(volumes.source, config_of(base.data("volumes"), **patients))


def test_bad_manifests(patients, tmp_path):
    table, text = tmp_path / "m.csv", (tmp_path / "m.csv").read_text()
    for new, expected in (
        (
            text.replace("truth", "other"),
            "no column 'truth' (target); columns found: scan, other, seen",
        ),
        (
            text.replace("p2,val", "p2,valid"),
            "line 6 has split 'valid', expected train, val or test",
        ),
        (text.replace("cta1a.nii.gz", ""), "line 4 has nothing under truth"),
        (text.splitlines()[0], "no rows"),
        ("", "columns found: none"),
        (
            text.replace("p2,val", "p0,val"),
            "a group or file lies in one split only; found in several: 'p0'",
        ),
        (text.replace("cta1a", "none"), "none.nii.gz: No such file"),
    ):
        table.write_text(new)
        told = error(volumes.source, config_of(base.data("volumes"), **patients))
        # the table is what has to be mended
        assert expected in told and str(table) in told
    table.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as a CSV manifest" in error(
        volumes.source, config_of(base.data("volumes"), **patients)
    )


def test_bad_settings_of_volumes(subcubes):
    for change, expected in (
        ({"input.files": "none/*.h5"}, "matches no file"),
        ({"input.files": ""}, "names no files"),
        ({"input.train": "*.h5"}, "given together with train"),
        ({"layout": "rows"}, "data.layout='rows'"),
        ({"ndim": 4}, "data.ndim=4"),
        ({"split.fractions": (0.0, 1.0, 1.0)}, "train positive"),
        ({"target.files": "", "target.train": "*"}, "expected the same"),
    ):
        assert expected in error(
            volumes.source, config_of(base.data("volumes"), **{**subcubes, **change})
        ), change


@pytest.mark.parametrize(
    "pattern, names", [("*/ct_?.h5", ["p1 1", "p2 2"]), ("**/ct_[12].h5", ["p1/ 1", "p2/ 2"])]
)
def test_wildcards_name_the_pairs(tmp_path, pattern, names):
    for i in (1, 2):
        h5(tmp_path / f"p{i}" / f"ct_{i}.h5", x=np.ones(2))
    assert list(manifest.matches(f"{tmp_path}/{pattern}", "data.input")) == names
