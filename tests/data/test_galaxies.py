"""Galaxies: two independent halves of one catalogue, the same from both kinds of file."""

import numpy as np

from jaxvol.data import galaxies
from tests.data.toys import config_of, error

RNG = np.random.default_rng(0)


def fastfood(path, positions, box_size=100.0):
    """A Corrfunc catalogue."""
    records = [
        np.array([0, len(positions), 0, 0, 0], "<i4"),
        np.full(9, box_size, "<f4"),
        np.zeros(1, "<f4"),
        *positions.T.astype("<f4"),
    ]
    path.write_bytes(
        b"".join(
            np.int32(r.nbytes).tobytes() + r.tobytes() + np.int32(r.nbytes).tobytes()
            for r in records
        )
    )
    return str(path)


def test_both_forms_of_a_catalogue_give_the_same_halves(tmp_path):
    positions = RNG.uniform(0, 100, (5000, 3)).astype(np.float32)
    by_hand = np.histogramdd(
        positions.astype(float), bins=np.linspace(0, 100, 17)[None].repeat(3, 0)
    )[0].astype(np.uint16)
    np.savez(tmp_path / "c.npz", counts=by_hand, boxsize=100.0)
    settings = {"grid": 16, "crop": (2, 4, 4)}
    sources = [
        galaxies.source(config_of("galaxies", path=path, **settings))
        for path in (str(tmp_path / "c.npz"), fastfood(tmp_path / "c.ff", positions))
    ]
    assert sources[0].hash == sources[1].hash and sources[0].spec.spacing == (6.25,) * 3
    other = galaxies.source(
        config_of("galaxies", path=str(tmp_path / "c.npz"), thinning_seed=1, **settings)
    )
    assert other.hash != sources[0].hash
    one, two = (s.read("test", 0, None) for s in sources)
    np.testing.assert_array_equal(one["input"], two["input"])
    first, second = galaxies.thin(by_hand, 0.5, 0)
    np.testing.assert_array_equal(first + second, by_hand)
    assert abs(first.sum() - 2500) < 5 * np.sqrt(1250)
    assert (first >= 0).all() and (second >= 0).all()
    # Poisson thinned is Poisson, and the halves are independent: their correlation is noise
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / np.sqrt(16**3)


def test_bad_catalogues(tmp_path):
    assert "corrfunc" in error(galaxies.source, config_of("galaxies"))
    assert "is no file" in error(
        galaxies.source, config_of("galaxies", path=str(tmp_path / "no.ff"))
    )
    path = fastfood(tmp_path / "c.ff", RNG.uniform(0, 100, (50, 3)))
    data = (tmp_path / "c.ff").read_bytes()
    for broken, expected in (
        (data[:-3], "truncated"),
        (data[:28], "found Fortran records of [20]"),
        (b"", "found Fortran records of []"),
        (b"\xff" + data[1:], "declares 255 bytes"),
    ):
        (tmp_path / "c.ff").write_bytes(broken)
        assert expected in error(galaxies.source, config_of("galaxies", path=path))
    np.savez(tmp_path / "c.npz", counts=np.zeros((4, 4, 4)), boxsize=100.0)
    config = config_of("galaxies", path=str(tmp_path / "c.npz"))
    assert "found shape (4, 4, 4); expected (128, 128, 128) (data.grid=128)" in error(
        galaxies.source, config
    )
    config.data.grid = 4
    assert "expected whole numbers" in error(galaxies.source, config)
