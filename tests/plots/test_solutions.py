"""Pictures of solutions: what they show is what they were given, for every number of coordinates;
the table over problems.
"""

import argparse
import json

import numpy as np
import pytest
from PIL import Image

from jaxvol.evaluation import sweep_points
from jaxvol.plots import figures, solutions
from launch.studies import pinn_table

GRIDS = {("x",): (11,), ("x", "t"): (9, 5), ("x", "y", "z"): (6, 5, 4), ("x", "y", "t"): (6, 5, 3)}


def field(coordinates, residual=True, fields=("u",)):
    """Exact = 10 first + the other coordinates, network = exact + 0.5, as evaluation hands them
    over: axes of length one first.
    """
    axes = np.meshgrid(
        *[np.linspace(0, i + 1, n) for i, n in enumerate(GRIDS[coordinates])], indexing="ij"
    )
    x = np.stack(axes, -1)
    exact = np.stack([10 * x[..., 0] + x[..., 1:].sum(-1)] * len(fields), -1)
    grow = lambda v: v.reshape((1,) * (3 - len(coordinates)) + v.shape)
    return solutions.Solution(
        grow(x),
        grow(exact),
        grow(exact + 0.5),
        grow(exact) * 0 + 1 if residual else None,
        coordinates,
        fields,
    )


@pytest.mark.parametrize("coordinates", GRIDS)
def test_every_number_of_coordinates_is_drawn_and_animated_where_there_is_time(
    coordinates, tmp_path
):
    figures.save(solutions.draw(field(coordinates), "title"), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] > 500
    moves = solutions.animate(field(coordinates), tmp_path / "a.gif")
    assert moves == ("t" in coordinates)
    if moves:
        assert Image.open(tmp_path / "a.gif").n_frames == GRIDS[coordinates][-1]


def test_pictures_have_time_to_the_right_and_space_upwards():
    figure = solutions.draw(field(("x", "t")))
    exact, network, error, residual = [panel for panel in figure.axes if panel.images]
    assert (
        exact.get_ylabel() == "x"
        and exact.get_xlabel() == "t"
        and exact.images[0].get_extent() == [0, 2, 0, 1]
    )
    pixels = np.asarray(exact.images[0].get_array())
    # origin below, x up, t right
    np.testing.assert_allclose((pixels[0, 0], pixels[-1, 0], pixels[0, -1]), (0, 10, 2))
    np.testing.assert_allclose(np.asarray(error.images[0].get_array()), 0.5)
    assert (
        exact.images[0].get_clim() == network.images[0].get_clim()
        and residual.get_title() == "residual of the equation"
    )
    plane = solutions.draw(field(("x", "y", "z"), residual=False))
    first = np.asarray(plane.axes[0].images[0].get_array())
    # x right, y up
    np.testing.assert_allclose((first[0, -1] - first[0, 0], first[-1, 0] - first[0, 0]), (10, 2))
    assert len([panel for panel in plane.axes if panel.images]) == 3


@pytest.mark.parametrize("coordinates", [("x",), ("x", "y", "z")])
def test_what_nobody_knows_is_not_drawn(coordinates, tmp_path):
    measured = field(coordinates)._replace(exact=None, remainder="Laplacian (penalty)")
    figure = solutions.draw(measured)
    if len(coordinates) == 1:
        assert [panel.get_ylabel() for panel in figure.axes] == ["u", "residual"] and len(
            figure.axes[0].lines
        ) == 1
    else:
        assert [panel.get_title() for panel in figure.axes if panel.images] == [
            "u, network",
            "Laplacian (penalty)",
        ]
    assert not solutions.animate(field(("x", "t"))._replace(exact=None), tmp_path / "a.gif")


def test_the_table_has_medians_ranges_and_blanks(tmp_path):
    args = argparse.Namespace(only=["poisson1d", "diffusion"], models=["MLP", "cPIKAN"], seeds=2)
    order = pinn_table.jobs(args)
    assert (
        order[0] == ("diffusion", "cPIKAN", 0)
        and order[-1] == ("diffusion", "MLP", 1)
        and len(order) == 6
    )
    results = {
        ("diffusion", "cPIKAN"): [
            {"relative_l2": v, "seconds": 10.0 * v, "parameters": "1,824"} for v in (3.0, 1.0, 2.0)
        ],
        ("inverse", "MLP"): [
            {"relative_l2": 0.1, "seconds": 5.0, "parameters": "1,801", "rate_error": 0.25}
        ],
    }
    rows = pinn_table.table(results).splitlines()
    assert len(rows) == 4 and "2.0e+00 (1.0e+00 to 3.0e+00, 3 seeds) |  |  | 20 / - / -" in rows[2]
    assert "1.0e-01, rate off by 25.0%" in rows[3]
    figures.save(pinn_table.draw(results), tmp_path / "table.png")


def test_a_point_that_is_not_finished_has_no_score(tmp_path):
    one = pinn_table.point(("diffusion", "cPIKAN, unscaled", 3), tmp_path, [])
    assert (
        one.config.seed == 3
        and one.config.model.scaling == "none"
        and pinn_table.score(one) is None
    )
    (one.workdir / "evaluation").mkdir(parents=True)
    (one.workdir / "evaluation" / "metrics.json").write_text(
        json.dumps({"model": {"relative_l2": 1.0}, "parameters": "net 5"})
    )
    (one.workdir / "seconds.json").write_text("1.5")
    assert pinn_table.score(one) is None and not sweep_points.is_done(one)
