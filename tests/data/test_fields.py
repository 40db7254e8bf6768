"""Fields that are no volumes of numbers: classes, tables, categories, points, views of another
size.
"""

import dataclasses

import jax
import numpy as np
import pytest

from jaxvol.config import base, components
from jaxvol.data import pipeline, source
from jaxvol.ops import rotations
from jaxvol.types import Field, Spec, UserError

FIELDS = {
    "input": Field(("ct",)),
    "organs": Field(
        ("organ",), "label", role="target", class_names=("air", "liver", "spleen", "bone")
    ),
    "small": Field(("ct",), shape=(4, 4, 4), role="context"),
    "blood": Field(("age", "sodium", "never"), "table"),
    "sex": Field(("sex",), "category", class_names=("f", "m")),
    "clicks": Field(("click",), "points", shape=(3,), role="prompt"),
}
SPEC = Spec(FIELDS, (8, 8, 8), (1.0, 1.0, 1.0))


def example(index):
    rng = np.random.default_rng(index)
    x = rng.normal(40, 400, (8, 8, 8, 1)).astype(np.float32)
    age = 50.0 + 10 * index
    return {
        "input": x,
        "organs": (np.digitize(x, [-300, 100, 500])).astype(np.int16),
        "small": x.reshape(4, 2, 4, 2, 4, 2, 1).mean((1, 3, 5)),
        "blood": np.array([age, np.nan if index % 2 else 140.0, np.nan]),
        "sex": np.int64(index % 2),
        "clicks": np.full((3, 4), -1.0, np.float32),
    }


def dataset(read=example, augment=(), spec=SPEC, **fields):
    config = base.common()
    config.data = pipeline.fields()
    config.data.augment = augment
    config.data.update(fields)
    made = source.Source(
        spec,
        {"train": 6, "val": 2, "test": 2},
        lambda split, index, rng: {k: v for k, v in read(index).items() if k in spec.fields},
        lambda split: [f"case {i}" for i in range(6)],
        "fields",
    )
    return pipeline.dataset(made, config.lock()), config


def test_every_kind_comes_as_what_it_is():
    data, config = dataset()
    batch = next(data.batches("val", 2, slice(0, 2), 0))
    raw = [example(0), example(1)]
    assert batch["organs"].dtype == batch["sex"].dtype == np.int32
    np.testing.assert_array_equal(batch["organs"], np.stack([r["organs"] for r in raw]))
    np.testing.assert_array_equal(batch["sex"], [0, 1])
    np.testing.assert_array_equal(batch["clicks"], np.stack([r["clicks"] for r in raw]))
    assert data.spec.fields["organs"].normaliser == ()
    # columns by their own known values of the training examples: ages 50, 60, ..., 100
    ages = np.array([50, 60, 70, 80, 90, 100.0])
    expected = (np.array([50, 60]) - ages.mean()) / ages.std()
    np.testing.assert_allclose(batch["blood"][:, 0], expected, rtol=1e-6)
    # what is unknown is 0 beside a leaf that says so; a column that never varies stays at 0
    np.testing.assert_array_equal(batch["blood_known"], [[1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(batch["blood"][:, 1:], 0)
    template = components.example(config, data.spec, 2)
    for name, leaf in template.items():
        assert (batch[name].shape, batch[name].dtype) == (leaf.shape, leaf.dtype), name


def test_labels_move_with_the_image_and_what_has_no_grid_stays():
    spec = dataclasses.replace(
        SPEC, fields={n: f for n, f in FIELDS.items() if n not in ("clicks",)}
    )
    data, _ = dataset(augment=("cube",), spec=spec)
    moved = 0
    for step in range(4):
        batch = data.batch(step, slice(0, 2))
        for x, organs, small in zip(batch["input"], batch["organs"], batch["small"]):
            step_of = data.spec.fields["input"].normaliser[0]
            hu = x * np.asarray(step_of["std"]) + np.asarray(step_of["mean"])
            np.testing.assert_array_equal(organs, np.digitize(np.round(hu, 2), [-300, 100, 500]))
            coarse = hu.reshape(4, 2, 4, 2, 4, 2, 1).mean((1, 3, 5))
            np.testing.assert_allclose(small, coarse, atol=1e-2)
            moved += not any(np.allclose(hu, example(i)["input"], atol=1e-2) for i in range(6))
    assert moved >= 6  # nearly all were turned


@pytest.mark.parametrize(
    "change, message",
    [
        ({"organs": np.full((8, 8, 8, 1), 4)}, "organs has classes from 4 to 4; expected 0 to 3"),
        ({"organs": np.full((8, 8, 8, 1), 0.5)}, "organs has the type float64; expected whole"),
        ({"blood": np.zeros(2)}, r"blood has shape \(2,\); expected \[3\], as a table has"),
        ({"sex": np.int64(2)}, "sex has classes from 2 to 2; expected 0 to 1"),
        ({"small": np.zeros((8, 8, 8, 1))}, r"small has the volume \(8, 8, 8\)"),
        ({"clicks": np.zeros((2, 4))}, r"clicks has shape \(2, 4\); expected \[3, 4\]"),
    ],
)
def test_a_leaf_that_is_not_what_its_field_says_is_one_error(change, message):
    with pytest.raises(UserError, match=message):
        data, _ = dataset(lambda index: {**example(index), **change})
        next(data.batches("val", 2, slice(0, 2), 0))


def test_points_are_not_left_behind_by_an_augmentation():
    with pytest.raises(UserError, match="'clicks' holds points, which data.augment does not move"):
        dataset(augment=("cube",))


def test_an_unknown_role_is_refused():
    with pytest.raises(UserError, match="role 'labels'; known are input, target"):
        Field(("organ",), "label", role="labels")


def test_a_field_as_it_always_was_reads_the_same():
    """Hashes of datasets are made of it: runs of before must not think that their data changed."""
    assert repr(Field(("x",), "vector", "km/s")) == (
        "Field(channels=('x',), kind='vector', unit='km/s', normaliser=())"
    )
    assert Spec.from_json(SPEC.to_json()) == SPEC
    old = (
        '{"fields": {"input": {"channels": ["x"], "kind": "scalar", "unit": "", "normaliser": []}},'
    )
    old += ' "shape": [8, 8, 8], "spacing": [1, 1, 1]}'
    assert Spec.from_json(old).fields["input"] == Field(("x",))


def test_the_cube_group_is_the_one_that_every_view_allows():
    flat = {**FIELDS, "small": Field(("ct",), shape=(2, 4, 4), role="context")}
    del flat["clicks"]
    spec = dataclasses.replace(SPEC, fields=flat)

    def read(index):
        x = example(index)
        return {**x, "small": x["small"][:2]}

    data, _ = dataset(read, augment=("cube",), spec=spec)
    batch = data.batch(0, slice(0, 2))  # depth is never exchanged with another axis
    assert batch["small"].shape == (2, 2, 4, 4, 1)
    assert len(rotations.allowed((2, 4, 4), (1.0,) * 3, ("scalar",), (False,) * 3)) == 16


def test_a_step_of_the_compiler_sees_what_a_batch_has():
    data, config = dataset()
    batch = data.batch(0, slice(0, 2))
    shapes = {k: (v.shape, v.dtype) for k, v in components.example(config, data.spec, 2).items()}
    assert shapes == {k: (v.shape, v.dtype) for k, v in batch.items()}
    assert jax.tree.structure(shapes)
