"""Patches, windows, positions, attention and its neighbours against loops and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxvol.ops import attention, patches, pointwise
from jaxvol.types import UserError


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_patches_hold_the_voxels_they_should_and_come_back():
    x, patch = draw(2, 4, 6, 6, 3), (2, 3, 1)
    tokens = np.asarray(patches.patchify(x, patch))
    assert tokens.shape == (2, 2, 2, 6, 18)
    for i, j, k in itertools.product(range(2), range(2), range(6)):
        np.testing.assert_array_equal(
            tokens[:, i, j, k], x[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3, k : k + 1].reshape(2, -1)
        )
    np.testing.assert_array_equal(patches.unpatchify(tokens, patch), x)
    assert patches.steps((1, 6, 4)) == [(1, 2, 2), (1, 3, 2)] and patches.steps((1, 1, 1)) == [
        (1, 1, 1)
    ]


def test_a_patch_that_does_not_divide_the_volume_is_explained():
    with pytest.raises(
        UserError,
        match="6 x 8 x 8 voxels and patches of 4 x 4 x 4: expected each side to be a multiple",
    ):
        patches.patchify(np.zeros((1, 6, 8, 8, 1)), (4, 4, 4))
    with pytest.raises(UserError, match="4 x 4 x 6 tokens and windows of 4"):
        patches.windows(np.zeros((1, 4, 4, 6, 1)), 4, 0)


@pytest.mark.parametrize("shift", [0, 1])
def test_windows_are_neighbours_and_come_back(shift):
    tokens = draw(2, 4, 2, 6, 3)
    cubes = np.asarray(patches.windows(tokens, 2, shift)).reshape(2, 2, 1, 3, 2, 2, 2, 3)
    for (i, a), (j, b), (k, c) in itertools.product(
        *(itertools.product(range(n // 2), range(2)) for n in (4, 2, 6))
    ):
        place = (2 * i + a + shift) % 4, (2 * j + b + shift) % 2, (2 * k + c + shift) % 6
        np.testing.assert_array_equal(cubes[:, i, j, k, a, b, c], tokens[(slice(None), *place)])
    np.testing.assert_array_equal(
        patches.unwindows(cubes.reshape(-1, 8, 3), (4, 2, 6), 2, shift), tokens
    )


@pytest.mark.parametrize("periodic", [(False, False, False), (True, False, True)])
def test_moved_windows_do_not_join_the_ends_of_an_axis_that_does_not_wrap(periodic):
    grid, size, shift = (4, 4, 8), 4, 2
    mask = patches.window_mask(grid, size, shift, periodic)
    place = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1)[None].astype(np.float32)
    # [n, T, 3]: where each token lies
    cubes = np.asarray(patches.windows(place, size, shift))
    # and where in its window
    local = np.array(list(itertools.product(range(size), repeat=3)))
    # no end lies between the two
    whole = cubes[:, :, None] - cubes[:, None] == local[:, None] - local
    np.testing.assert_array_equal(mask == 0, (whole | np.array(periodic)).all(-1))
    assert (mask < 0).any() and set(np.unique(mask)) == {0, np.float32(patches.MASKED)}
    assert (
        patches.window_mask(grid, size, 0, periodic) is None
        and patches.window_mask(grid, size, shift, (True,) * 3) is None
    )


def test_sincos_tells_tokens_apart_and_a_wrapping_axis_has_no_ends():
    grid = (4, 6, 5)
    table = patches.sincos(grid, grid, (True, False, False), 38)
    flat = table.reshape(-1, 38)
    gap = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + 9 * np.eye(len(flat))
    assert table.shape == (*grid, 38) and gap.min() > 0.1 and not table[..., 36:].any()
    steps = [np.linalg.norm(table[(i + 1) % 4, 0, 0] - table[i, 0, 0]) for i in range(4)]
    np.testing.assert_allclose(steps, steps[0], rtol=1e-5)
    assert patches.sincos((2, 2, 2), (2, 2, 2), (False,) * 3, 4).shape == (2, 2, 2, 4)


def test_sincos_on_a_finer_grid_passes_through_the_coarse_one():
    """Three times as many tokens: each old centre is the centre of a new token."""
    coarse = patches.sincos((2, 4, 2), (2, 4, 2), (True, False, False), 18)
    fine = patches.sincos((6, 12, 6), (2, 4, 2), (True, False, False), 18)
    np.testing.assert_allclose(fine[1::3, 1::3, 1::3], coarse, atol=1e-6)


@pytest.mark.parametrize(
    "n, trained, wraps", [(6, 6, True), (5, 5, True), (8, 6, True), (4, 4, False), (6, 4, False)]
)
def test_offsets_count_tokens_the_shorter_way(n, trained, wraps):
    table = patches.offset_at(trained, wraps)
    assert len(table) == patches.offset_count(trained, wraps)
    for i, j in itertools.product(range(n), range(n)):
        step = j - i
        if wraps:
            step = min((step, step - n, step + n), key=lambda s: (abs(s), s))
        assert table[patches.offsets(n, trained, wraps)[i, j]] == np.clip(step, table[0], table[-1])


def reference(q, k, v, added):
    """Softmax attention in float64, one query at a time."""
    q, k, v = (np.float64(x) for x in (q, k, v))
    y = np.zeros_like(q)
    for b, h, i in itertools.product(range(q.shape[0]), range(q.shape[2]), range(q.shape[1])):
        scores = k[b, :, h] @ q[b, i, h] / np.sqrt(q.shape[-1]) + added[b, h, i]
        weights = np.exp(scores - scores.max())
        y[b, i, h] = weights @ v[b, :, h] / weights.sum()
    return y


@pytest.fixture
def one_device(monkeypatch):
    """What one CPU does: head by head."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.mark.parametrize("implementation", ["matmul", "xla", "one by one"])
