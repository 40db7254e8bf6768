"""Spectral convolution: against plane waves, brute force in float64 and the published code."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxvol.ops import fourier
from tests import FIXTURES

BOTH = pytest.mark.parametrize("how", ["fft", "dft"])


@partial(jax.jit, static_argnames=("window", "implementation", "output_shape"))
def run(x, core, factors, window, **options):
    """`spectral_conv` with complex weights."""
    pair = lambda w: (w.real, w.imag)
    return fourier.spectral_conv(
        x, None if core is None else pair(core), tuple(map(pair, factors)), window, **options
    )


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def weights(seed, window, c_in=2, c_out=3):
    real, imag = np.random.default_rng(seed).normal(
        size=(2, *fourier.window_size(window), c_in, c_out)
    )
    return real + 1j * imag


def brute_force(x, weight, window, out=None):
    """The defining sum, frequency by frequency, up to the grid's Nyquist frequency."""
    grid = [np.arange(n) for n in x.shape[1:4]]
    out = out or x.shape[1:4]
    fine = [np.arange(n) for n in out]
    y = np.zeros((x.shape[0], *out, weight.shape[-1]))
    wave = lambda k, j, n, sign: np.exp(
        sign
        * 2j
        * np.pi
        * sum(
            np.reshape(kk * jj / nn, [-1 if a == b else 1 for b in range(3)])
            for a, (kk, jj, nn) in enumerate(zip(k, j, n))
        )
    )
    for index in np.ndindex(*weight.shape[:3]):
        k = [low + i for (low, _), i in zip(window, index)]
        if any(2 * abs(kk) > min(n, o) for kk, n, o in zip(k, x.shape[1:4], out)):
            continue
        share = np.prod([0.5 if 2 * abs(kk) == n else 1.0 for kk, n in zip(k, x.shape[1:4])])
        spectrum = (
            np.einsum("bdhwc,dhw->bc", x, wave(k, grid, x.shape[1:4], -1))
            / np.prod(x.shape[1:4])
            * share
        )
        response = (spectrum @ weight[index])[:, None, None, None] * wave(k, fine, out, 1)[
            None, ..., None
        ]
        y += (1 if k[2] == 0 else 2) * response.real
    return y


@BOTH
@pytest.mark.parametrize(
    "shape, modes",
    [
        ((8, 8, 8), (4, 4, 4)),
        ((7, 6, 5), (2, 3, 2)),
        ((6, 9, 4), (3, 4, 2)),
        ((1, 8, 6), (0, 2, 3)),
        ((4, 6, 1), (2, 1, 0)),
        ((6, 5, 4), (5, 4, 6)),
    ],
)
def test_equals_the_defining_sum_on_any_grid(how, shape, modes):
    window = fourier.window(modes)
    x = np.random.default_rng(0).normal(size=(2, *shape, 2))
    y = run(x, weights(1, window), (), window, implementation=how)
    assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, brute_force(x, weights(1, window), window), atol=1e-12)


@BOTH
@pytest.mark.parametrize("out", [(9, 12, 7), (6, 5, 8), (4, 4, 4)])
def test_other_output_grid_evaluates_the_same_polynomial(how, out):
    window = fourier.window((3, 2, 4))
    x = np.random.default_rng(2).normal(size=(1, 8, 6, 8, 2))
    y = run(x, weights(3, window), (), window, implementation=how, output_shape=out)
    np.testing.assert_allclose(y, brute_force(x, weights(3, window), window, out), atol=1e-12)


@BOTH
def test_plane_wave_is_scaled_and_shifted_by_its_weight(how):
    window = fourier.window((3, 3, 3))
    weight = weights(4, window, 1, 1)
    d, h, w = np.meshgrid(*[2 * np.pi * np.arange(n) / n for n in (10, 9, 8)], indexing="ij")
    phase = -2 * d + h + 3 * w
    value = weight[-2 + 3, 1 + 3, 3, 0, 0]
    y = run(np.cos(phase)[None, ..., None], weight, (), window, implementation=how)
    np.testing.assert_allclose(
        y[0, ..., 0], abs(value) * np.cos(phase + np.angle(value)), atol=1e-13
    )


