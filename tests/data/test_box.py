"""Crops of a box: no voxel of a test crop is in a training crop, and tiles cover once."""

import itertools

import numpy as np
import pytest

from jaxvol.data import box, crops, regions
from jaxvol.types import UserError
from tests.data.toys import config_of, error, h5


def box_config(tmp_path, shape, **overrides):
    """A box whose input says where each voxel is (its flat number), and whose target
    is minus that.
    """
    np.save(tmp_path / "x.npy", np.arange(np.prod(shape), dtype=np.float64).reshape(shape))
    np.save(tmp_path / "y.npy", -np.arange(np.prod(shape), dtype=np.float64).reshape(shape))
    return config_of(
        "box",
        **{
            "input.path": str(tmp_path / "x.npy"),
            "target.path": str(tmp_path / "y.npy"),
            **overrides,
        },
    )


def every_training_voxel(source, draws=400):
    seen, counted = set(), set()
    for i in range(draws):
        example = source.read("train", 0, np.random.default_rng(i))
        seen.update(example["input"].astype(int).ravel().tolist())
        mask = example["mask"] > 0 if "mask" in example else np.ones_like(example["input"], bool)
        counted.update((-example["target"][mask]).astype(int).tolist())
        np.testing.assert_array_equal(example["target"], -example["input"])
    return seen, counted


@pytest.mark.parametrize(
    "shape, crop, margin, axis, periodic, buffer",
    [
        ((24, 4, 5), (3, 2, 2), (0, 0, 0), 0, (True, True, True), 0),
        ((27, 3, 5), (4, 3, 4), (1, 1, 1), 0, (True, True, False), 0),
        ((6, 29, 6), (6, 5, 4), (1, 1, 0), 1, (False, False, True), 6),
        ((5, 5, 26), (5, 3, 3), (0, 0, 0), 2, (True, False, True), 0),
    ],
)
def test_no_voxel_of_an_evaluation_crop_is_in_a_training_crop(
    tmp_path, shape, crop, margin, axis, periodic, buffer
):
    """By brute force: training never touches validation and test crops (context included), and
    tiles cover slabs once.
    """
    config = box_config(
        tmp_path, shape, crop=crop, margin=margin, axis=axis, periodic=periodic, buffer=buffer
    )
    source = box.source(config)
    train_seen, train_counted = every_training_voxel(source)
    seen = {}
    cuts = regions.slabs(
        shape[axis], crop[axis], margin[axis], buffer, config.data.fractions, periodic[axis]
    )
    for split in ("val", "test"):
        touched, counts = set(), np.zeros(shape, int)
        for index in range(source.sizes[split]):
            example = source.read(split, index, None)
            touched.update(example["input"].astype(int).ravel().tolist())
            mask = example["mask"] if "mask" in example else np.ones(example["target"].shape)
            np.add.at(
                counts.ravel(), (-example["target"]).astype(int).ravel(), mask.astype(int).ravel()
            )
        expected = np.zeros(shape, int)
        inside = [
            slice(0 if p else m, n - (0 if p else m)) for p, m, n in zip(periodic, margin, shape)
        ]
        inside[axis] = slice(*cuts[split])
        expected[tuple(inside)] = 1
        np.testing.assert_array_equal(counts, expected)
        seen[split] = touched
        assert not touched & train_seen
    assert not seen["val"] & seen["test"]
    inside[axis] = slice(*cuts["train"])
    expected = np.zeros(shape, int)
    expected[tuple(inside)] = 1
    # and every voxel of its slab is drawn
    assert train_counted == set(np.flatnonzero(expected).tolist())
    assert source.spec.wrap == periodic


@pytest.mark.parametrize("periodic", [True, False])
def test_slabs_against_every_small_case(periodic):
    """Slabs fit, keep their distance and hold a crop, whenever they can; else the message names
    what fits.
    """
    for length, crop, margin in itertools.product(range(4, 30), range(2, 8), range(3)):
        if 2 * margin >= crop:
            continue
        try:
            cuts = regions.slabs(length, crop, margin, 0, (0.6, 0.2, 0.2), periodic)
        except UserError as fault:
            fits = str(fault).split("that fits along it is ")
            if len(fits) == 2:
                regions.slabs(length, int(fits[1].split(".")[0]), margin, 0, (1, 1, 1), periodic)
            needed = (
                3 * (crop - 2 * margin)
                + (3 if periodic else 2) * crop
                + (0 if periodic else 2 * margin)
            )
            assert needed > length
            continue
        (a, b), (c, d), (e, f) = cuts["train"], cuts["val"], cuts["test"]
        assert (
            c - b >= crop
            and e - d >= crop
            and (a + length - f >= crop if periodic else f <= length - margin and a >= margin)
        )
        assert min(b - a, d - c, f - e) >= crop - 2 * margin and (d - c) % (crop - 2 * margin) == 0


