"""The cube group is a group, moves vectors with their axes, and respects what a volume declares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.ops import rotations
from jaxvol.types import UserError


def gradient(f):
    """Centred differences on a periodic grid: [D, H, W, 1] -> [D, H, W, 3]."""
    return np.concatenate(
        [(np.roll(f, -1, axis) - np.roll(f, 1, axis)) / 2 for axis in range(3)], -1
    )


def volume(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def compose(after, before):
    """The element that does `before`, then `after`."""
    return rotations.Element(
        tuple(before.axes[a] for a in after.axes),
        tuple(flip != before.flips[a] for a, flip in zip(after.axes, after.flips)),
    )


def test_table_is_a_group_of_signed_permutations():
    table = np.array(
        [
            [rotations.ELEMENTS.index(compose(a, b)) for b in rotations.ELEMENTS]
            for a in rotations.ELEMENTS
        ]
    )
    matrices = np.array([rotations.matrix(e) for e in rotations.ELEMENTS])
    assert len({m.tobytes() for m in matrices}) == 48
    # closed, and M(ab) = M(a) M(b)
    np.testing.assert_array_equal(matrices[table], matrices[:, None] @ matrices[None])
    for element, m in zip(rotations.ELEMENTS, matrices):
        np.testing.assert_array_equal(rotations.matrix(rotations.inverse(element)), m.T)
    assert rotations.ELEMENTS[0] == rotations.IDENTITY and (matrices[0] == np.eye(3)).all()
    assert sum(round(np.linalg.det(m)) == 1 for m in matrices) == 24


@pytest.mark.parametrize("kind", ["scalar", "vector"])
def test_action_composes_and_inverts(kind):
    x = volume(2, 3, 4, 5, 3)
    rng = np.random.default_rng(1)
    for i, j in rng.integers(48, size=(60, 2)):
        a, b = rotations.ELEMENTS[i], rotations.ELEMENTS[j]
        twice = rotations.apply(a, rotations.apply(b, x, kind), kind)
        np.testing.assert_array_equal(twice, rotations.apply(compose(a, b), x, kind))
        np.testing.assert_array_equal(
            rotations.apply(rotations.inverse(a), rotations.apply(a, x, kind), kind), x
        )


def test_action_is_the_matrix_about_the_centre():
    n = 5
    x = volume(n, n, n, 1)
    for element in rotations.ELEMENTS:
        moved, m = rotations.apply(element, x), rotations.matrix(element)
        for q in [(0, 1, 2), (4, 4, 1), (3, 0, 0)]:
            p = m @ (np.array(q) - 2) + 2
            assert moved[tuple(p)] == x[q]


def test_gradient_of_the_moved_scalar_is_the_moved_gradient():
    f = volume(6, 6, 6, 1)
    for element in rotations.ELEMENTS:
        moved = gradient(rotations.apply(element, f))
        np.testing.assert_allclose(
            rotations.apply(element, gradient(f), "vector"), moved, atol=1e-14
        )


def test_jax_equals_numpy_with_a_static_element():
    x = volume(2, 4, 4, 4, 6).astype(np.float32)
    move = jax.jit(rotations.apply, static_argnums=(0, 2))
    for element in rotations.ELEMENTS[::11]:
        np.testing.assert_array_equal(
            move(element, jnp.asarray(x), "vector"), rotations.apply(element, x, "vector")
        )


@pytest.mark.parametrize(
    "shape, spacing, kinds, periodic, order",
    [
        ((8, 8, 8), (1, 1, 1), ("scalar",), (True,) * 3, 48),
        ((8, 8, 8), (1, 1, 2.5), ("scalar", "vector"), (True,) * 3, 16),  # a square prism
        ((8, 8, 6), (1, 1, 1), ("scalar",), (True,) * 3, 16),
        ((8, 7, 6), (1, 1, 1), ("scalar",), (True,) * 3, 8),  # a cuboid
        ((8, 8, 8), (1, 1, 1), ("line_of_sight=2", "scalar"), (True,) * 3, 16),
        ((8, 8, 8), (1, 1, 1), ("line_of_sight=2", "line_of_sight=0"), (True,) * 3, 8),
        ((8, 8, 8), (1, 1, 1), ("coordinates", "scalar"), (True,) * 3, 1),
        ((8, 8, 8), (1, 1, 1), ("scalar",), (False, True, True), 16),
        # a square: no flip of the flat axis
        ((1, 8, 8), (1, 1, 1), ("scalar",), (False,) * 3, 8),
        ((1, 1, 8), (1, 1, 1), ("scalar",), (False,) * 3, 2),
    ],
)
def test_allowed_is_the_symmetry_group_of_the_volume(shape, spacing, kinds, periodic, order):
    group = rotations.allowed(shape, spacing, kinds, periodic)
    assert len(group) == order and group[0] == rotations.IDENTITY
    assert {compose(a, b) for a in group for b in group} == set(group)
    x = volume(*shape, 3)
    for element in group:
        assert rotations.apply(element, x).shape == x.shape
        assert tuple(spacing[a] for a in element.axes) == spacing
        for kind in kinds:
            axis = rotations.line_of_sight(kind)
            assert axis is None or element.axes[axis] == axis
        if shape[0] == 1:
            np.testing.assert_array_equal(
                rotations.apply(element, x, "vector")[..., 0], rotations.apply(element, x)[..., 0]
            )


def test_wrong_kinds_name_what_is_known():
    with pytest.raises(UserError, match="scalar, vector, label or line_of_sight"):
        rotations.allowed((4, 4, 4), (1, 1, 1), ("tensor",))
    with pytest.raises(UserError, match="2 channels"):
        rotations.apply(rotations.ELEMENTS[5], volume(4, 4, 4, 2), "vector")
    with pytest.raises(UserError, match="neither turned nor mirrored"):
        rotations.apply(rotations.ELEMENTS[5], volume(4, 4, 4, 3), "coordinates")
    x = volume(4, 4, 4, 3)
    np.testing.assert_array_equal(rotations.apply(rotations.IDENTITY, x, "coordinates"), x)
