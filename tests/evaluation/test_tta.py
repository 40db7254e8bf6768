"""Test-time augmentation: symmetric networks do not change, any network becomes symmetric, only
what the data allow is done.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.evaluation import tta
from jaxvol.ops import rotations, warp
from jaxvol.types import Field, Spec, UserError


def make_spec(
    shape=(4, 4, 4),
    spacing=(1.0,) * 3,
    kinds=("scalar", "scalar"),
    periodic=(False,) * 3,
    normaliser=(),
):
    fields = {
        name: Field(
            tuple("dhw") if kind == "vector" else ("c",),
            kind,
            normaliser=normaliser if kind == "vector" else (),
        )
        for name, kind in zip(("input", "target"), kinds)
    }
    return Spec(fields, shape, spacing, periodic=periodic)


class Any(nn.Module):
    """A network without any symmetry: neighbours on one side only, a bias of every voxel, channels
    mixed.
    """

    features: int

    @nn.compact
    def __call__(self, x, train=False):
        assert not train
        bias = self.param("bias", nn.initializers.normal(1.0), (*x.shape[1:4], x.shape[-1]))
        x = jnp.tanh(x + bias) + 0.5 * jnp.roll(x, 1, 1) - 0.3 * jnp.roll(x, (1, 2), (2, 3))
        return nn.Dense(self.features)(x) ** 2


class Isotropic(nn.Module):
    """Commutes with the cube group: what it does to all six neighbours is the same."""

    @nn.compact
    def __call__(self, x, train=False):
        around = sum(jnp.roll(x, s, axis) for axis in (1, 2, 3) for s in (1, -1))
        return jnp.tanh(self.param("a", nn.initializers.ones, ()) * x + 0.3 * around)


class Pointwise(nn.Module):
    """Commutes with everything that moves voxels."""

    @nn.compact
    def __call__(self, x, train=False):
        return self.param("a", nn.initializers.constant(3.0), ()) * x


def field(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(module, x, name, spec):
    """(one answer of the network, the function that averages) for one set of weights."""
    wrapped = tta.wrap(module, spec, name)
    variables = jax.jit(wrapped.init)(jax.random.key(0), x)
    average = jax.jit(wrapped.apply)
    return np.asarray(jax.jit(module.apply)(variables, x)), lambda v: np.asarray(
        average(variables, v)
    )


@pytest.mark.parametrize("name", ["cube", "flips"])
def test_a_symmetric_network_does_not_change(name):
    x = field(0, 2, 4, 4, 4, 1)
    single, average = run(Isotropic(), x, name, make_spec())
    np.testing.assert_allclose(average(x), single, atol=1e-6)


@pytest.mark.parametrize("name", ["cube", "flips"])
@pytest.mark.parametrize(
    "kinds",
    [
        ("scalar", "scalar"),
        ("vector", "vector"),
        ("scalar", "vector"),
        ("vector", "line_of_sight=1"),
    ],
)
def test_any_network_becomes_symmetric(name, kinds):
    spec = make_spec(kinds=kinds)
    x = field(1, 1, 4, 4, 4, len(spec.fields["input"].channels))
    single, average = run(Any(len(spec.fields["target"].channels)), x, name, spec)
    group = rotations.allowed(spec.shape, spec.spacing, kinds)
    group = group if name == "cube" else [g for g in group if g.axes == (0, 1, 2)]
    y = average(x)
    assert (
        len(group) == (8 if name == "flips" else 16 if "line" in kinds[1] else 48)
        and np.abs(y - single).max() > 0.1
    )
    for g in group[1::3]:
        np.testing.assert_allclose(
            average(rotations.apply(g, x, kinds[0])), rotations.apply(g, y, kinds[1]), atol=2e-5
        )


def test_it_is_the_mean_over_the_group():
    spec, x = make_spec(kinds=("vector", "vector")), field(2, 1, 4, 4, 4, 3)
    module = Any(3)
    variables = jax.jit(module.init)(jax.random.key(1), x)
    f = jax.jit(module.apply)
    mean = np.mean(
        [
            rotations.apply(
                rotations.inverse(g),
                np.asarray(f(variables, rotations.apply(g, x, "vector"))),
                "vector",
            )
            for g in rotations.ELEMENTS
        ],
        axis=0,
    )
    np.testing.assert_allclose(
        jax.jit(tta.wrap(module, spec, "cube").apply)(variables, x), mean, atol=1e-5
    )


def test_only_what_the_data_allow():
    def views(name, **options):
        spec = make_spec(**options)
        return len(tta.transforms(name, spec, spec.shape)), tta.turning_axes(spec, spec.shape)

    assert (
        views("cube")[0] == 48
        and views("flips")[0] == 8
        and views("rotations") == (8 + 6, (0, 1, 2))
    )
    assert views("cube", spacing=(3.0, 1.0, 1.0))[0] == 16 and views(
        "rotations", spacing=(3.0, 1.0, 1.0)
    ) == (8 + 2, (0,))
    assert (
        views("rotations", spacing=(1.0, 2.0, 3.0)) == (8, ())
        and views("cube", spacing=(1.0, 2.0, 3.0))[0] == 8
    )
    assert views("rotations", kinds=("line_of_sight=2", "scalar")) == (8 + 2, (2,))
    assert views("rotations", periodic=(True,) * 3) == (8, ())
    assert views("rotations", periodic=(True, False, False)) == (8 + 2, (0,))
    assert views("cube", shape=(1, 4, 4))[0] == 8 and views("rotations", shape=(1, 4, 4)) == (
        4 + 2,
        (0,),
    )
    for name in ("cube", "flips", "rotations"):
        assert views(name, kinds=("coordinates", "scalar")) == (1, ())
        with pytest.raises(UserError, match="'input' holds coordinates"):
            tta.wrap(Any(1), make_spec(kinds=("coordinates", "scalar")), name)
    spec = make_spec()  # a tile that is no cube keeps its shape
    assert len(tta.transforms("cube", spec, (4, 4, 6))) == 16


def test_unequal_vector_components_and_unknown_names_are_refused():
    standardise = {"name": "standardise", "mean": [0.0] * 3, "std": [2.0] * 3}
    tta.wrap(Any(3), make_spec(kinds=("vector", "scalar"), normaliser=(standardise,)), "cube")
    for wrong in (
        {**standardise, "std": [1.0, 2.0, 2.0]},
        {**standardise, "mean": [1.0] * 3},
        {"name": "log1p", "floor": [0.0] * 3},
    ):
        with pytest.raises(UserError, match=f"'input' is normalised by {wrong['name']}"):
            tta.wrap(Any(3), make_spec(kinds=("vector", "scalar"), normaliser=(wrong,)), "cube")
    with pytest.raises(UserError, match="'mirror'.*none, cube, flips, rotations"):
        tta.wrap(Any(1), make_spec(), "mirror")


def test_none_is_the_network_itself():
    module = Any(1)
    assert tta.wrap(module, make_spec(), "none") is module


def test_trilinear_interpolation_and_rotations():
    """Exact on linear fields; a quarter turn is the cube group's; a constant stays a constant,
    outside the volume as well.
    """
    grid = np.stack(np.meshgrid(*map(np.arange, (5, 6, 7)), indexing="ij"), -1).astype(np.float32)
    slope = np.array([[0.3], [-1.0], [2.0]], np.float32)
    points = np.random.default_rng(0).uniform(0, (4, 5, 6), (9, 3)).astype(np.float32)
    np.testing.assert_allclose(
        warp.sample((grid @ slope)[None], points)[0], points @ slope, atol=2e-5
    )
    np.testing.assert_allclose(
        warp.sample((grid @ slope)[None], np.array([[-3.0, 9.0, 2.5]]))[0], [[-5 + 5.0]], atol=1e-5
    )
    x = field(3, 1, 5, 5, 5, 3)
    turn = jax.jit(warp.rotate, static_argnums=2)
    for axis, axes in enumerate([(0, 2, 1), (2, 1, 0), (1, 0, 2)]):
        matrix = warp.rotation(axis, 90)
        g = rotations.Element(axes, tuple(bool(row.sum() < -0.5) for row in matrix))
        assert np.allclose(matrix, rotations.matrix(g))
        for kind in ("scalar", "vector"):
            np.testing.assert_allclose(
                turn(x, matrix, kind == "vector"), rotations.apply(g, x, kind), atol=1e-5
            )
    np.testing.assert_allclose(
        turn(np.full((1, 4, 5, 6, 2), 3.0, np.float32), warp.rotation(1, 20), False), 3.0, atol=1e-6
    )


def test_small_rotations_average_what_lies_inside():
    """A constant stays one, a linear field too where no edge was repeated; corners come from fewer
    views.
    """
    spec = make_spec(shape=(9, 9, 9))
    grid = np.stack(np.meshgrid(*[np.arange(9.0)] * 3, indexing="ij"), -1)
    linear = (grid @ np.array([0.1, -0.2, 0.3]))[None, ..., None].astype(np.float32)
    single, average = run(Pointwise(), linear, "rotations", spec)
    np.testing.assert_allclose(average(np.full_like(linear, 2.0)), 6.0, atol=1e-5)
    np.testing.assert_allclose(
        average(linear)[:, 2:-2, 2:-2, 2:-2], single[:, 2:-2, 2:-2, 2:-2], atol=1e-5
    )
    weights = jax.jit(
        lambda: sum(t.weight() for t in tta.transforms("rotations", spec, spec.shape)[8:])
    )()
    assert weights[4, 4, 4] == 6 and 0 <= weights.min() < 6