def test_a_whole_periodic_axis_is_periodic_in_the_crop(tmp_path):
    source = box.source(
        box_config(tmp_path, (24, 4, 5), crop=(3, 4, 2), periodic=(True, True, True))
    )
    assert source.spec.periodic == (False, True, False) and source.spec.wrap == (True, True, True)
    x = np.arange(24).reshape(2, 3, 4, 1)
    np.testing.assert_array_equal(
        crops.read_wrapped(lambda piece: x[piece], (2, 3, 4), (-1, 2, 3), (2, 3, 2)),
        np.roll(x, (1, -2, -3), (0, 1, 2))[:, :, :2],
    )


def test_bad_boxes(tmp_path):
    shape = (24, 6, 6)
    for change, expected in (
        ({"crop": (8, 3, 3)}, "the largest crop that fits along it is 4"),
        ({"crop": (3, 7, 3)}, "does not fit in the box (24, 6, 6)"),
        ({"margin": (2, 0, 0), "crop": (4, 3, 3)}, "leaves nothing"),
        ({"buffer": 2}, "smaller than a crop"),
        ({"axis": 3}, "data.axis=3"),
        ({"split": "files"}, "'files'"),
        ({"input.path": str(tmp_path / "no*")}, "matches no file"),
        ({"fractions": (1, 1)}, "three numbers"),
        ({"input.channels": ("a", "b")}, "1 channels"),
        ({"spacing": (1, 0, 1)}, "three positive numbers"),
    ):
        config = box_config(tmp_path, shape, **{"crop": (3, 3, 3), **change})
        assert expected in error(box.source, config), change
    np.save(tmp_path / "y2.npy", np.zeros((24, 6, 5)))
    config = box_config(
        tmp_path, shape, **{"crop": (3, 3, 3), "target.path": str(tmp_path / "y2.npy")}
    )
    assert "must have one shape" in error(box.source, config)


def test_several_boxes_are_divided_whole(tmp_path):
    for i in range(4):
        h5(tmp_path / f"box_{i}.h5", x=np.full((5, 5, 5), i), y=np.full((5, 5, 5), 10 * i))
    config = config_of(
        "box",
        **{
            "input.path": str(tmp_path / "box_*.h5"),
            "input.key": "x",
            "target.key": "y",
            "crop": (3, 3, 3),
            "split": "boxes",
            "fractions": (0.5, 0.25, 0.25),
            "periodic": (True, False, True),
        },
    )
    source = box.source(config)
    homes = {
        split: {int(source.read(split, i, None)["input"].mean()) for i in range(size)}
        for split, size in source.sizes.items()
    }
    assert sorted(map(len, homes.values())) == [1, 1, 2]
    assert set.union(*homes.values()) == {0, 1, 2, 3}
    masks = [source.read("test", i, None)["mask"] for i in range(source.sizes["test"])]
    assert sum(mask.sum() for mask in masks) == 5**3


def test_crops_are_a_function_of_the_generator_and_the_mask_is_kept(tmp_path):
    np.save(tmp_path / "m.npy", np.indices((24, 6, 6))[1] > 2)
    config = box_config(
        tmp_path, (24, 6, 6), crop=(3, 6, 6), **{"mask.path": str(tmp_path / "m.npy")}
    )
    source = box.source(config)
    one, two = (source.read("train", 0, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one["input"], two["input"])
    np.testing.assert_array_equal(one["mask"][..., 0], np.indices((3, 6, 6))[1] > 2)
    assert len({source.read("train", i, None)["input"].sum() for i in range(20)}) > 5
    assert box.source(box_config(tmp_path, (24, 6, 6), crop=(3, 6, 6))).hash != source.hash
    batch = next(box.make(config).batches("val", 1, slice(0, 1), 1))
    assert batch["input"].shape == (1, 3, 6, 6, 1)
