"""Second-order operators against the Hessian's trace in float64; Taylor rules one by one."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import chebyshev as reference

from jaxvol.ops import chebyshev, taylor
from jaxvol.ops.laplacian import laplacian, second_order
from jaxvol.types import UserError


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def points(n, d, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-0.9, 0.9, (n, d)))


def weights(*shape, seed=1):
    return jnp.asarray(
        np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-2] if len(shape) > 1 else 1)
    )


def mlp(d, m=2):
    w = [weights(d, 7, seed=2), weights(7, 6, seed=3), weights(6, m, seed=4)]
    return lambda x: taylor.dense(
        taylor.sin(taylor.dense(taylor.tanh(taylor.dense(x, w[0], 0.1)), w[1])), w[2], 0.3
    )


def kan(d, m=2, degree=4):
    c = [weights(degree + 1, d, 6, seed=5), weights(degree + 1, 6, m, seed=6)]
    scale, bias = weights(6, seed=7), weights(6, seed=8)

    def f(x):
        h = taylor.layer_norm(chebyshev.layer(taylor.tanh(x), c[0]), scale, bias, 1e-5)
        return chebyshev.layer(taylor.tanh(h), c[1])

    return f


def plain(x):
    """No rule for Taylor operands: products, a division and a maximum of its inputs."""
    return jnp.stack(
        [x[:, 0] * x[:, -1] ** 2 / (2 + x[:, 0]), jnp.exp(jnp.sum(x, -1)) * jnp.cos(x[:, -1])], -1
    )


def close(found, expected, tolerance=1e-11):
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, atol=tolerance * (1 + float(jnp.abs(b).max())), rtol=0)


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("net", [mlp, kan, lambda d: plain], ids=["mlp", "kan", "plain"])
def test_every_method_gives_the_trace_of_the_hessian(net, d):
    f, x = net(d), points(11, d)
    asked = [
        ("hessian", 0),
        ("taylor", 0),
        ("taylor", 4),
        ("auto", -1),
        ("diagonal", 0),
        ("jet", 0),
    ][: 6 if d in (1, 3) else 3]

    @jax.jit
    def everything(x):
        hessian = jax.vmap(jax.hessian(lambda y: f(y[None])[0]))(x)
        gradient = jnp.moveaxis(jax.vmap(jax.jacrev(lambda y: f(y[None])[0]))(x), -1, 0)
        return (f(x), gradient, jnp.trace(hessian, axis1=-2, axis2=-1)), [
            laplacian(f, *how)(x) for how in asked
        ]

    expected, found = everything(x)
    for values in found:
        close(values, expected)


@pytest.mark.skipif(find_spec("folx") is None, reason="folx is not installed")
@pytest.mark.parametrize("net", [mlp, kan])
def test_folx_agrees(net):
    close(
        *jax.jit(lambda x: (laplacian(net(3), "folx")(x), laplacian(net(3), "hessian")(x)))(
            points(5, 3)
        )
    )


@pytest.mark.skipif(find_spec("folx") is not None, reason="folx is installed")
def test_without_folx_the_error_says_so():
    with pytest.raises(UserError, match="not installed"):
        laplacian(mlp(3), "folx")(points(5, 3))


def test_gradient_of_a_residual_loss_is_that_of_the_hessian():
    x = points(9, 3)

    def loss(c, method, chunk):
        f = lambda x: chebyshev.layer(taylor.tanh(chebyshev.layer(x, c[0])), c[1])
        u, du, lap = laplacian(f, method, chunk)(x)
        return jnp.mean((lap + u**2 - du[0]) ** 2)

    c = [weights(4, 3, 5), weights(4, 5, 1)]
    asked = (("hessian", 0), ("taylor", 0), ("taylor", 4), ("diagonal", 0))
    expected, *found = jax.jit(lambda c: [jax.grad(loss)(c, *how) for how in asked])(c)
    for gradient in found:
        close(gradient, expected)


@pytest.mark.parametrize("method", ["taylor", "diagonal", "jet", "hessian"])
def test_selected_derivatives_mixed_derivatives_and_coefficients(method):
    """u = sin(2 x) exp(-3 t) + x^2 t in (x, t): every derivative is known."""
    x = points(8, 2)
    a, t = x[:, :1], x[:, 1:]
    f = lambda x: jnp.sin(2 * x[:, :1]) * jnp.exp(-3 * x[:, 1:]) + x[:, :1] ** 2 * x[:, 1:]
    s, c, e = jnp.sin(2 * a), jnp.cos(2 * a), jnp.exp(-3 * t)
    u_x, u_t, u_xx, u_tt, u_xt = (
        2 * c * e + 2 * a * t,
        -3 * s * e + a**2,
        -4 * s * e + 2 * t,
        9 * s * e,
        -6 * c * e + 2 * a,
    )
    value, first, second = jax.jit(second_order(f, ((1, 0), (-2.5, 1)), method))(x)
    close(
        (value, first[0], first[1], second[0], second[1]), (f(x), u_x, u_t, u_xx, u_tt - 2.5 * u_xx)
    )
    _, first, second = jax.jit(
        second_order(f, ((0.25, -0.25),), method, directions=jnp.array([[1.0, 1.0], [1.0, -1.0]]))
    )(x)
    close((first[0], first[1], second[0]), (u_x + u_t, u_x - u_t, u_xt))


@pytest.mark.parametrize("degree", [0, 1, 2, 5, 9])
def test_chebyshev_polynomials_and_derivatives_are_numpys(degree):
    x = np.linspace(-1.2, 1.2, 13)
    for order, found in enumerate(chebyshev.derivatives(jnp.asarray(x), degree)):
        assert len(found) == degree + 1
        for k, values in enumerate(found):
            series = (
                reference.chebder(np.eye(degree + 1)[k], order) if order else np.eye(degree + 1)[k]
            )
            np.testing.assert_allclose(values, reference.chebval(x, series), atol=1e-9 * 4**degree)


@pytest.mark.parametrize("degree", [1, 3])
def test_chebyshev_layer_is_the_double_sum(degree):
    x, c = points(6, 3), weights(degree + 1, 3, 4)
    expected = sum(reference.chebval(np.asarray(x[:, i]), np.asarray(c[:, i])).T for i in range(3))
    np.testing.assert_allclose(chebyshev.layer(x, c), expected, atol=1e-12)
    f = lambda x: chebyshev.layer(x, c)
    close(*jax.jit(lambda x: (laplacian(f, "taylor")(x), laplacian(f, "diagonal")(x)))(x))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * taylor.sin(x) + 2.0 * x - 1.0,
        lambda x: (1.0 - x) * taylor.cos(x),
        lambda x: -x - taylor.tanh(x) * 3.0,
        lambda x: taylor.concatenate([x * x, taylor.cos(x)]),
        lambda x: taylor.linear(lambda v: v[..., :1], x) * x,
    ],
)
def test_arithmetic_of_operands(f):
    close(*jax.jit(lambda x: (laplacian(f, "taylor")(x), laplacian(f, "hessian")(x)))(points(5, 3)))


def test_a_function_without_a_rule_is_told_from_one_with():
    operand = taylor.seed(points(3, 2), jnp.eye(2), ((1.0, 1.0),))
    for f in (
        jnp.tanh,
        lambda x: x[:, 0],
        lambda x: x.sum(),
        lambda x: weights(4, 3) @ x,
        lambda x: x @ weights(2, 3),
    ):
        with pytest.raises(taylor.NoRule):
            f(operand)
    with pytest.raises(ZeroDivisionError):  # a mistake in f is not taken for a missing rule
        laplacian(lambda x: taylor.tanh(x) * (1 / 0))(points(3, 2))


def test_wrong_requests():
    with pytest.raises(ValueError, match="no method 'fast'; known are auto, taylor"):
        laplacian(mlp(2), "fast")
    with pytest.raises(ValueError, match="each of the 2 directions"):
        second_order(mlp(2), ((1.0,),))(points(3, 2))
