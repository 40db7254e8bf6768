"""Augmentation: all leaves move alike, within the group that the fields and the grid allow."""

import itertools

import numpy as np
import pytest

from jaxvol.data import pipeline
from jaxvol.data.augment import augment
from jaxvol.ops import rotations
from jaxvol.types import UserError
from tests.data.toys import SHAPE, make_config, make_source, make_spec, volume


def test_augmentation_moves_all_leaves_alike_and_turns_vectors():
    spec = make_spec(3, kind="vector")
    rng = np.random.default_rng(0)
    density = rng.normal(size=(*SHAPE, 1))
    grad = np.concatenate(
        [(np.roll(density, -1, i) - np.roll(density, 1, i)) / 2 for i in range(3)], -1
    )
    seen = set()
    for seed in range(40):
        out = augment(
            {"input": grad, "target": density, "mask": density > 0},
            spec,
            np.random.default_rng(seed),
            ("cube", "shift"),
        )
        moved = out["target"]
        np.testing.assert_allclose(
            out["input"],
            np.concatenate(
                [(np.roll(moved, -1, i) - np.roll(moved, 1, i)) / 2 for i in range(3)], -1
            ),
            atol=1e-14,
        )
        np.testing.assert_array_equal(out["mask"], moved > 0)
        np.testing.assert_array_equal(np.sort(moved.ravel()), np.sort(density.ravel()))
        seen.add(moved.tobytes())
    # of 48 * 64 equally likely ones
    assert len(seen) == 40
    same = augment({"input": grad, "target": density}, spec, rng, ())
    np.testing.assert_array_equal(same["target"], density)


def test_augmentation_keeps_to_the_group_and_the_periodic_axes():
    spec = make_spec(kind="line_of_sight=2", periodic=(True, False, False))
    x = volume(0)
    coordinate = np.broadcast_to(np.arange(4.0)[:, None, None, None], (4, 4, 4, 1))
    group = rotations.allowed(
        spec.shape, spec.spacing, ("line_of_sight=2", "scalar"), spec.periodic
    )
    assert len(group) == 8
    images = {np.roll(rotations.apply(e, x), s, 0).tobytes() for e in group for s in range(4)}
    seen = set()
    for seed in range(300):
        out = augment(
            {"input": x, "target": coordinate}, spec, np.random.default_rng(seed), ("cube", "shift")
        )
        seen.add(out["input"].tobytes())
        # axis 0 never leaves its place
        assert (out["target"] == out["target"][:, :1, :1]).all()
    assert seen == images
    with pytest.raises(UserError, match="no axis of the volumes .* is periodic"):
        pipeline.dataset(
            make_source(spec=make_spec(periodic=(False,) * 3)), make_config(augment=("shift",))
        )
    with pytest.raises(UserError, match="'input' has the kind 'coordinates'.*collocation"):
        pipeline.dataset(
            make_source(spec=make_spec(kind="coordinates")), make_config(augment=("cube",))
        )
    with pytest.raises(UserError, match="names out of cube, transpose, shift"):
        pipeline.dataset(make_source(), make_config(augment=("rotate",)))


def test_transpose_exchanges_axes_and_never_mirrors():
    x, spec = volume(0), make_spec(periodic=(True, True, True))
    seen = {
        augment({"input": x, "target": x}, spec, np.random.default_rng(seed), ("transpose",))[
            "input"
        ].tobytes()
        for seed in range(80)
    }
    expected = {
        np.ascontiguousarray(x.transpose(*axes, 3)).tobytes()
        for axes in itertools.permutations(range(3))
    }
    assert seen == expected and len(expected) == 6