def test_attention_equals_the_loop_and_its_maps_sum_to_one(implementation, request):
    if implementation == "one by one":
        implementation = request.getfixturevalue("one_device") or "matmul"
    grid = (2, 3, 2)
    q, k, v = (draw(4, 12, 2, 8, seed=s) * scale for s, scale in ((0, 30.0), (1, 1.0), (2, 1.0)))
    rows = tuple(draw(2, n, n, seed=3 + n) for n in grid)
    mask = np.where(np.random.default_rng(5).random((2, 12, 12)) < 0.3, patches.MASKED, 0.0).astype(
        np.float32
    )
    mask[:, np.arange(12), np.arange(12)] = 0
    places = list(itertools.product(*map(range, grid)))
    pairs = np.array(
        [
            [[sum(rows[a][h, s[a], t[a]] for a in range(3)) for t in places] for s in places]
            for h in range(2)
        ]
    )
    position = (
        patches.spread(tuple(map(jnp.asarray, rows))),
        jnp.asarray(patches.one_hot_places(grid)),
    )
    np.testing.assert_allclose(attention.product(position), pairs, atol=1e-6)
    y = jax.jit(attention.attention, static_argnames="implementation")(
        q, k, v, position, jnp.asarray(mask), implementation
    )
    expected = reference(q, k, v, pairs[None] + np.tile(mask, (2, 1, 1))[:, None])
    np.testing.assert_allclose(y, expected, atol=2e-5)
    weights = np.asarray(attention.maps(q, k, position, jnp.asarray(mask)))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(np.einsum("bnts,bsnf->btnf", weights, v), expected, atol=2e-5)


@pytest.mark.parametrize("how", ["at once", "one by one"])
def test_gradients_of_attention(how, request):
    """With respect to q, k, v and the positions, against JAX's own of its own implementation; one
    head is masked per window.
    """
    if how == "one by one":
        request.getfixturevalue("one_device")
    q, k, v = (draw(4, 12, 2, 8, seed=s) for s in range(3))
    rows, columns, mask = draw(2, 12, 5), draw(12, 5, seed=1), np.zeros((2, 12, 12), np.float32)
    mask[1, :6, 6:] = mask[1, 6:, :6] = patches.MASKED

    def loss(arguments, implementation):
        q, k, v, rows = arguments
        return jnp.sum(
            jnp.sin(
                attention.attention(
                    q, k, v, (rows, jnp.asarray(columns)), jnp.asarray(mask), implementation
                )
            )
        )

    one, other = (
        jax.jit(jax.grad(loss), static_argnums=1)((q, k, v, rows), name)
        for name in ("matmul", "xla")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


def test_gelu_and_standardise_and_their_gradients():
    x, dy = 3 * draw(6, 5).astype(np.float64), draw(6, 5, seed=1).astype(np.float64)
    with jax.enable_x64(True):
        y, pull = jax.vjp(pointwise.gelu, x)
        np.testing.assert_allclose(y, x * special.ndtr(x), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(
            pull(dy)[0],
            dy * (special.ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)),
            rtol=1e-12,
            atol=1e-15,
        )
        y, pull = jax.vjp(pointwise.standardise, x)
        expected, reference = jax.vjp(
            lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5), x
        )
        np.testing.assert_allclose(y, expected, atol=1e-12)
        np.testing.assert_allclose(pull(dy)[0], reference(dy)[0], atol=1e-12)
    assert pointwise.gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


def test_attention_keeps_its_precision():
    q = draw(1, 6, 1, 8).astype(jnp.bfloat16)
    y = attention.attention(q, q, q)
    assert y.dtype == jnp.bfloat16 and attention.maps(q, q).dtype == jnp.float32
    np.testing.assert_allclose(np.float32(y), reference(q, q, q, np.zeros((1, 1, 6, 6))), atol=0.03)


def test_wrong_implementations_are_explained():
    q = np.zeros((1, 4, 1, 8), np.float32)
    with pytest.raises(UserError, match="'flash'; choose one of auto, matmul, xla, cudnn"):
        attention.attention(q, q, q, implementation="flash")
    if jax.default_backend() == "cpu":
        with pytest.raises(UserError, match="expected an NVIDIA GPU"):
            attention.attention(q, q, q, implementation="cudnn")