@BOTH
def test_unit_weights_are_the_identity_and_the_nyquist_planes_survive(how):
    window = fourier.window((4, 3, 4))
    x = np.random.default_rng(5).normal(size=(2, 8, 6, 8, 1))
    y = run(
        x,
        np.ones((*fourier.window_size(window), 1, 1), complex),
        (),
        window,
        implementation=how,
    )
    np.testing.assert_allclose(y, x, atol=1e-13)


@BOTH
def test_symmetric_weights_commute_with_shifts_and_a_quarter_turn(how):
    window = fourier.window((4, 4, 4))
    k = np.stack(
        np.meshgrid(*[np.arange(low, high + 1) for low, high in window], indexing="ij"), -1
    )
    weight = (
        np.exp(-0.3 * (k**2).sum(-1))[..., None, None]
        * np.random.default_rng(6).normal(size=(2, 2))
        + 0j
    )
    x = np.random.default_rng(7).normal(size=(1, 8, 8, 8, 2))
    conv = lambda x: run(x, weight, (), window, implementation=how)
    np.testing.assert_allclose(
        conv(np.roll(x, (1, 3, 2), (1, 2, 3))), np.roll(conv(x), (1, 3, 2), (1, 2, 3)), atol=1e-13
    )
    for axes in ((1, 2), (2, 3), (1, 3)):
        np.testing.assert_allclose(
            conv(np.rot90(x, axes=axes)), np.rot90(conv(x), axes=axes), atol=1e-13
        )


@BOTH
def test_same_weights_on_a_finer_grid_give_the_same_function(how):
    window = fourier.window((3, 3, 3))
    fine = run(
        np.random.default_rng(8).normal(size=(1, 32, 32, 32, 1)),
        weights(9, window, 1, 1),
        (),
        window,
        implementation=how,
    )
    conv = lambda x: run(x, weights(10, window, 1, 2), (), window, implementation=how)
    np.testing.assert_allclose(
        conv(fine)[:, ::2, ::2, ::2], conv(fine[:, ::2, ::2, ::2]), atol=1e-13
    )


