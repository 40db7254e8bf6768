"""Counts of floating-point operations against formulas, and XLA's where nothing is repeated."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from jaxvol.diagnostics import context
from jaxvol.diagnostics.checks import memory
from jaxvol.ops import flops, fourier
from jaxvol.training import sharding
from launch.benchmarks import gflop
from tests.tasks.test_physics import config

M, N, K = 6, 5, 7
X, W = jax.ShapeDtypeStruct((M, K), jnp.float32), jax.ShapeDtypeStruct((K, N), jnp.float32)
DENSE = 2 * M * N * K


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def mean(x, w):
    return jnp.mean(jnp.sin(x @ w))


def test_dense_layers_and_their_gradients():
    assert flops.count(jnp.matmul, X, W) == DENSE
    assert (
        flops.count(jax.grad(mean), X, W) == 2 * DENSE
        and flops.count(jax.grad(mean, (0, 1)), X, W) == 3 * DENSE
    )
    batched = lambda x, w: jnp.einsum("bik,bkj->bij", x, w)
    assert flops.count(batched, struct(3, M, K), struct(3, K, N)) == 3 * DENSE
    assert (
        flops.count(batched, struct(3, M, K, dtype=jnp.complex64), struct(3, K, N)) == 3 * 4 * DENSE
    )
    # what nobody asks for
    assert flops.count(lambda x, w: (x @ w, x.T @ x)[0], X, W) == DENSE
    # the other gradient is thrown away
    both = lambda x, w: jax.vjp(mean, x, w)[1](1.0)[1]
    assert flops.count(both, X, W) == 2 * DENSE


def test_loops_count_as_often_as_they_run():
    square, step = struct(N, N), lambda c, _: (c @ c, None)
    one = 2 * N**3
    assert flops.count(lambda x: lax.scan(step, x, length=7)[0], square) == 7 * one
    assert flops.count(lambda x: lax.fori_loop(0, 7, lambda i, c: c @ c, x), square) == 7 * one
    assert flops.count(lambda x: lax.map(lambda a: a @ a, x), struct(4, N, N)) == 4 * one
    assert (
        flops.count(jax.grad(lambda x: lax.scan(step, x, length=7)[0].sum()), square) == 3 * 7 * one
    )
    # once
    assert (
        flops.count(
            lambda x: lax.while_loop(lambda c: (c @ c).sum() < 9, lambda c: c @ c @ c, x), square
        )
        == 3 * one
    )
    nested = lambda x: lax.scan(lambda c, _: (lax.scan(step, c, length=3)[0], None), x, length=5)[0]
    assert flops.count(nested, square) == 15 * one
    xla = (
        jax.jit(lambda x: lax.scan(step, x, length=7)[0])
        .lower(square)
        .compile()
        .cost_analysis()["flops"]
    )
    # the reason for counting here
    assert xla < 2 * one


def test_what_is_called_counts_as_what_it_contains():
    square = struct(N, N)
    one = 2 * N**3

    @jax.custom_vjp
    def own(x):
        return x @ x

    own.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x @ x,))
    assert (
        flops.count(own, square) == one
        and flops.count(jax.grad(lambda x: own(x).sum()), square) == 2 * one
    )
    tangent = jax.custom_jvp(lambda x: x @ x)
    tangent.defjvp(lambda p, t: (tangent(*p), t[0]))
    assert flops.count(jax.jit(lambda x: tangent(x)), square) == one
    again = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ x) @ x))
    assert flops.count(again, square) == 2 * one
    # 2 forward, 2 again, 4 backward
    assert flops.count(jax.value_and_grad(lambda x: again(x).sum()), square) == 8 * one
    branch = lambda x: lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)
    assert flops.count(branch, square) == 2 * one


def test_shard_map_counts_every_device():
    mesh = jax.make_mesh((4, 2), ("data", "space"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows = jax.sharding.PartitionSpec("data")
    shared = jax.shard_map(
        jnp.matmul,
        mesh=mesh,
        in_specs=(rows, jax.sharding.PartitionSpec()),
        out_specs=rows,
        check_vma=False,
    )
    # split over 4, repeated on 2
    assert flops.count(shared, struct(8, K), W) == 2 * 2 * 8 * K * N


CONVOLUTIONS = {
    "same": dict(window_strides=(1, 1), padding="SAME"),
    "valid, strided": dict(window_strides=(2, 3), padding="VALID"),
    "asymmetric": dict(window_strides=(1, 2), padding=((2, 0), (0, 3))),
    "transposed": dict(window_strides=(1, 1), padding=((2, 1), (1, 2)), lhs_dilation=(2, 3)),
    "dilated": dict(window_strides=(2, 1), padding="SAME", rhs_dilation=(2, 3)),
    "grouped": dict(window_strides=(1, 1), padding="SAME", feature_group_count=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_counted_as_products_of_numbers_that_are_there(name):
    """Of ones: every product is one and adds one, so the sum of the output is the number of
    products; so for both gradients.
    """
    own = CONVOLUTIONS[name]
    x, kernel = (
        jnp.ones((2, 9, 8, 4)),
        jnp.ones(
            (3, 3, 4 // (own["feature_group_count"] if "feature_group_count" in own else 1), 6)
        ),
    )

    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, **own, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected = 2 * float(convolve(x, kernel).sum())
    assert flops.count(convolve, x, kernel) == expected
    for wanted in (0, 1):
        # linear: needs no forward pass
        gradient = jax.grad(lambda x, kernel: convolve(x, kernel).sum(), wanted)
        assert flops.count(gradient, x, kernel) == expected


def test_transforms():
    n = 8 * 4 * 16
    axes, full, half = (1, 2, 3), struct(3, 8, 4, 16, dtype=jnp.complex64), struct(3, 8, 4, 16)
    assert flops.count(lambda x: jnp.fft.fftn(x, axes=axes), full) == 3 * 5 * n * 9
    assert flops.count(lambda x: jnp.fft.rfftn(x, axes=axes), half) == 3 * 2.5 * n * 9
    assert (
        flops.count(
            lambda x: jnp.fft.irfftn(jnp.fft.rfftn(x, axes=axes), (8, 4, 16), axes=axes), half
        )
        == 3 * 5 * n * 9
    )


def test_a_spectral_layer():
    """Truncated transforms as products per axis, last axis first, and one complex product [C, K]
    per kept frequency; or FFTs.
    """
    b, n, c, k, m = 2, 16, 3, 5, 3
    kept = fourier.window((m, m, m))
    full, half = 2 * m + 1, m + 1
    weights = (struct(full, full, half, c, k),) * 2

    def along(features, real=2 * 2 * n**3 * half, full=full, half=half):
        return features * (real + 8 * n**2 * half * full + 8 * n * half * full**2)

    modes = full * full * half
    layer = lambda how: lambda x, w: fourier.spectral_conv(x, w, (), kept, implementation=how)
    found = {how: flops.count(layer(how), struct(b, n, n, n, c), weights) for how in ("dft", "fft")}
    # rows (example, part) times both parts
    contraction = modes * 2 * (2 * b) * c * k * 2
    assert found["dft"] == b * (along(c) + along(k)) + contraction
    assert (
        found["fft"]
        == b * (c + k) * (2.5 * n**3 * 4 + 5 * n**2 * half * 4 + 5 * n * half * full * 4)
        + contraction
    )


def test_without_loops_it_is_what_xla_counts():
    """A network of dense layers and convolutions, forward and backward; XLA counts what acts on
    single elements as well.
    """

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.ConvTranspose(16, (2, 2), (2, 2))(
                nn.relu(nn.Conv(32, (3, 3), (2, 2))(nn.Conv(16, (3, 3))(x)))
            )
            return nn.Dense(8)(nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1))))

    x = struct(4, 16, 16, 8)
    variables = jax.eval_shape(Net().init, jax.random.key(0), x)
    gradient = jax.grad(lambda v, x: Net().apply(v, x).sum())
    xla = jax.jit(gradient).lower(variables, x).compile().cost_analysis()["flops"]
    assert flops.count(gradient, variables, x) == pytest.approx(xla, rel=0.03)


def test_the_check_of_memory_counts_the_whole_train_step(monkeypatch):
    """Two micro-batches, which are a loop, do the work of one batch; twice the batch, twice the
    work; the roofline takes these numbers.
    """
    mesh = sharding.make_mesh(ConfigDict({"data": 1, "fsdp": 1, "space": 1}), jax.devices()[:1])
    monkeypatch.setitem(memory.ROOFLINE, "cpu", (1e6, 1e30))
    with jax.set_mesh(mesh):
        small = {"batch_size": 2, "preflight__steps": 2, "model__widths": (4,), "model__degree": 3}
        whole, halves = (
            context.make(config(micro_batches=n, **small), mesh, Path("."), 2) for n in (1, 2)
        )
        table = next(iter(memory.diagnose(halves).tables.values()))
        operations = flops.total(whole.trace(2).jaxpr)
    assert table[0]["GFLOP"] * 1e9 == pytest.approx(operations) and operations > 0
    assert table[1]["GFLOP"] == pytest.approx(2 * table[0]["GFLOP"])
    assert table[0]["share of the roofline"] == pytest.approx(
        operations / 1e6 / table[0]["time (s)"]
    )


def test_the_table_of_configs(monkeypatch, tmp_path):
    """A step is a forward and a backward pass of twice its work, less what no gradient needs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    parameters, forward, whole = gflop.measure("tests/tiny.py")
    assert (
        list(parameters) == ["net"]
        and forward > 0
        and whole == pytest.approx(3 * forward, rel=0.25)
    )
