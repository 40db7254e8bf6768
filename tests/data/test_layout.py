"""Where the axes lie in a stored array: told from its shape, as moving them by hand shows."""

import numpy as np
import pytest

from jaxvol.data import layout

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "shape, ndim, channel_axis, stacked",
    [
        ((5, 2, 3, 4), 3, -1, True),
        ((5, 2, 3, 4, 6), 3, -1, True),
        ((5, 6, 2, 3, 4), 3, 0, True),
        ((2, 3, 4), 3, 0, False),
        ((5, 3, 4), 2, -1, True),
        ((5, 1, 6, 3, 4), 2, 0, True),
        ((1, 1, 3, 4), 2, 0, False),
    ],
)
def test_axes_agree_with_moving_them_by_hand(shape, ndim, channel_axis, stacked):
    array = RNG.normal(size=shape)
    axes = layout.axes(shape, ndim, channel_axis, stacked)
    one = array[-1] if stacked else array
    while one.ndim > ndim + 1:
        one = one[0]
    if one.ndim == ndim:
        by_hand = one[..., None]
    else:
        by_hand = one if channel_axis == -1 else np.moveaxis(one, 0, -1)
    by_hand = by_hand[None] if ndim == 2 else by_hand
    piece = tuple(slice(0, n) for n in axes.shape)
    last = array[axes.index(axes.examples - 1, piece)]
    np.testing.assert_array_equal(axes.arrange(last), by_hand)
    assert axes.examples == (5 if stacked else 1)
    assert by_hand.shape == (*axes.shape, axes.channels)