@BOTH
def test_gradients_match_finite_differences(how):
    window = fourier.window((2, 1, 2))
    x, weight = np.random.default_rng(11).normal(size=(1, 4, 5, 4, 2)), weights(12, window)

    def energy(x, real, imag):
        return jnp.sum(
            jnp.sin(fourier.spectral_conv(x, (real, imag), (), window, implementation=how))
        )

    check_grads(
        jax.jit(energy), (x, weight.real, weight.imag), order=1, modes=["rev"], atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("c_out", [2, 3])
def test_factorised_weights_equal_the_dense_tensor_they_stand_for(c_out):
    window = fourier.window((2, 1, 3))
    sizes = (*fourier.window_size(window), 2, c_out)
    rng = np.random.default_rng(13)
    draw = lambda *shape: rng.normal(size=shape) + 1j * rng.normal(size=shape)
    # axis 0 and 2 of the window meet the Nyquist frequency
    x = rng.normal(size=(2, 4, 5, 6, 2))
    core, factors = draw(2, 3, 2, 1, 2), tuple(draw(n, r) for n, r in zip(sizes, (2, 3, 2, 1, 2)))
    dense = np.einsum("uvwpq,mu,lv,kw,ip,oq->mlkio", core, *factors)
    np.testing.assert_allclose(run(x, core, factors, window), run(x, dense, (), window), atol=1e-12)
    factors = tuple(draw(n, 4) for n in sizes)
    dense = np.einsum("mr,lr,kr,ir,or->mlkio", *factors)
    np.testing.assert_allclose(
        run(x[:, :2, :, :4], None, factors, window),
        run(x[:, :2, :, :4], dense, (), window),
        atol=1e-12,
    )


@pytest.mark.parametrize(
    "dtype, tolerance", [(jnp.float64, 1e-14), (jnp.float32, 1e-14), (jnp.bfloat16, 4e-3)]
)
@pytest.mark.parametrize("factors", [(), (2, 3, 2, 2, 3)])
def test_multiplying_again_gives_the_gradient_of_multiplying_once(dtype, tolerance, factors):
    """Exact where the spectrum is not rounded.

    In bfloat16 only the gradient of the weights feels it.
    """
    rng = np.random.default_rng(5)
    pair = lambda *shape: tuple(
        jnp.asarray(part.astype(np.float32), jnp.float64) for part in rng.normal(size=(2, *shape))
    )
    sizes = (5, 5, 3, 2, 3)
    core, small = pair(*(factors or sizes)), tuple(pair(n, r) for n, r in zip(sizes, factors))
    spectrum, cotangent = (
        jax.lax.complex(*pair(2, 5, 5, 2, 3)),
        jax.lax.complex(*pair(2, 5, 5, 3, 3)),
    )
    once = jax.vjp(fourier.contract, spectrum, core, small)[1](cotangent)
    again = jax.vjp(lambda *a: fourier.contract_again(*a, jnp.dtype(dtype)), spectrum, core, small)[
        1
    ](cotangent)
    np.testing.assert_array_equal(again[0], once[0])
    for a, b in zip(jax.tree.leaves(again[1:]), jax.tree.leaves(once[1:])):
        assert jnp.linalg.norm(a - b) <= tolerance * jnp.linalg.norm(b)


def test_low_precision_is_transformed_in_float32():
    window = fourier.window((2, 2, 2))
    x = jnp.asarray(np.random.default_rng(14).normal(size=(1, 8, 8, 8, 2)), jnp.bfloat16)
    weight = weights(15, window).astype(np.complex64)
    y = run(x, weight, (), window)
    exact = run(x.astype(jnp.float32), weight, (), window)
    assert y.dtype == exact.dtype == jnp.float32
    np.testing.assert_array_equal(y, exact)


@BOTH
@pytest.mark.parametrize("case", ["even", "odd_noncubic", "modes_exceed_grid"])
def test_published_implementation(case, how):
    """neuraloperator 2.0.0, whose second fftshift misplaces the spectrum on odd axes.

    There the repaired value counts.  `y_output_shape` is not compared: the original zero-pads the
    spectrum behind its negative frequencies, which moves them (k = -1 of 8 becomes k = 7 of 11).
    """
    with np.load(FIXTURES / f"fno_spectralconv_{case}.npz", allow_pickle=False) as file:
        fixture = dict(file)
    stored = json.loads(str(fixture["config"]))["stored_n_modes"]
    window = tuple((-(n // 2), n - n // 2 - 1) for n in stored[:2]) + ((0, stored[2] - 1),)
    weight = fixture["param/weight.tensor.real"] + 1j * fixture["param/weight.tensor.imag"]
    weight = weight.transpose(2, 3, 4, 0, 1)
    for name, expected in (("x", "y__patched_ifftshift"), ("x_2x", "y_2x")):
        y = run(
            np.moveaxis(fixture[f"input/{name}"], 1, -1),
            weight,
            (),
            window,
            implementation=how,
        )
        reference = np.moveaxis(fixture[f"output/{expected}"] - fixture["param/bias"], 1, -1)
        np.testing.assert_allclose(y, reference, atol=5e-5 * reference.std(), rtol=0)


def test_unknown_implementation_names_the_choices():
    with pytest.raises(ValueError, match="auto, fft, dft"):
        fourier.choose("fast", (8, 8, 8), fourier.window((2, 2, 2)))
