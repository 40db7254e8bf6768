"""ViT3D: the published weights load and agree; symmetries, positions, windows, precision and
attention maps keep their promises.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.convert import vit3d as converter
from jaxvol.models import vit3d
from jaxvol.ops import patches
from jaxvol.types import Field, Spec, UserError
from tests import FIXTURES

DATA = FIXTURES
PLAIN = {"embed": "linear", "head": "linear", "position": "learned"}
PUBLISHED = [  # hyper-parameters of the original and its number of parameters
    (
        {
            "image_size": 128,
            "frames": 128,
            "image_patch_size": 16,
            "frame_patch_size": 16,
            "dim": 256,
            "depth": 6,
            "heads": 8,
            "mlp_dim": 512,
        },
        6972672,
    ),
    (
        {
            "image_size": 60,
            "frames": 60,
            "image_patch_size": 10,
            "frame_patch_size": 10,
            "dim": 256,
            "depth": 6,
            "heads": 8,
            "mlp_dim": 512,
        },
        5302456,
    ),
    (
        {
            "image_size": 60,
            "frames": 60,
            "image_patch_size": 4,
            "frame_patch_size": 4,
            "dim": 128,
            "depth": 6,
            "heads": 8,
            "mlp_dim": 256,
        },
        2421440,
    ),
]


def build(shape=(8, 8, 8), periodic=True, precision="f32", inputs=1, **overrides):
    """A small ViT3D for the given grid."""
    config = ConfigDict({"precision": precision, "model": base.model("vit3d")})
    config.model.update(
        {
            "width": 12,
            "layers": 1,
            "heads": 2,
            "head_features": 8,
            "stem_width": 4,
            "stem_layers": 1,
            "patch": (2, 2, 2),
            **overrides,
        }
    )
    fields = {"input": Field(tuple(f"x{i}" for i in range(inputs))), "target": Field(("y",))}
    periodic = (periodic,) * 3 if isinstance(periodic, bool) else periodic
    return vit3d.make(config, Spec(fields, shape, (1.0,) * 3, periodic=periodic))


def field(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def start(model, x):
    """Variables of the scale they have at the start, but no zero biases, unit scales or equal
    tables; nothing is compiled.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)

    def value(path, leaf):
        name = path[-1].key
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if name == "kernel" else 0.2
        return jnp.asarray(
            (name == "scale")
            + scale * field(sum(map(ord, str(path))) + leaf.size, *leaf.shape, dtype=leaf.dtype)
        )

    return jax.tree_util.tree_map_with_path(value, shapes)


def apply(model):
    return jax.jit(model.apply, static_argnames=("train", "mutable"))


