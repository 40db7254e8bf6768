"""V-Net: published weights, symmetries at every size, fields, precision, remat."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.convert import vnet as converter
from jaxvol.models import vnet
from jaxvol.types import Field, Spec, UserError
from tests import FIXTURES

DATA = FIXTURES


def build(shape=(8, 8, 8), periodic=False, precision="f32", **overrides):
    """A small V-Net for the given grid."""
    config = ConfigDict({"precision": precision, "model": base.model("vnet")})
    config.model.update({"widths": (4, 6, 8), **overrides})
    fields = {"input": Field(("x",)), "target": Field(("y",))}
    return vnet.make(config, Spec(fields, shape, (1.0,) * 3, periodic=(periodic,) * 3))


def field(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def start(model, x):
    """Random parameters; biases and scales too, so that every one of them matters."""
    variables = jax.jit(model.init)(jax.random.key(0, impl="unsafe_rbg"), x)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda v: v + 0.1 * rng.normal(size=v.shape).astype(v.dtype) if v.ndim == 1 else v,
        variables,
    )


@pytest.mark.parametrize("case", ["unet_nocrop32", "unet_crop20"])
def test_published_model(case):
    """dm2ics UNet3D; 20^3 goes through sizes that are cropped on one side."""
    with np.load(DATA / f"{case}.npz", allow_pickle=False) as file:
        fixture = dict(file)
    original = json.loads(str(fixture["config"]))
    module, variables = converter.vnet(
        {k[6:]: v for k, v in fixture.items() if k.startswith("param/")}, original
    )
    x = np.moveaxis(fixture["input/x"], 1, -1)
    y = jax.jit(module.apply)(variables, x)
    reference = np.moveaxis(fixture["output/y_eval"], 1, -1)
    np.testing.assert_allclose(y, reference, atol=5e-5 * reference.std(), rtol=0)
    y, new = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables, x
    )
    reference = np.moveaxis(fixture["output/y_train"], 1, -1)
    np.testing.assert_allclose(y, reference, atol=2e-4 * reference.std(), rtol=0)
    blocks = {
        theirs: ours for theirs, ours, *_ in converter._blocks(tuple(original["widths"]), 1, 1)
    }
    after = {
        k.removeprefix("output/after_train/"): v for k, v in fixture.items() if "after_train" in k
    }
    assert len(after) == 20
    for name, reference in after.items():
        theirs, _, leaf = name.split(".")
        found = (
            new["batch_stats"]["head_norm"]
            if theirs == "out"
            else new["batch_stats"][blocks[theirs]]["norm"]
        )
        np.testing.assert_allclose(
            found[leaf.removeprefix("running_")],
            reference,
            rtol=0,
            atol=2e-4 * max(reference.std(), 1e-3),
        )


def test_published_size():
    """28,819,550 parameters, as recorded for the original with one channel in and out."""
    config = ConfigDict({"precision": "f32", "model": converter.config({})})
    module = vnet.make(config, Spec({"target": Field(("y",))}, (32, 32, 32), (1.0,) * 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 32, 1)))
    assert sum(p.size for p in jax.tree.leaves(shapes["params"])) == 28_819_550


def test_foreign_tensors_are_named():
    with pytest.raises(UserError, match="missing.*enc1.conv.weight"):
        converter.vnet(
            {"encoder.weight": np.zeros(3)}, {"in_channels": 1, "out_channels": 1, "widths": (2, 3)}
        )


@pytest.mark.parametrize("layout", vnet.LAYOUTS)
def test_periodic_model_commutes_with_shifts_of_its_coarsest_cells(layout):
    coarse = 8 if layout == "original" else 4
    model = build((16, 16, 16), periodic=True, layout=layout)
    x = field(1, 1, 16, 16, 16, 1)
    variables = start(model, x)
    f = jax.jit(lambda x: model.apply(variables, x))
    shift = (coarse, -coarse, 2 * coarse)
    np.testing.assert_allclose(
        f(np.roll(x, shift, (1, 2, 3))), np.roll(f(x), shift, (1, 2, 3)), atol=1e-5
    )
    # a grid with coarse cells knows where they lie
    assert np.abs(f(np.roll(x, 1, 1)) - np.roll(f(x), 1, 1)).max() > 1e-2


@pytest.mark.parametrize(
    "shape, padding",
    [
        ((8, 8, 8), "replicate"),
        ((9, 7, 6), "zero"),
        ((5, 12, 3), "periodic"),
        ((1, 9, 10), "reflect"),
        ((7, 7, 7), "replicate"),
    ],
)
def test_no_side_is_preferred(shape, padding):
    """With mirror-symmetric kernels the network commutes with reflections, at even and odd sizes
    and in a plane.
    """
    model = build(shape, padding=padding, fit="resize")
    x = field(2, 2, *shape, 1)
    variables = start(model, x)

    def mirrored(v):
        return (
            v
            if v.ndim == 1
            else sum(v[::a, ::b, ::c] for a in (1, -1) for b in (1, -1) for c in (1, -1)) / 8
        )

    variables = {"params": jax.tree.map(mirrored, variables["params"])}
    f = jax.jit(lambda x: model.apply(variables, x))
    y = f(x)
    assert y.shape == x.shape and y.dtype == jnp.float32
    for axis in (1, 2, 3):
        np.testing.assert_allclose(
            f(np.flip(x, axis)), np.flip(y, axis), atol=2e-5 * np.std(y), rtol=0
        )


def test_the_published_crop_prefers_a_side():
    """The counterpart of the test above: it can see a shift of half a voxel."""
    model = build((7, 7, 7), fit="crop")
    x = field(2, 1, 7, 7, 7, 1)
    variables = start(model, x)
    variables = {
        "params": jax.tree.map(
            lambda v: v if v.ndim == 1 else (v + v[::-1]) / 2, variables["params"]
        )
    }
    f = jax.jit(lambda x: model.apply(variables, x))
    assert np.abs(f(np.flip(x, 1)) - np.flip(f(x), 1)).max() > 0.05 * np.std(f(x))


def test_output_is_linear_in_the_last_features_and_the_published_head_is_not():
    x = field(3, 1, 8, 8, 8, 1)
    for layout in vnet.LAYOUTS:
        y = {head: build(layout=layout, head=head) for head in vnet.HEADS}
        y = {head: np.asarray(jax.jit(m.apply)(start(m, x), x)) for head, m in y.items()}
        assert y["linear"].min() < 0 < y["linear"].max() and y["norm_relu"].min() == 0


def test_remat_is_the_same_function_with_the_same_running_statistics():
    x = field(4, 2, 8, 8, 8, 1)
    found = []
    for remat in (False, True):
        model = build(norm="batch", remat=remat)
        variables = start(model, x)

        def loss(params, model=model, stats=variables["batch_stats"]):
            y, new = model.apply(
                {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(jnp.sin(y)), new

        found.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1])):
        np.testing.assert_allclose(a, b, atol=1e-6 + 1e-5 * np.abs(a).max())
    assert np.abs(found[0][0][1]["batch_stats"]["block_0"]["norm_0"]["mean"]).max() > 0


@pytest.mark.parametrize("norm", ["group", "instance", "batch", "none"])
@pytest.mark.parametrize("layout", vnet.LAYOUTS)
def test_every_parameter_is_used_and_no_bias_precedes_a_norm(layout, norm):
    """A bias that a norm takes away again would have the gradient 0."""
    # its coarsest grid has 2^3 voxels: a norm over one voxel gives 0
    n = 8 if layout == "residual" else 16
    x = field(5, 2, n, n, n, 1)
    model = build(layout=layout, norm=norm)
    variables = start(model, x)
    rest = {k: v for k, v in variables.items() if k != "params"}

    def loss(params):
        return jnp.mean(
            jnp.sin(model.apply({"params": params, **rest}, x, train=True, mutable=list(rest))[0])
        )

    for path, gradient in jax.tree_util.tree_leaves_with_path(
        jax.jit(jax.grad(loss))(variables["params"])
    ):
        assert np.abs(gradient).max() > 1e-6, jax.tree_util.keystr(path)


def test_bf16_stays_close_and_f64_is_f64():
    x = field(6, 1, 8, 8, 8, 1)
    wide, narrow = build(), build(precision="bf16")
    variables = start(wide, x)
    y, z = (jax.jit(m.apply)(variables, x) for m in (wide, narrow))
    assert z.dtype == jnp.float32 and 1e-4 < np.abs(y - z).max() / np.std(y) < 0.1
    with jax.enable_x64(True):
        model = build(precision="f64")
        precise = jax.jit(model.apply)(
            jax.tree.map(lambda v: v.astype(np.float64), variables), x.astype(np.float64)
        )
        assert precise.dtype == jnp.float64 and np.abs(np.asarray(precise) - y).max() < 1e-4


@pytest.mark.parametrize(
    "field_, value",
    [
        ("layout", "unet"),
        ("norm", "layer"),
        ("padding", "same"),
        ("head", "tanh"),
        ("fit", "pad"),
        ("widths", ()),
    ],
)
def test_mistakes_are_named(field_, value):
    with pytest.raises(UserError, match=f"config.model.{field_} is"):
        build(**{field_: value})
