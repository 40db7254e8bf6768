"""Networks of coordinates: published values, derivatives and training; scaling, inits, sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxvol.config import base, components
from jaxvol.convert import published as convert
from jaxvol.models import cheb_kan
from jaxvol.ops import chebyshev, taylor
from jaxvol.ops.laplacian import laplacian, second_order
from jaxvol.types import Field, Spec, UserError
from tests import FIXTURES

DATA = FIXTURES


def fixture(name):
    with np.load(DATA / f"cpikan_{name}.npz", allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files if k != "config"}
        original = json.loads(str(file["config"]))
    return original, {k[6:]: v for k, v in arrays.items() if k.startswith("param/")}, arrays


def spec(low=(-6.0, 0.0), high=(6.0, 1.0), names=("x", "t"), outputs=("u",)):
    field = Field(
        names, normaliser=({"name": "linear", "low": list(low), "high": list(high), "clip": False},)
    )
    return Spec({"input": field, "target": Field(outputs)}, (1, 1, 1), (1.0,) * 3)


def network(block, given=None, precision="f32", **overrides):
    config = ConfigDict({"precision": precision, "model": block})
    config.model.update(overrides)
    return components.model(config, given or spec())


def near(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, atol=tolerance * np.std(expected), rtol=0)


@pytest.mark.parametrize("kind, axes", [("paper", (2, 0, 1)), ("port", (2, 1, 0))])
def test_published_layer_and_its_pullback(kind, axes):
    _, tensors, arrays = fixture(f"layer_{kind}")
    squash = taylor.tanh if kind == "paper" else lambda x: x
    c = tensors["cheby_coeffs"].transpose(axes)
    y, pull = jax.vjp(lambda x, c: chebyshev.layer(squash(x), c), arrays["input/x"], c)
    near(y, arrays["output/y"], 5e-5)
    vjp_x, vjp_c = pull(arrays["input/cotangent"])
    near(vjp_x, arrays["output/vjp_x"], 1e-4)
    near(vjp_c.transpose(np.argsort(axes)), arrays["output/vjp_cheby_coeffs"], 1e-4)


def paper():
    original, tensors, arrays = fixture("network_paper")
    module, variables = convert.from_torch("cheb_kan", tensors, original)
    net = lambda v: lambda x: module.apply(v, x)

    def loss(v):
        u, (_, u_t), (u_xx,) = second_order(net(v), ((1, 0),))(arrays["input/X_int"])
        terms = (
            u_t - original["Diff_param"] / original["VS"] ** 2 * u_xx,
            net(v)(arrays["input/X_0"]) - arrays["input/U_0"],
            net(v)(arrays["input/X_b"]) - arrays["input/U_b"],
        )
        return sum(w * jnp.mean(r**2) for w, r in zip(original["loss_weights"], terms))

    return arrays, variables, net, loss


def test_published_network_derivatives_loss_and_gradient():
    arrays, variables, net, loss = paper()
    diagonal = jnp.array([[1.0, 0], [0, 1], [1, 1], [1, -1]])
    u, first, second = jax.jit(
        second_order(
            net(variables), ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0.25, -0.25)), directions=diagonal
        )
    )(arrays["input/X"])
    near(u, arrays["output/u"], 5e-5)
    for name, found in (
        ("u_x", first[0]),
        ("u_t", first[1]),
        ("u_xx", second[0]),
        ("u_tt", second[1]),
        ("u_xt", second[2]),
    ):
        near(found, arrays[f"output/{name}"], 1e-4)
    value, gradient = jax.jit(jax.value_and_grad(loss))(variables)
    assert float(value) == pytest.approx(float(arrays["output/weighted_loss"]), rel=1e-5)
    for i in range(3):
        near(
            gradient["params"][f"layer_{i}"].transpose(1, 2, 0),
            arrays[f"output/grad_loss/Cheb_layers.{i}.cheby_coeffs"],
            1e-4,
        )


def test_twenty_adam_steps_of_the_published_training():
    arrays, variables, _, loss = paper()
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(v, state):
        value, gradient = jax.value_and_grad(loss)(v)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(v, updates), state, value

    state, losses = optimizer.init(variables), []
    for _ in range(20):
        variables, state, value = step(variables, state)
        losses.append(float(value))
    np.testing.assert_allclose(losses, arrays["output/train_loss_20_adam_steps"], rtol=1e-4)


def test_published_port_with_its_domain():
    original, tensors, arrays = fixture("network_port")
    module, variables = convert.from_torch("cheb_kan", tensors, original)
    x = arrays["input/x"]
    u, gradient, _ = laplacian(lambda x: module.apply(variables, x))(x)
    curvature = second_order(lambda x: module.apply(variables, x), np.eye(3).tolist())(x)[2]
    near(u, arrays["output/y"], 5e-5)
    near(gradient[..., 0].T, arrays["output/grad_y0"], 1e-4)
    near(curvature[..., 0].T, arrays["output/second_derivative_diag_y0"], 1e-4)


def test_wrong_tensors_are_named():
    original, tensors, _ = fixture("network_port")
    tensors.pop("network.1.weight")
    with pytest.raises(UserError, match="1 missing: network.1.weight"):
        convert.from_torch("cheb_kan", tensors, original)


@pytest.mark.parametrize("block", ["cheb_kan", "mlp"])
def test_scaling_maps_the_domain_and_keeps_physical_derivatives(block):
    """The scaled network on [-6, 6] x [0, 1] is the unscaled one on [-1, 1]^2, its derivatives
    divided by the half widths.
    """
    wide, unit = network(base.model(block)), network(base.model(block), scaling="none")
    x = np.random.default_rng(0).uniform(-1, 1, (7, 2)).astype(np.float32)
    physical = x * [6, 0.5] + [0, 0.5]
    variables = wide.init(jax.random.key(0), x)
    (u, du, _), (v, dv, _) = (
        laplacian(lambda x, n=n: n.apply(variables, x))(at)
        for n, at in ((wide, physical.astype(np.float32)), (unit, x))
    )
    np.testing.assert_allclose(u, v, atol=1e-5)
    np.testing.assert_allclose(
        du, dv / np.array([6, 0.5])[:, None, None], atol=2e-4 * float(jnp.abs(dv).max())
    )
    space = network(base.model(block), scaling="space")
    assert (space.factor, space.shift) == ((1 / 6, 1.0), (0.0, 0.0))


@pytest.mark.parametrize(
    "block, options",
    [
        ("cheb_kan", {"form": "layer_norm"}),
        ("cheb_kan", {}),
        ("mlp", {}),
        ("mlp", {"kind": "sine"}),
        ("mlp", {"kind": "fourier"}),
    ],
)
def test_every_form_has_rules_for_taylor_operands_and_precisions(block, options):
    """The collapsed Taylor mode agrees with forward over reverse in float64; bfloat16 stays near
    and float32 comes out.
    """
    widths = {"widths": (8, 8)}
    with jax.enable_x64(True):
        model = network(base.model(block), precision="f64", **options, **widths)
        x = jnp.asarray(np.random.default_rng(1).uniform(0, 1, (5, 2)))
        variables = model.init(jax.random.key(1), x)
        # raises NoRule if a layer has none
        model.apply(variables, taylor.seed(x, jnp.eye(2), ((1.0, 1.0),)))
        found, expected = jax.jit(
            lambda x: [
                laplacian(lambda x: model.apply(variables, x), m)(x) for m in ("taylor", "diagonal")
            ]
        )(x)
        for a, b in zip(found, expected):
            np.testing.assert_allclose(a, b, atol=1e-9 * float(jnp.abs(b).max()))
        expected = np.asarray(model.apply(variables, x))
    rough = network(base.model(block), precision="bf16", **options, **widths)
    single = jax.tree.map(lambda v: v.astype(jnp.float32), variables)
    y = rough.apply(single, x.astype(jnp.float32))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, atol=0.2)


def test_initialisations_have_their_spread():
    shape = (6, 40, 50)
    draw = {
        name: np.asarray(cheb_kan.initialiser(name)(jax.random.key(2), shape, jnp.float32))
        for name in cheb_kan.INITS
    }
    assert draw["xavier"].std() == pytest.approx(np.sqrt(2 / (90 * 6)), rel=0.03)
    bound = np.sqrt(2 / 1.01) * np.sqrt(3 / (40 * 6))
    assert 0.99 * bound < np.abs(draw["kaiming"]).max() <= bound
    flat = draw["orthogonal"].reshape(240, 50)
    np.testing.assert_allclose(flat.T @ flat, np.eye(50), atol=1e-5)
    assert draw["small"].std() == pytest.approx(0.1 / np.sqrt(240), rel=0.03)


def test_parameter_counts():
    """Published sizes (528 and 8,896), and an MLP of the KAN's size."""
    count = lambda model: sum(
        v.size
        for v in jax.tree.leaves(
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, len(model.factor))))
        )
    )
    assert count(network(base.model("cheb_kan"), widths=(8, 8), degree=5, form="tanh")) == 528
    cube = spec((0.0,) * 3, (1.0,) * 3, ("x", "y", "z"))
    assert (
        count(network(base.model("cheb_kan"), cube, widths=(32,) * 3, degree=3, form="layer_norm"))
        == 8896
    )
    assert (
        abs(count(network(base.model("mlp"))) / count(network(base.model("cheb_kan"))) - 1) < 0.05
    )


def test_volumes_are_no_coordinates():
    with pytest.raises(UserError, match="needs the bounds of a domain"):
        network(
            base.model("cheb_kan"),
            Spec({"input": Field(("x",)), "target": Field(("y",))}, (8, 8, 8), (1.0,) * 3),
        )
