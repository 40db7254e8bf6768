"""Pix2PixCC's generator: published weights, sizes, boundaries, precision, norms."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.convert import pix2pixcc as convert
from jaxvol.models import pix2pixcc
from jaxvol.ops import pointwise
from jaxvol.training import sharding
from jaxvol.types import Field, Spec, UserError
from tests import FIXTURES

DATA = FIXTURES


def fixture(name):
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files if k != "config"}
        original = json.loads(str(file["config"]))
    return original, {k[6:]: v for k, v in arrays.items() if k.startswith("param/")}, arrays


def last(x):
    """Channels last; images become volumes of depth 1."""
    x = np.moveaxis(x, 1, -1)
    return x[:, None] if x.ndim == 4 else x


def a_spec(shape=(8, 8, 8), periodic=False, inputs=1, outputs=1):
    fields = {
        name: Field(tuple(f"{name}{i}" for i in range(n)))
        for name, n in (("input", inputs), ("target", outputs))
    }
    return Spec(fields, shape, (1.0,) * 3, periodic=(periodic,) * 3)


def generator(shape=(8, 8, 8), periodic=False, precision="f32", **overrides):
    config = ConfigDict({"precision": precision, "model": base.model("pix2pixcc")})
    config.model.update({"width": 4, "blocks": 1, "downs": 1, **overrides})
    return pix2pixcc.make(config, a_spec(shape, periodic, outputs=2))


def volume(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def start(model, x):
    """Random variables of the right shapes.

    Jitted initialisation would take longer to compile than the models.
    """
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        name, values = path[-1].key, rng.normal(size=shape.shape)
        if name in ("u", "v"):
            values = values / np.linalg.norm(values)
        elif name in ("var", "scale"):
            values = 1 + 0.1 * np.abs(values)
        else:
            values = (
                values / np.sqrt(np.prod(shape.shape[:-1])) if values.ndim > 1 else 0.1 * values
            )
        return values.astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(model.init, jax.random.key(0), x))


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def close(found, reference, tolerance):
    """max |a - b| <= tolerance * std(reference); a single value stands for its own scale."""
    np.testing.assert_allclose(
        found, reference, atol=tolerance * (reference.std() or abs(reference).max()), rtol=0
    )


def count(module, x):
    return sum(
        leaf.size
        for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), x)["params"])
    )


@pytest.mark.parametrize("name", ["gan_generator_trilinear", "gan_generator_transposed"])
def test_published_generator(name):
    original, tensors, arrays = fixture(name)
    module, variables = convert.generator(tensors, original)
    x = last(arrays["input/x"])
    assert shapes(variables) == shapes(jax.eval_shape(module.init, jax.random.key(0), x))
    blocks = lambda m, _: isinstance(m, pix2pixcc.Block)
    y, seen = jax.jit(lambda v, x: module.apply(v, x, capture_intermediates=blocks))(variables, x)
    close(y, last(arrays["output/y"]), 2e-4)
    for i in range(2):
        close(
            seen["intermediates"][f"block_{i}"]["__call__"][0],
            last(arrays[f"output/residual_block_{i}"]),
            2e-4,
        )


@pytest.mark.parametrize(
    "name, make, inputs",
    [
        (
            "GeneratorPix2PixCC3D n_gf=32 n_downsample=2 n_residual=4 trilinear",
            ("trilinear", 32, 2, 4),
            1,
        ),
        (
            "GeneratorPix2PixCC3D n_gf=32 n_downsample=2 n_residual=4 transposed",
            ("transposed", 32, 2, 4),
            1,
        ),
        (
            "GeneratorPix2PixCC3D input_ch=2 n_gf=32 n_downsample=3 n_residual=6 trilinear",
            ("trilinear", 32, 3, 6),
            2,
        ),
    ],
)
def test_published_generator_parameter_counts(name, make, inputs):
    known = {
        "GeneratorPix2PixCC3D n_gf=32 n_downsample=2 n_residual=4 trilinear": 5118721,
        "GeneratorPix2PixCC3D n_gf=32 n_downsample=2 n_residual=4 transposed": 5118721,
        "GeneratorPix2PixCC3D input_ch=2 n_gf=32 n_downsample=3 n_residual=6 trilinear": 27807585,
    }
    up, width, downs, blocks = make
    model = convert.config(
        {
            "n_gf": width,
            "n_downsample": downs,
            "n_residual": blocks,
            "norm_type": "InstanceNorm3d",
            "padding_type": "replication",
            "trans_conv": up == "transposed",
        }
    )
    module = pix2pixcc.make(
        ConfigDict({"precision": "f32", "model": model}), a_spec((16,) * 3, inputs=inputs)
    )
    assert count(module, jnp.zeros((1, 16, 16, 16, inputs))) == known[name]


@pytest.mark.parametrize("upsampling", ["trilinear", "transposed"])
def test_periodic_generator_commutes_with_shifts(upsampling):
    """Shifts by whole coarse voxels.

    Every convolution, interpolation and transposed convolution wraps.
    """
    model, x = generator(periodic=True, upsampling=upsampling), volume(1, 1, 8, 8, 8, 1)
    variables = start(model, x)
    f = jax.jit(lambda x: model.apply(variables, x))
    np.testing.assert_allclose(
        f(np.roll(x, (2, -4, 6), (1, 2, 3))), np.roll(f(x), (2, -4, 6), (1, 2, 3)), atol=5e-6
    )


def test_odd_sides_come_out_at_their_size_and_nothing_is_shifted():
    """Mirrored input and mirrored kernels give the mirrored output: a one-sided crop or shift
    anywhere would show.
    """
    model, x = generator((9, 5, 13), downs=2, skips="add"), volume(2, 1, 9, 5, 13, 1)
    variables = start(model, x)
    mirrored = jax.tree.map(
        lambda leaf: leaf[::-1, ::-1, ::-1] if leaf.ndim == 5 else leaf, variables
    )
    f = jax.jit(model.apply)
    y = f(variables, x)
    assert y.shape == (1, 9, 5, 13, 2)
    np.testing.assert_allclose(
        f(mirrored, x[:, ::-1, ::-1, ::-1]), y[:, ::-1, ::-1, ::-1], atol=5e-6
    )
    even = generator((10, 6, 8), downs=2, upsampling="transposed")
    assert jax.eval_shape(even.init_with_output, jax.random.key(0), jnp.zeros((1, 10, 6, 8, 1)))[
        0
    ].shape == (1, 10, 6, 8, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "group", "padding": "reflect"},
        {"norm": "batch", "upsampling": "transposed", "skips": "none", "down_padding": "zero"},
    ],
)
def test_every_generator_parameter_learns(options):
    model, x, target = generator(**options), volume(3, 2, 8, 8, 8, 1), volume(4, 2, 8, 8, 8, 2)
    variables = dict(start(model, x))
    params = variables.pop("params")

    def loss(p):
        y, changed = model.apply({"params": p, **variables}, x, train=True, mutable=["batch_stats"])
        return jnp.mean((y - target) ** 2), changed

    gradient, changed = jax.jit(jax.grad(loss, has_aux=True))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.all(np.abs(leaf) > 0), jax.tree_util.keystr(path)
    assert (options.get("norm") == "batch") == ("batch_stats" in changed)


def test_precisions_and_remat_agree():
    x = volume(5, 1, 8, 8, 8, 1)
    variables = start(generator(), x)

    def gradient(model):
        def loss(v):
            y = model.apply(v, x)
            return jnp.mean((y - 1) ** 2), y

        return jax.jit(jax.grad(loss, has_aux=True))(variables)

    (plain, y), (recomputed, _) = gradient(generator()), gradient(generator(remat=True))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), recomputed, plain
    )
    rough = jax.jit(generator(precision="bf16").apply)(variables, x)
    assert rough.dtype == jnp.float32
    close(np.asarray(rough), np.asarray(y), 0.1)
    with jax.enable_x64(True):
        wide = jax.jit(generator(precision="f64").apply)(
            jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables), x
        )
        assert wide.dtype == jnp.float64
        close(np.asarray(y), np.asarray(wide), 1e-5)


def test_mish_and_its_derivative():
    with jax.enable_x64(True):
        x = np.array([-700.0, -30.0, -2.0, -0.5, 0.0, 0.3, 4.0, 19.9, 20.1, 700.0])
        mish, slope = jax.jit(pointwise.mish), jax.jit(jax.vmap(jax.grad(pointwise.mish)))
        np.testing.assert_allclose(
            mish(x), x * np.tanh(np.log1p(np.exp(np.minimum(x, 50)))), rtol=1e-12, atol=1e-300
        )
        numeric = (mish(x + 1e-6) - mish(x - 1e-6)) / 2e-6
        np.testing.assert_allclose(slope(x), numeric, atol=1e-6)
        assert np.isfinite(slope(x)).all()


@pytest.mark.slow  # tests/models/test_models.py has a smaller one
def test_eight_devices_equal_one():
    """Batch over data and fsdp, parameters over fsdp, depth over space."""
    model, x = generator(periodic=True, width=8), volume(7, 4, 8, 8, 8, 1)
    variables = start(model, x)
    gradient = jax.value_and_grad(lambda v, x: jnp.mean((model.apply(v, x) - 1) ** 2))
    mesh = sharding.make_mesh(ConfigDict({"data": 2, "fsdp": 2, "space": 2}))
    places = sharding.state_shardings(mesh, variables), sharding.batch_sharding(mesh, 5)
    expected = jax.jit(gradient)(variables, x)
    with jax.set_mesh(mesh):
        found = jax.jit(gradient, in_shardings=places)(*jax.device_put((variables, x), places))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), found, expected
    )


def test_impossible_choices_are_refused():
    with pytest.raises(
        UserError, match="upsampling is 'nearest'; choose one of trilinear, transposed"
    ):
        generator(upsampling="nearest")
    with pytest.raises(
        UserError, match=r"downs is 3, which leaves \(1, 1, 1\) voxels.*\(8, 8, 8\).*fewer steps"
    ):
        generator(downs=3, norm="instance")
    original, tensors, _ = fixture("gan_generator_trilinear")
    with pytest.raises(UserError, match="of a generator with these hyper-parameters"):
        convert.generator(tensors, {**original, "trans_conv": True})
    with pytest.raises(UserError, match="norm_type='LayerNorm'"):
        convert.config({**original, "norm_type": "LayerNorm"})
