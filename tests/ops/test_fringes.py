"""Fringe images: rendering and phases by hand, and unwrapping that is exact where it can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvol.ops import fringes, surfaces
from jaxvol.types import UserError

WAVES = (5.0, 5.5, 6.05, 6.655)
BACKGROUND, MODULATION, CENTRE = 128.0, 100.0, 12.0
# combinations of wavelengths, as in configs/interferometry.py
LONG = ((1, -2, 1, 0), (0, 1, -2, 1))
SHORT = ((1, 0, -1, 0), (0, 1, 0, -1), (1, 0, 0, -1))


def points(n):
    axis = np.linspace(-1, 1, n)
    return np.stack(np.meshgrid(axis, axis), -1)


def wrapped(angle):
    return (angle + np.pi) % (2 * np.pi) - np.pi


@pytest.mark.parametrize("module, tolerance", [(np, 1e-9), (jnp, 2e-5)])
def test_phases_are_those_that_were_rendered(module, tolerance):
    h = module.asarray(
        np.linspace(-4, 27, 200).reshape(10, 20), module.float64 if module is np else module.float32
    )
    images = fringes.render(h, WAVES, BACKGROUND, MODULATION)
    assert images.shape == (10, 20, 16)
    assert float(images[3, 4, 9]) == pytest.approx(
        128 + 100 * np.cos(4 * np.pi * float(h[3, 4]) / 6.05 + np.pi / 2), abs=0.01
    )
    gap = wrapped(
        np.asarray(fringes.phases(images), np.float64)
        - 4 * np.pi * np.asarray(h, np.float64)[..., None] / np.array(WAVES)
    )
    assert np.abs(gap).max() < tolerance
    # neither background nor modulation is needed
    other = fringes.phases(0.4 * images + 11)
    assert np.abs(wrapped(np.asarray(other - fringes.phases(images), np.float64))).max() < tolerance


def test_ranges_of_beats():
    ranges = [
        fringes.reach(WAVES, n)
        for n in ((1, -1, 0, 0), (0, 1, -1, 0), (0, 0, 1, -1), (1, -2, 1, 0), (1, 0, 0, 0))
    ]
    np.testing.assert_allclose(ranges, [27.5, 30.25, 33.275, 302.5, 2.5])
    chain = [fringes.reach(WAVES, n) for n in fringes.beats(WAVES)]
    assert (
        chain == sorted(chain, reverse=True)
        and chain[0] == pytest.approx(33.275)
        and chain[-1] > 6.655 / 2
    )
    with pytest.raises(UserError, match="has 2 entries, but there are 4 wavelengths"):
        fringes.equivalent(WAVES, (1, -1))
    with pytest.raises(UserError, match="cancel"):
        fringes.equivalent((5.0, 10.0), (1, -2))


def test_unwrapping_is_exact_without_noise_and_to_quantisation_with_eight_bits():
    h = surfaces.published(points(96))
    assert h.min() > CENTRE - 33.275 / 2 and h.max() < CENTRE + 33.275 / 2
    assert h[(points(96) == -1).all(-1)][0] == pytest.approx(
        -7.5 + 10 * np.hypot(0.5, 1.4) + 15 * np.exp(-(1.44 + 0.49) / 0.2)
    )
    np.testing.assert_allclose(
        fringes.unwrap(fringes.render(h, WAVES, BACKGROUND, MODULATION), WAVES, CENTRE),
        h,
        atol=1e-9,
    )
    camera = fringes.expose(np.random.default_rng(0), h, WAVES, BACKGROUND, MODULATION, 0.0, 8)
    np.testing.assert_array_equal(camera, np.round(camera))
    # half a grey level in each of the four images
    worst = 0.5 * np.sqrt(2) / MODULATION * 6.655 / (4 * np.pi)
    assert 1e-5 < np.abs(fringes.unwrap(camera, WAVES, CENTRE) - h).max() < worst
    under_jit = jax.jit(lambda i: fringes.unwrap(i, WAVES, CENTRE))(
        jnp.asarray(camera, jnp.float32)
    )
    np.testing.assert_allclose(under_jit, h, atol=worst)


def test_heights_a_whole_beat_apart_look_alike_and_the_centre_decides():
    """27.5 um are 11 fringes of 5 um and 10 of 5.5 um.

    Two wavelengths cannot tell them apart, four can, until 3327.5 um.
    """
    h = np.random.default_rng(0).uniform(CENTRE - 13, CENTRE + 13, (6, 7))
    two, images = WAVES[:2], fringes.render(h, WAVES, BACKGROUND, MODULATION)
    moved = fringes.render(h + 27.5, two, BACKGROUND, MODULATION)
    np.testing.assert_allclose(moved, images[..., :8], atol=1e-9)
    np.testing.assert_allclose(fringes.unwrap(moved, two, CENTRE), h, atol=1e-9)
    np.testing.assert_allclose(fringes.unwrap(moved, two, CENTRE + 27.5), h + 27.5, atol=1e-9)
    assert np.abs(fringes.render(h + 27.5, WAVES, BACKGROUND, MODULATION) - images).max() > 10
    np.testing.assert_allclose(
        fringes.render(h + 3327.5, WAVES, BACKGROUND, MODULATION), images, atol=1e-6
    )
    outside = fringes.unwrap(
        fringes.render(h + 33.275, WAVES, BACKGROUND, MODULATION), WAVES, CENTRE
    )
    # out of range: wrong by the whole range, give or take a fringe
    assert np.abs(outside - (h + 33.275)).min() > 30
    long = ((1, -2, 1, 0), *fringes.beats(WAVES))
    lifted = fringes.render(h + 100, WAVES, BACKGROUND, MODULATION)
    np.testing.assert_allclose(fringes.unwrap(lifted, WAVES, CENTRE, long), h + 100, atol=1e-9)


def test_noise_reaches_the_height_as_it_should():
    """sigma_h = sigma / (sqrt(2) b) / (4 pi) / sqrt(sum 1 / lambda^2): 0.016 um for 10 levels."""
    h = surfaces.published(points(96))
    found = fringes.unwrap(
        fringes.expose(np.random.default_rng(1), h, WAVES, BACKGROUND, MODULATION, 10.0, 0),
        WAVES,
        CENTRE,
    )
    expected = 10 / np.sqrt(2) / MODULATION / (4 * np.pi) / np.sqrt(np.sum(1 / np.square(WAVES)))
    assert np.std(found - h) == pytest.approx(expected, rel=0.03) and expected == pytest.approx(
        0.016, rel=0.01
    )
    plane = 3 * points(64)[..., 0] - points(64)[..., 1]
    np.testing.assert_allclose(fringes.smoothed(plane), plane, atol=1e-12)
    noise = np.random.default_rng(2).normal(size=(64, 64))
    np.testing.assert_allclose(jax.jit(fringes.smoothed)(noise), fringes.smoothed(noise), atol=1e-6)
    assert fringes.smoothed(noise)[2:-2, 2:-2].std() == pytest.approx(70 / 256, rel=0.05)


def test_the_stencil_is_exact_for_quadratics():
    x, y = np.meshgrid(np.arange(7.0), np.arange(5.0))
    np.testing.assert_allclose(
        fringes.stencil(3 * x**2 - 0.5 * y**2 + x * y - 2 * x + 1), np.full((3, 5), 5.0), atol=1e-12
    )


def test_compared_phases_are_the_images_loss_where_there_is_no_noise():
    rng = np.random.default_rng(0)
    h, other = rng.uniform(-3, 27, (2, 50))
    images = fringes.render(h, WAVES, BACKGROUND, MODULATION)

    def gap(height, match):
        return (
            fringes.modelled(height, WAVES, match, BACKGROUND, MODULATION)
            - fringes.compared(images, WAVES, match, MODULATION)
        ) ** 2

    ones = tuple(map(tuple, np.eye(4, dtype=int).tolist()))
    for match in ((), ones, LONG, SHORT):
        assert gap(h, match).max() < 1e-12
    expected = np.mean((fringes.render(other, WAVES, BACKGROUND, MODULATION) - images) ** 2, -1)
    np.testing.assert_allclose(gap(other, ()).sum(-1), expected)
    np.testing.assert_allclose(gap(other, ones).sum(-1), expected)
    # one valley as wide as the range; the images' has many
    steps = np.linspace(0, 27.5 / 2, 50)
    far = np.array([gap(h + s, ((1, -1, 0, 0),)).sum() for s in steps])
    assert (np.diff(far) > 0).all() and (np.diff([gap(h + s, ()).sum() for s in steps]) < 0).any()


def test_random_surfaces_stay_within_their_bounds():
    for seed in range(20):
        h = surfaces.smooth(np.random.default_rng(seed), points(32), -3.0, 25.0)
        assert -3 <= h.min() < h.max() <= 25 and np.ptp(h) > 0.39 * 28
