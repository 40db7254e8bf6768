"""Vision transformer, published: its weights load and its maps, tokens and outputs agree."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.convert import vit3d as converter
from tests import FIXTURES
from tests.models.small_vit3d import field

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


@pytest.mark.parametrize("case", ["vit3d", "vit3d_multichannel"])
def test_published_model(case):
    with np.load(FIXTURES / f"{case}.npz", allow_pickle=False) as file:
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
