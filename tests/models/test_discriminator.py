"""The patch discriminator: published weights, spectral norm, boundaries, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.convert import pix2pixcc as convert
from jaxvol.models import discriminator
from jaxvol.types import UserError
from tests.models.test_pix2pixcc import a_spec, close, count, fixture, last, shapes, start, volume


def judge(shape=(16, 16, 16), periodic=False, precision="f32", **overrides):
    block = discriminator.fields()
    block.update({"width": 4, "scales": 1, "strides": (2, 2, 1, 1), **overrides})
    return discriminator.discriminator(block, a_spec(shape, periodic), precision)


@pytest.mark.parametrize(
    "name", ["gan_discriminator_losses", "gan_balanced_losses", "n2c_discriminator"]
)
def test_published_discriminators(name):
    """Features of every scale, for real and for generated images."""
    original, tensors, arrays = fixture(name)
    module, variables = convert.discriminator(tensors, original)
    if name == "n2c_discriminator":
        inputs, layer = (
            {which: last(arrays[f"input/{which}"]) for which in ("real", "fake")},
            "layer",
        )
    else:
        channels = {
            f"{k}{i}": values
            for k in ("input", "target", "fake")
            for i, values in enumerate(arrays[f"input/{k}"].swapaxes(0, 1))
        }
        inputs = {
            which: np.stack(
                [channels[c.replace("target", name)] for c in original["pair_channels"]], -1
            )
            for which, name in (("real", "target"), ("fake", "fake"))
        }
        layer = "block"
    assert shapes(variables) == shapes(
        jax.eval_shape(module.init, jax.random.key(0), inputs["real"])
    )
    apply = jax.jit(module.apply)
    for which, x in inputs.items():
        for s, features in enumerate(apply(variables, x)):
            assert len(features) == 5
            for i, found in enumerate(features):
                close(found, last(arrays[f"output/{which}_features/scale{s}/{layer}{i}"]), 1e-4)


def test_spectral_norm_follows_torch():
    """sigma from the stored vectors; one power iteration per training call, whose sigma the
    training call uses.
    """
    original, tensors, arrays = fixture("n2c_discriminator")
    module, variables = convert.discriminator(tensors, original)
    names = {
        f"discriminator_{s}.layer{i}.0": f"scale_{s}_block_{i}" for s in range(3) for i in range(5)
    }
    for theirs, ours in names.items():
        kernel, stats = variables["params"][ours]["kernel"], variables["batch_stats"][ours]
        sigma = stats["v"] @ kernel.reshape(-1, kernel.shape[-1]) @ stats["u"]
        assert sigma == pytest.approx(arrays[f"output/sigma/{theirs}"], rel=1e-5)
    train = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable="batch_stats"))
    found, changed = train(variables, last(arrays["input/real"]))
    for s, features in enumerate(found):
        close(features[-1], last(arrays[f"output/train_mode_prediction/scale{s}"]), 1e-4)
    moved = {
        **tensors,
        **{
            k.removeprefix("output/after_one_train_forward/"): v
            for k, v in arrays.items()
            if "after_one" in k
        },
    }
    expected = convert.discriminator(moved, original)[1]["batch_stats"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), changed["batch_stats"], expected
    )


def test_spectral_norm_bounds_every_kernel_from_the_start():
    module, x = judge(spectral_norm=True, norm="none"), volume(0, 1, 16, 16, 16, 1)
    variables = jax.jit(module.init)(jax.random.key(0, impl="unsafe_rbg"), x)
    for name, layer in variables["params"].items():
        kernel, stats = layer["kernel"], variables["batch_stats"][name]
        matrix = kernel.reshape(-1, kernel.shape[-1])
        assert float(stats["v"] @ matrix @ stats["u"]) == pytest.approx(
            np.linalg.norm(matrix, 2), rel=2e-2
        )
    doubled = {
        **variables,
        "params": jax.tree_util.tree_map_with_path(
            lambda path, leaf: 2 * leaf if path[-1].key == "kernel" else leaf, variables["params"]
        ),
    }
    apply = jax.jit(module.apply)  # twice the weights are the same discriminator
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        apply(doubled, x),
        apply(variables, x),
    )


@pytest.mark.parametrize(
    "original, x, known",
    [
        ({"n_df": 32, "n_D": 2}, (64, 64, 64, 2), 5546946),
        ({"n_df": 32, "n_D": 2}, (64, 64, 64, 4), 5555138),
        ({"ndf": 64, "num_D": 3, "n_layers": 3}, (1, 64, 64, 6), 8303427),
        ({"ndf": 64, "num_D": 2, "n_layers": 3}, (1, 64, 64, 12), 5547906),
    ],
)
def test_published_discriminator_parameter_counts(original, x, known):
    block = convert.discriminator_config(original)
    assert (
        count(discriminator.discriminator(block, a_spec(x[:3]), "f32"), jnp.zeros((1, *x))) == known
    )


def test_periodic_discriminator_commutes_with_shifts():
    model, x = judge(periodic=True, scales=2, strides=(2, 1, 1)), volume(1, 1, 16, 16, 16, 2)
    variables = start(model, x)
    f = jax.jit(lambda x: model.apply(variables, x))
    for s, (moved, features) in enumerate(zip(f(np.roll(x, (4, 0, 8), (1, 2, 3))), f(x))):
        step = 2 * 2**s
        size = features[0].shape[1]
        np.testing.assert_allclose(
            moved[0], np.roll(features[0], (4 // step, 0, 8 // step), (1, 2, 3)), atol=1e-5
        )
        assert size == 8 // 2**s


def test_discriminator_under_remat_and_bf16():
    x = volume(6, 2, 8, 8, 8, 2)
    options = {"spectral_norm": True, "norm": "none", "strides": (2, 1)}
    variables = start(judge(**options), x)

    def gradient(**more):
        def loss(p):
            found, stats = judge(**options, **more).apply(
                {**variables, "params": p}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(found[0][-1] ** 2), (found, stats)

        return jax.grad(loss, has_aux=True)

    plain, again = (
        jax.jit(gradient(**more))(variables["params"]) for more in ({}, {"remat": True})
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), again, plain)
    rough, (features, kept) = jax.eval_shape(gradient(precision="bf16"), variables["params"])
    assert features[0][0].dtype == jnp.bfloat16 and features[0][-1].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((rough, kept)))


def test_impossible_choices_are_refused():
    with pytest.raises(
        UserError,
        match="scale 1 sees 8x8x8 voxels and has none left after convolution 4 of 5.*lower",
    ):
        judge(scales=2, strides=(2, 2, 1, 1, 1))
    module = judge((64, 64, 64))
    # tiles of another size than the training volumes
    with pytest.raises(UserError, match="scale 0 sees 4x4x4 voxels"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4, 4, 4, 2)))
    with pytest.raises(UserError, match="discriminator.norm is 'layer'"):
        judge(norm="layer")
    with pytest.raises(UserError, match="strides .2,. and scales 1; expected two or more"):
        judge(strides=(2,))
    original, tensors, _ = fixture("gan_discriminator_losses")
    with pytest.raises(UserError, match="of a discriminator with these hyper-parameters"):
        convert.discriminator(tensors, {**original, "n_D": 1})
