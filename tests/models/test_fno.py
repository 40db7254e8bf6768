"""FNO: published weights, symmetries, precision, remat, factorisation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.convert import fno as converter
from jaxvol.models import channel_mlp, fno, spectral
from jaxvol.ops import pointwise
from jaxvol.ops.chunked import voxelwise
from jaxvol.training import sharding
from jaxvol.types import Field, Spec, UserError
from tests import FIXTURES
from tests.ops.test_pruned_transforms import largest_gather

FIXTURE = FIXTURES / "fno_model.npz"


def build(shape=(8, 8, 8), periodic=True, precision="f32", outputs=("y",), **overrides):
    """A small FNO for the given grid."""
    config = ConfigDict({"precision": precision, "model": base.model("fno")})
    config.model.update(
        {"width": 8, "layers": 2, "modes": tuple(min(2, n // 2) for n in shape), **overrides}
    )
    fields = {"input": Field(("x",)), "target": Field(outputs)}
    spec = Spec(fields=fields, shape=shape, spacing=(1.0,) * 3, periodic=(periodic,) * 3)
    return fno.make(config, spec)


def field(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def start(model, x):
    # compiles in a third of threefry's time
    return jax.jit(model.init)(jax.random.key(0, impl="unsafe_rbg"), x)


def published(how):
    """Fixture, module and variables of neuraloperator 2.0.0 with default options."""
    with np.load(FIXTURE, allow_pickle=False) as file:
        fixture = dict(file)
    tensors = {
        name.removeprefix("param/"): x for name, x in fixture.items() if name.startswith("param/")
    }
    module, variables = converter.fno(tensors, json.loads(str(fixture["config"])))
    return fixture, module.clone(implementation=how), variables


@pytest.mark.parametrize("how", ["fft", "dft"])
def test_published_model(how):
    """On the odd grid the repaired value counts (see test_fourier)."""
    fixture, model, variables = published(how)
    assert model == build(
        (4, 4, 2),
        modes=(2, 2, 1),
        window="one_sided",
        coordinates="all",
        periodic=False,
        implementation=how,
    ).clone(padded_axes=model.padded_axes)
    expected = start(model, field(0, 1, 12, 12, 12, 1))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected)
    for name, output in (("x", "y"), ("x_2x", "y_2x"), ("x_odd", "y_odd__patched_ifftshift")):
        y = jax.jit(model.apply)(variables, np.moveaxis(fixture[f"input/{name}"], 1, -1))
        reference = np.moveaxis(fixture[f"output/{output}"], 1, -1)
        np.testing.assert_allclose(y, reference, atol=5e-5 * reference.std(), rtol=0)


def test_periodic_model_commutes_with_shifts_and_is_not_affine():
    model = build()
    a, b = field(1, 1, 8, 8, 8, 1), field(2, 1, 8, 8, 8, 1)
    variables = start(model, a)
    f = jax.jit(lambda x: model.apply(variables, x))
    np.testing.assert_allclose(
        f(np.roll(a, (3, 1, 5), (1, 2, 3))), np.roll(f(a), (3, 1, 5), (1, 2, 3)), atol=2e-6
    )
    assert np.abs(f(a) + f(b) - f(a + b) - f(0 * a)).max() > 0.05 * np.std(f(a))


@pytest.mark.parametrize(
    "options",
    [
        {"modes": (4, 4, 4)},
        {"factorization": "tucker", "rank": 0.3},
        {"factorization": "cp", "rank": 0.3, "norm": "instance"},
        {
            "bypass": "soft_gating",
            "channel_mlp_skip": "linear",
            "norm": "group",
            "activate_last": True,
            "window": "one_sided",
            "layers": 2,
        },
        {
            "bypass": "identity",
            "channel_mlp_ratio": 0.0,
            "lifting_ratio": 0.0,
            "projection_ratio": 0.0,
            "padding": 0.25,
        },
    ],
)
def test_every_parameter_learns(options):
    """Every leaf moves, and every single spectral weight, those on the Nyquist planes too."""
    model = build(periodic=False, outputs=("u", "v"), **{"layers": 1, **options})
    x = field(3, 2, 8, 8, 8, 1)
    target = field(4, 2, 8, 8, 8, 2)
    variables = start(model, x)
    gradient = jax.jit(jax.grad(lambda v: jnp.mean((model.apply(v, x) - target) ** 2)))(variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        dead = np.count_nonzero(np.asarray(leaf) == 0)
        # the imaginary part of a self-conjugate mode's weight, and the constant that a
        # normalisation removes, do nothing
        removed = "norm" in options and "bias" in name
        assert (
            removed
            or np.abs(leaf).max() > 1e-9
            and (dead == 0 or "_imag" in name or "norm" in options)
        ), (name, dead)


def test_same_weights_on_twice_the_resolution():
    """A band-limited input gives the same function to the extent that the activations' own
    harmonics are resolved.
    """
    model = build((16, 16, 16), layers=1)
    j = 2 * np.pi * np.arange(32) / 32
    fine = (0.3 * np.cos(j)[:, None, None] * np.sin(j)[:, None] + 0.2 * np.cos(2 * j)).astype(
        np.float32
    )[None, ..., None]
    variables = start(model, fine[:, ::2, ::2, ::2])
    f = jax.jit(model.apply)
    coarse, reference = f(variables, fine[:, ::2, ::2, ::2]), f(variables, fine)[:, ::2, ::2, ::2]
    np.testing.assert_allclose(coarse, reference, atol=2e-4 * np.std(reference))


def test_activations_keep_their_scale():
    """Root mean square after every block between 0.5 and 2 for white and for smooth unit input."""
    model = build(
        (16, 16, 16), modes=(4, 4, 4), width=24, layers=4, channel_mlp_ratio=0.0, activate_last=True
    )
    white = field(5, 1, 16, 16, 16, 1)
    spectrum = np.fft.rfftn(white, axes=(1, 2, 3))
    keep = np.abs(np.fft.fftfreq(16, 1 / 16)) <= 3
    spectrum *= (keep[:, None, None] & keep[:, None] & keep[:9])[None, ..., None]
    smooth = np.fft.irfftn(spectrum, s=(16,) * 3, axes=(1, 2, 3)).astype(np.float32)
    variables = start(model, white)
    blocks = lambda module, method: isinstance(module, fno.Block) and method == "__call__"
    apply = jax.jit(lambda x: model.apply(variables, x, capture_intermediates=blocks))
    for x in (white, smooth / smooth.std()):
        for leaf in jax.tree.leaves(apply(x)[1]):
            assert 0.5 < np.sqrt(np.mean(leaf**2)) < 2


def test_any_shape_and_axes_of_length_one():
    """Constant along depth, a slice of it is what the flat model with the same weights gives."""
    model = build((1, 8, 6), modes=(0, 2, 3), layers=1, activate_last=True)
    flat = field(6, 2, 1, 8, 6, 1)
    variables = start(model, flat)
    f = jax.jit(model.apply)
    np.testing.assert_allclose(
        f(variables, np.repeat(flat, 5, 1)), np.repeat(f(variables, flat), 5, 1), atol=2e-6
    )


def test_precisions_and_remat_agree():
    x = field(7, 1, 8, 8, 8, 1)
    variables = start(build(), x)

    def run(**options):
        model = build(**options)
        return jax.jit(jax.value_and_grad(lambda v: jnp.mean((model.apply(v, x) - 1) ** 2)))(
            variables
        )

    value, gradient = run()
    same, recomputed = run(remat=True)
    assert float(same) == pytest.approx(float(value), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), recomputed, gradient
    )
    rough, rounded = run(precision="bf16")
    assert float(rough) == pytest.approx(float(value), rel=0.02)
    total = np.sqrt(sum(np.sum(np.square(b)) for b in jax.tree.leaves(gradient)))
    # a sum over voxels in bfloat16 would be far off
    for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(gradient)):
        assert (
            a.dtype == jnp.float32
            and np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b) + 0.01 * total
        )


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_slab_by_slab_equals_the_whole_volume(monkeypatch, dtype, tolerance):
    """Cache-sized pieces, as on one CPU, give the plain computation's values and gradients."""
    weights = [(field(i, a, b), field(i + 2, b)) for i, (a, b) in enumerate(((2, 4), (4, 3)))]
    x, y = jnp.asarray(field(9, 2, 6, 4, 5, 2), dtype), jnp.asarray(field(10, 2, 6, 4, 5, 3), dtype)

    def run(slabs):
        monkeypatch.setattr("jaxvol.ops.chunked.slab_count", lambda *_: slabs)
        apply = lambda w, x, y: voxelwise(
            lambda w, x, y: pointwise.gelu(channel_mlp.apply_mlp(w, x, jnp.float32) + y), w, x, y
        )
        return jax.jit(jax.value_and_grad(lambda *a: jnp.mean(apply(*a) ** 2), (0, 1, 2)))(
            weights, x, y
        )

    whole = run(1)
    for slabs in (4, 12):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a.astype(jnp.float32),
                b.astype(jnp.float32),
                atol=tolerance * float(jnp.abs(b).max()),
            ),
            run(slabs),
            whole,
        )


