"""The blocks of the transformer, inside a ViT3D: positions, windows, attention maps, dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.models import transformer
from jaxvol.ops import patches
from tests.models.small_vit3d import PLAIN, apply, build, field, start


def test_relative_positions_are_added_to_the_logits():
    """With queries of zero the map is the softmax of the tables.

    That is a product of three kernels, one per axis.
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


def test_windows_as_large_as_the_grid_are_no_windows():
    x = field(7, 1, 8, 8, 8, 1)
    whole, one = (build(window=w, position="none") for w in (0, 4))
    variables = start(whole, x)
    np.testing.assert_allclose(apply(one)(variables, x), apply(whole)(variables, x), atol=1e-6)


def test_windows_keep_tokens_apart():
    """One block: a voxel reaches the tokens of its own window only.

    Two blocks: also those of the moved windows.
    """
    x = field(8, 1, 8, 8, 8, 1)
    for layers, outside in ((1, False), (2, True)):
        model = build(window=2, layers=layers, **PLAIN)
        variables = start(model, x)
        corner = lambda x, m=model, v=variables: m.apply(v, x)[0, 0, 0, 0, 0]
        reached = jax.jit(jax.grad(corner))(x)[0, ..., 0]
        assert np.abs(reached[:4, :4, :4]).min() > 0
        assert (np.abs(reached[4:]).max() > 0) == outside


def test_windows_that_are_moved_learn_where_nothing_wraps():
    """The gradient is what finite differences give, masks between the ends included."""
    x = field(15, 1, 8, 8, 8, 1)
    model = build(window=2, layers=2, periodic=False, **PLAIN)
    variables = start(model, x)
    loss = jax.jit(lambda v: jnp.mean(jnp.square(model.apply(v, x, train=True))))
    gradient = jax.jit(jax.grad(lambda v: jnp.mean(jnp.square(model.apply(v, x, train=True)))))(
        variables
    )
    step = 1e-2 / np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
    moved = lambda by: loss(jax.tree.map(lambda p, g: p + by * g, variables, gradient))
    slope = sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient))
    np.testing.assert_allclose((moved(step) - moved(-step)) / (2 * step), slope, rtol=1e-2)


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


class Dropping(nn.Module):
    def __call__(self, x):
        return transformer.drop(self, x, 0.2, True)
