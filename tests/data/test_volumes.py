"""The users' files: pairs of globs, layouts, division by fractions; what does not fit is named."""

import numpy as np
import pytest

from jaxvol.data import volumes
from jaxvol.data.io import files
from tests.data.toys import config_of, error, h5

RNG = np.random.default_rng(0)


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
    source = volumes.source(config_of("volumes", **subcubes))
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
    again = volumes.source(config_of("volumes", **subcubes))
    assert again.hash == source.hash and again.names("test") == names["test"]
    other = volumes.source(config_of("volumes", **subcubes, **{"split.seed": 1}))
    assert other.hash != source.hash


def test_the_pipeline_takes_them(subcubes):
    dataset = volumes.make(config_of("volumes", **subcubes))
    batch = dataset.batch(0, slice(0, 2))
    assert batch["input"].shape == (2, 4, 4, 4, 1)
    # both standardised, target = 2 input
    np.testing.assert_allclose(batch["input"], batch["target"], atol=1e-5)


def test_unpaired_files_are_named(subcubes, tmp_path):
    (tmp_path / "output" / "s_3.h5").rename(tmp_path / "output" / "s_33.h5")
    message = error(volumes.source, config_of("volumes", **subcubes))
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
    message = error(volumes.source, config_of("volumes", **subcubes))
    assert "3 of 10 files" in message and "data.on_error='skip'" in message
    assert "no key 'subcubes'; keys found: 'other' (3, 4, 4, 4)" in message
    assert (
        "the target has 3 examples of (4, 4, 5); expected 3 of (4, 4, 4)" in message
        and "truncated" in message
    )
    source = volumes.source(config_of("volumes", **subcubes, on_error="skip"))
    assert sum(source.sizes.values()) == 21
    message = error(volumes.source, config_of("volumes", **subcubes, on_error="skip", max_skips=2))
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
    source = volumes.source(config_of("volumes", **settings))
    assert source.sizes == {"train": 2, "val": 1, "test": 1}
    for split in source.sizes:
        i = int(source.names(split)[0].split("_")[1][0])
        example = source.read(split, 0, None)
        np.testing.assert_array_equal(example["input"], np.moveaxis(x[i], 0, -1))
        np.testing.assert_array_equal(example["target"][..., 0], y[i, 0, 0])
    message = error(volumes.source, config_of("volumes", **{**settings, "channel_axis": -1}))
    assert (
        "found shape (2, 3, 4, 5), which has 5 channels (data.channel_axis=-1); expected 2, as "
        "data.input names" in message
    )
    message = error(
        volumes.source,
        config_of("volumes", **{**settings, "target.key": "output_tscphi"}),
    )
    assert "found shape (3,); expected 3 spatial axes" in message


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
    source = volumes.source(config_of("volumes", **settings))
    assert source.sizes == {"train": 6, "val": 0, "test": 2} and source.spec.shape == (1, 16, 16)
    example = source.read("test", 1, None)
    stored = np.load(tmp_path / "darcy_test_16.npz")
    assert example["input"].dtype == np.float32
    np.testing.assert_array_equal(example["input"][0, ..., 0], stored["x"][1])
    np.testing.assert_array_equal(example["target"][0, ..., 0], stored["y"][1])
    source = volumes.source(config_of("volumes", **settings, **{"input.val": "darcy_test_16.npz"}))
    assert source.names("val") == source.names("test")
    message = error(
        volumes.source,
        config_of("volumes", **settings, **{"input.val": "darcy_train_16.npz"}),
    )
    assert "darcy_train_16.npz' in train, val" in message
    del settings["input.train"], settings["input.test"]
    settings["input.files"] = "darcy_train_16.npz"
    assert "found 1 files or groups for the 3 splits" in error(
        volumes.source, config_of("volumes", **settings)
    )
    source = volumes.source(
        config_of(
            "volumes",
            **settings,
            **{"split.over": "examples", "split.fractions": (0.5, 0.5, 0)},
        )
    )
    assert source.sizes == {"train": 3, "val": 3, "test": 0}
    assert not set(source.names("train")) & set(source.names("val"))


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
        assert expected in error(volumes.source, config_of("volumes", **{**subcubes, **change})), (
            change
        )