@pytest.mark.parametrize("case", ["vit3d", "vit3d_multichannel"])
def test_published_model(case):
    with np.load(DATA / f"{case}.npz", allow_pickle=False) as file:
        fixture = dict(file)
    tensors = {
        name.removeprefix("param/"): x for name, x in fixture.items() if name.startswith("param/")
    }
    module, variables = converter.vit3d(tensors, json.loads(str(fixture["config"])))
    x = np.moveaxis(fixture["input/x"], 1, -1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    y, sown = jax.jit(
        lambda x: module.apply(
            variables, x, mutable=["intermediates"], capture_intermediates=is_patch
        )
    )(x)
    reference = np.moveaxis(fixture["output/y"], 1, -1)
    np.testing.assert_allclose(y, reference, atol=2e-5 * reference.std(), rtol=0)
    for i in range(module.layers):
        weights = sown["intermediates"][f"block_{i}"]["attention"]["weights"][0]
        np.testing.assert_allclose(weights, fixture[f"output/attention_{i}"], atol=1e-6, rtol=0)
    tokens, expected = (
        sown["intermediates"]["embed_norm"]["__call__"][0],
        fixture["output/tokens_patch_embed"],
    )
    np.testing.assert_allclose(
        tokens.reshape(expected.shape), expected, atol=2e-5 * expected.std(), rtol=0
    )


def is_patch(module, method):
    return module.name == "embed_norm"


@pytest.mark.parametrize("original, count", PUBLISHED)
def test_published_sizes(original, count):
    module = converter.network(original)
    x = jax.ShapeDtypeStruct(
        (1, original["frames"], original["image_size"], original["image_size"], 1), jnp.float32
    )
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    assert sum(p.size for p in jax.tree.leaves(variables)) == count
    assert sum(int(np.prod(shape)) for shape in converter.expected(original).values()) == count


def test_a_single_head_as_wide_as_the_tokens_has_no_projection():
    original = {
        "image_size": 4,
        "frames": 4,
        "image_patch_size": 2,
        "frame_patch_size": 2,
        "dim": 6,
        "depth": 1,
        "heads": 1,
        "mlp_dim": 6,
        "dim_head": 6,
    }
    tensors = {
        name: field(i, *shape)
        for i, (name, shape) in enumerate(converter.expected(original).items())
    }
    module, variables = converter.vit3d(tensors, original)
    x = field(0, 1, 4, 4, 4, 1)
    y = module.apply(variables, x)
    assert y.shape == x.shape and "transformer.layers.0.0.to_out.0.weight" not in tensors
    np.testing.assert_array_equal(
        variables["params"]["block_0"]["attention"]["out"]["kernel"], np.eye(6)
    )


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
    """A shift of the input by one token is a shift of the output only without absolute
    positions.
    """
    x = field(3, 1, 8, 8, 8, 1)
    for position, absolute in (("learned", True), ("sincos", True), ("relative", False)):
        model = build(position=position, embed="linear", head="linear")
        variables = start(model, x)
        y, z = (apply(model)(variables, v) for v in (x, np.roll(x, 2, 1)))
        assert (np.abs(z - np.roll(y, 2, 1)).max() > 1e-2 * np.std(y)) == absolute, position


def test_relative_positions_are_added_to_the_logits():
    """With queries of zero the map is the softmax of the tables: a product of three kernels, one
    per axis.
    """
    model, x = build((4, 4, 4), periodic=(True, False, False), layers=1), field(4, 1, 4, 4, 4, 1)
    variables = start(model, x)
    block = variables["params"]["block_0"]["attention"]
    block["qkv"]["kernel"] = block["qkv"]["kernel"].at[:, :16].set(0)
    _, sown = apply(model)(variables, x, mutable=("intermediates",))
    weights = np.asarray(sown["intermediates"]["block_0"]["attention"]["weights"][0])[0].reshape(
        2, *(2,) * 6
    )
    kernels = []
    for axis, wraps in enumerate((True, False, False)):
        rows = np.exp(block[f"relative_{axis}"])[:, patches.offsets(2, 2, wraps)]
        kernels.append(rows / rows.sum(-1, keepdims=True))
    np.testing.assert_allclose(weights, np.einsum("nad,nbe,ncf->nabcdef", *kernels), atol=1e-6)


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


def test_windows_as_large_as_the_grid_are_no_windows():
    x = field(7, 1, 8, 8, 8, 1)
    whole, one = (build(window=w, position="none") for w in (0, 4))
    variables = start(whole, x)
    np.testing.assert_allclose(apply(one)(variables, x), apply(whole)(variables, x), atol=1e-6)


def test_windows_keep_tokens_apart():
    """One block: a voxel reaches the tokens of its own window only; two blocks: also those of the
    moved windows.
    """
    x = field(8, 1, 8, 8, 8, 1)
    for layers, outside in ((1, False), (2, True)):
        model = build(window=2, layers=layers, **PLAIN)
        variables = start(model, x)
        corner = lambda x, m=model, v=variables: m.apply(v, x)[0, 0, 0, 0, 0]
        reached = jax.jit(jax.grad(corner))(x)[0, ..., 0]
        assert np.abs(reached[:4, :4, :4]).min() > 0
        assert (np.abs(reached[4:]).max() > 0) == outside


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


def test_attention_maps_are_given_on_request_only():
    x = field(10, 2, 8, 8, 8, 1)
    model = build(remat=True, **PLAIN)
    variables = start(model, x)
    assert set(variables) == {"params"}
    y, sown = apply(model)(variables, x, mutable=("intermediates",))
    weights = sown["intermediates"]["block_0"]["attention"]["weights"][0]
    assert weights.shape == (2, 2, 64, 64)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(y, apply(model)(variables, x), atol=1e-6)


def test_dropout_acts_while_training_only_and_keeps_the_mean():
    x = field(11, 1, 8, 8, 8, 1)
    model, plain = build(dropout=0.2, **PLAIN), build(**PLAIN)
    variables = start(model, x)
    run = jax.jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
    np.testing.assert_array_equal(apply(model)(variables, x), apply(plain)(variables, x))
    one, other = run(jax.random.key(0)), run(jax.random.key(1))
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_array_equal(one, run(jax.random.key(0)))
    values = jnp.ones((100, 100))
    dropped = Dropping().apply({}, values, rngs={"dropout": jax.random.key(2)})
    assert set(np.unique(dropped)) == {0.0, 1.25} and abs(np.mean(dropped) - 1) < 0.02


class Dropping(vit3d.nn.Module):
    def __call__(self, x):
        return vit3d.drop(self, x, 0.2, True)


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
