"""Do input and target belong together?  Known pairs, shuffled, turned, moved and copied."""

import numpy as np
import pytest

from jaxvol.ops import alignment


def pairs(n=8, size=16, seed=0, noise=1.0):
    """Smooth fields and a nonlinear, noisy view of them."""
    white = np.random.default_rng(seed).normal(size=(2, n, size, size, size))
    k = np.sqrt(
        sum(i**2 for i in np.meshgrid(*[np.fft.fftfreq(size, 1 / size)] * 3, indexing="ij"))
    )
    y = np.fft.ifftn(
        np.fft.fftn(white[0], axes=(1, 2, 3)) * np.exp(-((k / 3) ** 2) / 2), axes=(1, 2, 3)
    ).real
    y /= y.std()
    return y + 0.3 * y**2 + noise * white[1], y


def test_pairing_sees_shuffled_examples():
    x, y = pairs()
    assert alignment.pairing(x, y) > 10 and alignment.pairing(x, -y) > 10
    assert alignment.pairing(x**2, y**2) > 10
    assert alignment.pairing(x, np.roll(y, 1, 0)) < 3


@pytest.mark.parametrize(
    "change", [lambda v: v[:, ::-1], lambda v: v.swapaxes(1, 3), lambda v: v[:, :, ::-1, ::-1]]
)
def test_orientation_sees_mirrors_and_turns(change):
    x, y = pairs()
    assert alignment.orientation(x, y) > 3
    assert alignment.orientation(x, change(y)) < 0


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("lag", [(0, 0, 0), (1, 0, 0), (0, -1, 2)])
def test_offset_is_measured_in_voxels(sign, lag):
    x, y = pairs(noise=0.5)
    np.testing.assert_allclose(
        alignment.offset(x, sign * np.roll(y, lag, (1, 2, 3))), lag, atol=0.1
    )


def test_coherence_tells_whether_there_is_anything_to_measure():
    x, y = pairs()
    assert alignment.coherence(x, y) > 0.7 and alignment.coherence(x, pairs(seed=1)[1]) < 0.3


def test_overlap_finds_shared_voxels_wherever_they_lie():
    rng = np.random.default_rng(0)
    box, other = (rng.normal(size=(1, 40, 16, 16)) for _ in range(2))
    train = [box[:, :24]]
    assert alignment.overlap(train, box[:, 24:]) == 0
    assert alignment.overlap(train, other) == 0
    half = alignment.overlap(train, box[:, 12:36])
    assert 0.3 < half < 0.6
    # turned copies are copies
    assert alignment.overlap(train, box[:, :24, ::-1, ::-1].copy()) == 1
    assert alignment.overlap([np.zeros((1, 16, 16, 16))], np.zeros((1, 16, 16, 16))) == 0
