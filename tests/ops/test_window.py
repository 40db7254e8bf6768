"""Sliding windows agree with MONAI and with the whole volume."""

import json

import jax
import numpy as np
import pytest

from jaxvol.ops import window
from tests import FIXTURES

GOLDEN = FIXTURES / "sliding_window.npz"
OPEN = (False, False, False)


@jax.jit
def conv(x, kernel, bias):
    """3x3x3 convolution of [D, H, W, C] with zero padding; torch's kernel [K, C, 3, 3, 3]."""
    y = jax.lax.conv_general_dilated(
        x[None],
        kernel,
        (1, 1, 1),
        "SAME",
        dimension_numbers=("NDHWC", "OIDHW", "NDHWC"),
        precision="highest",
    )
    return y[0] + bias


def monai_predictor(golden):
    def function(x):
        d, h, w = (np.linspace(-1, 1, n, dtype=np.float32) for n in x.shape[:3])
        ramp = 0.5 * d[:, None, None] - 0.3 * h[None, :, None] + 0.2 * w
        return (
            np.tanh(conv(x, golden["param/conv.weight"], golden["param/conv.bias"]))
            + ramp[..., None]
        )

    return function


def test_matches_monai():
    golden = np.load(GOLDEN, allow_pickle=False)
    x = golden["input/x"][0].transpose(1, 2, 3, 0)
    for i, run in enumerate(json.loads(str(golden["config"]))["runs"]):
        roi, weights = run["roi_size"], golden[f"output/importance_map_{i}"]
        if run["mode"] == "gaussian":
            np.testing.assert_allclose(window.gaussian(roi), weights, rtol=1e-5)
        y = window.sliding(
            monai_predictor(golden),
            x,
            roi,
            run["overlap"],
            weights=None if run["mode"] == "gaussian" else weights,
        )
        expected = golden[f"output/y_{i}"][0].transpose(1, 2, 3, 0)
        np.testing.assert_allclose(y[..., : run["output_channels"]], expected, atol=1e-5)


def test_a_pointwise_function_is_exact_and_a_local_one_in_the_interior():
    x = np.random.default_rng(0).normal(size=(13, 17, 11, 2)).astype(np.float32)
    for wrap in (OPEN, (True, False, True)):
        # the last is larger than the volume on two axes
        for tile in ((6, 8, 5), (13, 4, 11), (20, 7, 30)):
            np.testing.assert_array_equal(window.sliding(np.sin, x, tile, 0.4, wrap), np.sin(x))
    kernel = np.random.default_rng(1).normal(size=(1, 2, 3, 3, 3)).astype(np.float32)

    def local(volume):
        return conv(volume, kernel, 0.5)

    # the outermost voxels of a tile see its padding
    trusted = np.pad(np.ones((6, 6, 6)), 1, constant_values=1e-12)
    tiled = window.sliding(local, x, (8, 8, 8), 0.5, weights=trusted)
    np.testing.assert_allclose(tiled[1:-1, 1:-1, 1:-1], local(x)[1:-1, 1:-1, 1:-1], atol=1e-5)


def test_a_tile_larger_than_the_volume_pads_both_sides():
    x = np.arange(1.0, 5.0, dtype=np.float32).reshape(4, 1, 1, 1)
    seen = []

    def spy(tile):
        seen.append(tile[:, 0, 0, 0].tolist())
        return tile

    np.testing.assert_array_equal(window.sliding(spy, x, (7, 1, 1), 0.5), x)
    np.testing.assert_array_equal(window.sliding(spy, x, (7, 1, 1), 0.5, (True, False, False)), x)
    # as MONAI: the odd voxel goes behind
    assert seen == [[0, 1, 2, 3, 4, 0, 0], [4, 1, 2, 3, 4, 1, 2]]


def test_periodic_tiles_commute_with_shifts_by_their_stride():
    x = np.random.default_rng(0).normal(size=(16, 12, 8, 1)).astype(np.float32)
    ramp = np.linspace(0, 1, 8, dtype=np.float32)[:, None, None, None]

    def edgy(volume):
        # depends on where the tile lies
        return np.cumsum(volume, axis=0) * ramp + np.cumsum(volume, axis=1)

    def tiled(v):
        return window.sliding(edgy, v, (8, 6, 8), 0.5, (True, True, False))

    np.testing.assert_allclose(
        tiled(np.roll(x, (4, -3), (0, 1))), np.roll(tiled(x), (4, -3), (0, 1)), atol=1e-5
    )
    open_ends = window.sliding(edgy, np.roll(x, 4, 0), (8, 6, 8), 0.5)
    assert np.abs(open_ends - np.roll(window.sliding(edgy, x, (8, 6, 8), 0.5), 4, 0)).max() > 0.1


@pytest.mark.parametrize(
    "size, tile, overlap", [(40, 16, 0.5), (37, 16, 0.25), (9, 3, 0.0), (7, 5, 0.9), (5, 8, 0.5)]
)
def test_tiles_cover_and_spread_evenly(size, tile, overlap):
    first = window.starts(size, tile, overlap)
    covered = np.zeros(max(size, tile), bool)
    for s in first:
        covered[s : s + tile] = True
    assert (
        covered.all() and first == sorted(set(first)) and (tile > size or first[-1] == size - tile)
    )
    ring = window.starts(size, tile, overlap, wrap=True)
    gaps = np.diff([*ring, size]) if len(ring) > 1 else np.array([size])
    assert np.ptp(gaps) <= 1 and gaps.max() <= max(int(tile * (1 - overlap)), 1) + (
        0 if tile < size else size
    )