def test_f64_and_full_rank_tucker_equals_dense():
    with jax.enable_x64(True):
        x = field(8, 1, 8, 8, 8, 1, dtype=np.float64)
        tucker = build(precision="f64", factorization="tucker", rank=1.0, layers=1)
        params = start(tucker, x)["params"]
        weight = lambda name: (
            params["block_0"]["spectral"][f"{name}_real"]
            + 1j * params["block_0"]["spectral"][f"{name}_imag"]
        )
        dense = jnp.einsum(
            "uvwpq,mu,lv,kw,ip,oq->mlkio",
            weight("core"),
            *(weight(f"factor_{i}") for i in range(5)),
        )
        spectral = {"kernel_real": dense.real, "kernel_imag": dense.imag}
        swapped = {**params, "block_0": {**params["block_0"], "spectral": spectral}}
        y = jax.jit(tucker.apply)({"params": params}, x)
        assert y.dtype == jnp.float64
        expected = jax.jit(build(precision="f64", layers=1).apply)({"params": swapped}, x)
        np.testing.assert_allclose(y, expected, atol=1e-12)


def test_eight_devices_equal_one_and_move_only_modes_and_weights():
    """The whole model and its gradient.

    Batch over data and fsdp, parameters over fsdp, depth over space.
    """
    model, x = build((16, 16, 16), layers=1, implementation="dft"), field(11, 4, 16, 16, 16, 1)
    variables = start(model, x)
    mesh = sharding.make_mesh(ConfigDict({"data": 2, "fsdp": 2, "space": 2}))
    places = sharding.state_shardings(mesh, variables), sharding.batch_sharding(mesh, 5)
    gradient = jax.value_and_grad(lambda v, x: jnp.mean((model.apply(v, x) - 1) ** 2))
    expected = jax.jit(gradient)(variables, x)
    with jax.set_mesh(mesh):
        compiled = jax.jit(gradient, in_shardings=places).lower(variables, x).compile()
    found = compiled(*jax.device_put((variables, x), places))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), found, expected
    )
    # a spectral kernel; a device's own field
    assert largest_gather(compiled.as_text()) <= 5 * 5 * 3 * 8 * 8 < x.size * 8 / 8


def test_rank_is_a_fraction_of_the_dense_parameters():
    sizes = (17, 17, 9, 20, 20)
    ranks = spectral.tucker_ranks(sizes, 0.1)
    count = np.prod(ranks) + sum(n * r for n, r in zip(sizes, ranks))
    assert 0.05 * np.prod(sizes) < count <= 0.1 * np.prod(sizes)


def test_coordinates_follow_the_boundaries():
    assert build(periodic=True).coordinate_axes == () and build(periodic=False).coordinate_axes == (
        0,
        1,
        2,
    )
    assert build((1, 8, 8), periodic=False, modes=(0, 2, 2)).coordinate_axes == (1, 2)
    x = fno.append_coordinates(jnp.zeros((1, 2, 4, 5, 1)), (1, 2))
    np.testing.assert_allclose(x[0, 1, :, 3], [[0, i / 4, 0.6] for i in range(4)], atol=1e-7)


def test_impossible_choices_are_refused():
    with pytest.raises(UserError, match=r"modes is \(5, 2, 2\).*8x8x8.*at most \(4, 4, 4\)"):
        build(modes=(5, 2, 2))
    with pytest.raises(UserError, match="bypass is 'conv'; choose one of linear, identity"):
        build(bypass="conv")
