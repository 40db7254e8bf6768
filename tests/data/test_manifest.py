"""Manifests and globs: which files belong together, and what must not lie in two splits."""

import nibabel
import numpy as np
import pytest

from jaxvol.data import manifest, volumes
from tests.data.toys import config_of, error, h5

RNG = np.random.default_rng(0)


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
    source = volumes.source(config_of("volumes", **patients))
    assert source.sizes == {"train": 4, "val": 2, "test": 2}
    assert source.spec.spacing == (2.0, 3.0, 4.0)
    example = source.read("val", 1, None)
    np.testing.assert_array_equal(
        example["target"][..., 0], nibabel.load(tmp_path / "cta2b.nii.gz").get_fdata()
    )
    np.testing.assert_array_equal(example["mask"][..., 0], np.indices((3, 4, 5))[0] > 0)
    # by fractions over patients
    source = volumes.source(config_of("volumes", **{**patients, "manifest.split": ""}))
    homes = [{name[2] for name in source.names(split)} for split in ("train", "val", "test")]
    assert sorted(map(len, homes)) == [1, 1, 2] and set.union(*homes) == set("0123")


def test_a_group_in_two_splits_is_named(patients, tmp_path):
    table = tmp_path / "m.csv"
    table.write_text(table.read_text().replace("p2,val", "p3,val"))
    assert "'p3' in val, test" in error(volumes.source, config_of("volumes", **patients))


def test_bad_manifests(patients, tmp_path):
    table, text = tmp_path / "m.csv", (tmp_path / "m.csv").read_text()
    for new, expected in (
        (text.replace("truth", "other"), "no column 'truth' (target); columns found: scan, other"),
        (text.replace("p2,val", "p2,valid"), "line 6 has split 'valid', expected train, val or"),
        (text.replace("cta1a.nii.gz", ""), "line 4 has nothing under truth"),
        (text.splitlines()[0], "no rows"),
        ("", "columns found: none"),
        (text.replace("p2,val", "p0,val"), "lies in one split only; found in several: 'p0'"),
        (text.replace("cta1a", "none"), "none.nii.gz: No such file"),
    ):
        table.write_text(new)
        message = error(volumes.source, config_of("volumes", **patients))
        # the table is what has to be mended
        assert expected in message and str(table) in message
    table.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as a CSV manifest" in error(
        volumes.source, config_of("volumes", **patients)
    )


@pytest.mark.parametrize(
    "pattern, names", [("*/ct_?.h5", ["p1 1", "p2 2"]), ("**/ct_[12].h5", ["p1/ 1", "p2/ 2"])]
)
def test_wildcards_name_the_pairs(tmp_path, pattern, names):
    for i in (1, 2):
        h5(tmp_path / f"p{i}" / f"ct_{i}.h5", x=np.ones(2))
    assert list(manifest.matches(f"{tmp_path}/{pattern}", "data.input")) == names
