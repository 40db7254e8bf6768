"""ViT3D: symmetries, other grids, both ends, precision and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.models import vit3d
from jaxvol.types import UserError
from tests.models.small_vit3d import PLAIN, apply, build, field, start


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 4},
        {"window": 2, "patch": (1, 2, 2)},
        {"position": "none", "stem_layers": 2, "patch": (4, 4, 4)},
    ],
)
def test_periodic_model_commutes_with_shifts_by_patches(options):
    """By two patches with windows of four tokens, which then are other cubes: only shifts by
    windows are exact there.
    """
    model, x = build((8, 8, 8), **options), field(1, 1, 8, 8, 8, 1)
    moved = tuple(max(options.get("window", 0), 1) * p for p in model.patch)
    variables = start(model, x)
    y, z = (apply(model)(variables, v) for v in (x, np.roll(x, moved, (1, 2, 3))))
    np.testing.assert_allclose(z, np.roll(y, moved, (1, 2, 3)), atol=1e-5 * np.std(y))
    # and is not linear
    assert np.abs(apply(model)(variables, -x) + y).max() > 0.05 * np.std(y)


@pytest.mark.parametrize("wrapping", [0, 1, 2])
def test_only_axes_that_wrap_join_their_ends(wrapping):
    """Without attention a voxel reaches the other end of the axis through the
    convolutions alone.
    """
    model = build((8, 8, 8), periodic=tuple(a == wrapping for a in range(3)), layers=0)
    x = field(2, 1, 8, 8, 8, 1)
    variables = start(model, x)
    reached = jnp.abs(jax.jit(jax.grad(lambda x: model.apply(variables, x)[0, 0, 0, 0, 0]))(x))[
        0, ..., 0
    ]
    for axis in range(3):
        assert (reached.max(tuple(a for a in range(3) if a != axis))[-1] > 0) == (axis == wrapping)


def test_every_position_tells_tokens_apart_or_not():
    """Only without absolute positions is a shift of the input by a token a shift of the output."""
    x = field(3, 1, 8, 8, 8, 1)
    for position, absolute in (("learned", True), ("sincos", True), ("relative", False)):
        model = build(position=position, embed="linear", head="linear")
        variables = start(model, x)
        y, z = (apply(model)(variables, v) for v in (x, np.roll(x, 2, 1)))
        assert (np.abs(z - np.roll(y, 2, 1)).max() > 1e-2 * np.std(y)) == absolute, position


@pytest.mark.parametrize("position", ["learned", "sincos", "relative"])
def test_other_grids(position):
    """Weights of an 8^3 grid run on a larger, non-cubic one; the learned table is interpolated, on
    its own grid it is exact.
    """
    model = build((8, 8, 8), position=position, periodic=False)
    x = field(5, 1, 8, 8, 8, 1)
    variables = start(model, x)
    y = apply(model)(variables, field(6, 2, 4, 12, 6, 1))
    assert y.shape == (2, 4, 12, 6, 1) and np.isfinite(y).all() and np.std(y) > 0
    if position == "learned":
        table = variables["params"]["position"]
        constant = {
            "params": {
                **variables["params"],
                "position": jnp.broadcast_to(table[0, 0, 0], table.shape),
            }
        }
        flat = {"params": {**variables["params"], "position": jnp.zeros_like(table)}}
        flat["params"]["patch"] = {
            **flat["params"]["patch"],
            "bias": flat["params"]["patch"]["bias"] + table[0, 0, 0],
        }
        x = field(6, 1, 4, 12, 6, 1)
        np.testing.assert_allclose(apply(model)(constant, x), apply(model)(flat, x), atol=1e-5)


def test_learned_positions_start_small():
    model = build(width=120, layers=0, **PLAIN)
    table = model.init(jax.random.key(0), np.zeros((1, 8, 8, 8, 1), np.float32))["params"][
        "position"
    ]
    assert table.shape == (4, 4, 4, 120) and abs(np.std(table) / 0.02 - 1) < 0.05


def test_the_convolutional_ends_leave_no_pattern_of_patches():
    """A constant volume, which wraps, has no place that differs from another; the linear head
    prints its patch all over it.
    """
    x = np.full((1, 8, 8, 8, 1), 0.7, np.float32)
    for head, pattern in (("conv", False), ("linear", True)):
        model = build(head=head, patch=(4, 4, 4))
        y = np.asarray(apply(model)(start(model, x), x))
        assert np.ptp(y) > 0.1 * np.abs(y).max() if pattern else np.ptp(y) < 1e-5 * np.abs(y).max()


@pytest.mark.parametrize("options", [{}, {"window": 2, **PLAIN}])
def test_remat_changes_nothing(options):
    x = field(9, 1, 8, 8, 8, 1)
    plain, saving = (build(remat=remat, layers=2, **options) for remat in (False, True))
    variables = start(plain, x)
    loss = lambda v, m: jnp.sum(m.apply(v, x, train=True) ** 2)
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    one, other = (gradient(variables, m) for m in (plain, saving))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * (1 + np.abs(a).max())), one, other
    )


def test_precisions():
    x = field(12, 1, 8, 8, 8, 1)
    full, half = build(), build(precision="bf16")
    variables = start(full, x)
    y, z = apply(full)(variables, x), apply(half)(variables, x)
    assert z.dtype == jnp.float32 and 0 < np.abs(y - z).max() < 0.1 * np.std(y)
    gradients = jax.jit(jax.grad(lambda v: half.apply(v, x, train=True).sum()))(variables)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradients))
    with jax.enable_x64(True):
        double = build(precision="f64")
        w = double.apply(
            jax.tree.map(lambda p: p.astype(jnp.float64), variables), x.astype(np.float64)
        )
        assert w.dtype == jnp.float64
    np.testing.assert_allclose(y, w, atol=2e-5 * np.std(y))


def test_planes_and_several_channels():
    model = build((1, 8, 8), patch=(1, 4, 2), inputs=3)
    x = field(13, 2, 1, 8, 8, 3)
    assert apply(model)(start(model, x), x).shape == (2, 1, 8, 8, 1)


def test_either_end_may_be_linear():
    x = field(14, 1, 8, 8, 8, 1)
    found = [
        apply(model)(start(model, x), x)
        for model in (build(patch=(4, 4, 4), embed="linear"), build(patch=(4, 4, 4), head="linear"))
    ]
    assert all(y.shape == x.shape and np.std(y) > 0.01 for y in found)


def test_rules_name_every_field():
    config = ConfigDict({"model": base.model("vit3d")})
    assert vit3d.rules(config) == []
    config.model.update({"width": 0, "layers": -1, "dropout": 1.0})
    assert [rule.split()[0] for rule in vit3d.rules(config)] == [
        "model.width",
        "model.layers",
        "model.dropout",
    ]


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"patch": (3, 2, 2)}, "8 x 8 x 8 voxels and patches of 3 x 2 x 2: expected each side"),
        ({"patch": (2, 2)}, "expected three sizes"),
        ({"window": 3}, "window is 3, but the training grid has 4 x 4 x 4 tokens"),
        ({"head": "mlp"}, "head is 'mlp'; choose one of conv"),
        ({"embed": "cnn"}, "embed is 'cnn'"),
        ({"position": "rope"}, "position is 'rope'; choose one of relative, learned"),
        ({"attention": "flash"}, "attention is 'flash'"),
    ],
)
def test_wrong_configs_are_explained(overrides, message):
    with pytest.raises(UserError, match=message):
        build(**overrides)


def test_a_volume_that_the_patch_does_not_divide_is_explained():
    model = build()
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 8, 1), np.float32))
    with pytest.raises(UserError, match="8 x 7 x 8 voxels and patches of 2 x 2 x 2"):
        jax.eval_shape(model.apply, variables, np.zeros((1, 8, 7, 8, 1), np.float32))
