"""Pictures of volumes, spectra and trainings show the numbers that they were given."""

import numpy as np
import pytest

from jaxvol.evaluation import pictures
from jaxvol.plots import comparison, curves, figures, solutions, spectra, volumes
from jaxvol.types import Field, Spec


def test_slices_show_the_middle_with_shared_and_symmetric_scales(tmp_path):
    volume = np.arange(5 * 4 * 6, dtype=np.float32).reshape(5, 4, 6)
    figure = volumes.slices(
        volume,
        volume,
        volume + np.linspace(-1, 2, 6),
        (2.0, 2.0, 3.0),
        "Mpc/h",
        {"target": "1 + δ"},
    )
    images = [axes.images[0] for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(images[1].get_array(), volume[2])
    assert images[1].get_clim() == images[2].get_clim()
    low, high = images[3].get_clim()
    assert low == -high and high == pytest.approx(2.0, rel=0.02)
    assert images[0].get_extent() == [0, 18.0, 8.0, 0]
    assert figure.axes[0].get_xlabel() == "W  [Mpc/h]"
    data = figures.save(figure, tmp_path / "new" / "slices.png").read_bytes()
    assert data.startswith(b"\x89PNG") and [p.name for p in (tmp_path / "new").iterdir()] == [
        "slices.png"
    ]


def test_spectra_pdf_and_curves_hold_their_numbers(tmp_path):
    k = np.array([0.1, 0.2, 0.4])
    some = {"k": k, "T": k, "r": 1 - k, "modes": [6, 12, 30], "T_std": 0.1 * k, "r_std": 0.1 * k}
    # two channels: the first is drawn
    tapered = {**some, "window": "hann", "r": np.stack([1 - k, k], 1)}
    figure = spectra.draw({"FNO": tapered, "mean": {**some, "r": [np.nan] * 3}})
    assert "hann" in figure.get_suptitle()
    # the mean has no spectrum
    assert [line.get_label() for line in figure.axes[0].get_lines()][:1] == ["FNO"]
    np.testing.assert_array_equal(figure.axes[1].get_lines()[0].get_ydata(), 1 - k)
    values = np.random.default_rng(0).uniform(0, 2, 200_000)
    line = volumes.pdf({"target": values}).axes[0].get_lines()[0]
    # a density, not a count
    np.testing.assert_allclose(line.get_ydata(), 0.5, rtol=0.1)
    (tmp_path / "metrics.csv").write_text(
        "step,tag,value\n0,train/net/mse,1.0\n10,train/net/mse,0.5\n0,val/vrmse,1.1\n10,val/v"
    )
    logged = curves.read(tmp_path / "metrics.csv")
    np.testing.assert_array_equal(logged["train/net/mse"], ([0, 10], [1.0, 0.5]))
    assert figures.image(curves.draw(logged)).shape[2] == 3


def test_curves_of_a_run_stand_in_the_panel_of_their_kind():
    logged = {
        tag: (np.array([0.0, 1.0]), np.array([2.0, last]))
        for tag, last in (
            ("train/net/mse", 1.0),
            ("train/net/lr", 0.1),
            ("train/net/grad_norm", 3.0),
            ("val/rmse", 0.5),
            ("val/vrmse", -0.5),
        )
    }
    figure = curves.draw(logged)
    lines = {panel.get_title(loc="left"): panel.get_lines() for panel in figure.axes}
    last = {head: [line.get_ydata()[-1] for line in drawn] for head, drawn in lines.items()}
    assert last == {
        "training loss": [1.0],
        "validation vrmse": [-0.5],
        "learning rate": [0.1],
        "norms of gradient and update": [3.0],
    }
    assert [panel.get_yscale() for panel in figure.axes] == ["log", "linear", "linear", "log"]
    del logged["val/vrmse"], logged["train/net/lr"]
    figure = curves.draw(logged)
    assert figure.axes[1].get_title(loc="left") == "validation rmse"  # what there is
    assert [text.get_text() for text in figure.axes[2].texts] == ["not logged"]


def test_bars_have_the_lengths_and_the_numbers_of_the_models():
    values = {"FNO": {"vrmse": 0.25}, "mean": {"vrmse": 1.0}, "broken": {"vrmse": np.nan}}
    (panel,) = comparison.bars(values, {"FNO": {"vrmse": 0.125}}, ["vrmse"]).axes
    assert [bar.get_width() for bar in panel.patches] == [0.25, 1.0, 0.0]
    assert [text.get_text() for text in panel.texts] == ["0.25", "1", "-"]


HOSTILE = "a$b_{$c^ \x1b[31m\u202e<script>" + "x" * 250


def words(figure):
    """Every text of a figure, as matplotlib draws it."""
    figures.image(figure)
    return [t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_names_from_outside_are_drawn_as_they_stand_and_never_as_mathematics():
    volume = np.random.default_rng(0).normal(size=(4, 4, 4))
    units = {"input": HOSTILE, "target": HOSTILE}
    x = np.linspace(0, 1, 5)[:, None]
    k = np.array([0.1, 0.2, 0.4])
    spectrum = {"k": k, "T": k, "r": k, "modes": [6, 12, 30], "P_pred": k, "P_true": k}
    solution = solutions.Solution(x, x, x, x, (HOSTILE,), (HOSTILE,))
    tags = {f"train/{HOSTILE}/a$b$": (np.arange(2.0), np.ones(2))}
    for figure in (
        volumes.slices(volume, volume, volume, length_unit=HOSTILE, units=units, title=HOSTILE),
        volumes.pdf({"target": volume, HOSTILE: volume}, HOSTILE),
        solutions.draw(solution, HOSTILE),
        solutions.history({**tags, "train/net/a$b_{$": (np.arange(2.0), np.ones(2))}),
        spectra.draw({HOSTILE: spectrum}, HOSTILE),
        comparison.bars({HOSTILE: {HOSTILE: 1.0}}, {}, [HOSTILE]),
        curves.draw({**tags, f"val/{HOSTILE}": (np.arange(2.0), np.ones(2))}, HOSTILE),
    ):
        drawn = words(figure)  # raises where matplotlib reads mathematics
        assert any(r"\$" in text for text in drawn)
        assert not any("\x1b" in text or "\u202e" in text or len(text) > 300 for text in drawn)


def test_an_input_that_is_normalised_by_a_logarithm_is_drawn_on_that_scale():
    volume = np.exp(np.random.default_rng(0).normal(0, 2, size=(4, 16, 16))).astype(np.float32)
    steps = (
        {"name": "log10", "floor": [1e-4]},
        {"name": "standardise", "mean": [1.0], "std": [2.0]},
    )
    fields = dict.fromkeys(("input", "target", "prediction"), volume[..., None])

    def drawn(normaliser):
        spec = Spec(
            {"input": Field(("n",), normaliser=normaliser), "target": Field(("m",))},
            (4, 16, 16),
            (1.0,) * 3,
        )
        figure = pictures.slices(spec, fields, "")
        figures.image(figure)
        return figure

    figure = drawn(steps)
    (image,) = figure.axes[0].images
    np.testing.assert_allclose(image.get_array(), (np.log10(volume[2]) - 1) / 2, rtol=1e-5)
    bar = next(a for a in figure.axes if a.get_ylabel() == "n")
    labels = {float(t.get_text()): t.get_position()[1] for t in bar.get_yticklabels()}
    assert len(labels) >= 3  # the bar bears values, at the places that they have
    for value, place in labels.items():
        assert place == pytest.approx((np.log10(value) - 1) / 2, abs=1e-5)
    # half of the picture lies in each half of the scale; in proportion nearly all of it is dark
    share = lambda image: np.mean(image.get_array() > np.mean(image.get_clim()))
    assert 0.3 < share(image) < 0.7 and share(drawn(steps[1:]).axes[0].images[0]) < 0.1


def test_shares_have_an_axis_of_their_own_and_legends_do_not_lie_on_titles():
    names = ("real_adversarial_term_of_a_long_name", "another_long_name", "loss", "mse")
    logged = {
        tag: (np.arange(3.0), np.array([0.5, 0.2, 0.1]))
        for tag in (
            *(f"train/net/{name}" for name in names),
            "train/net/clipped_fraction",
            "train/disc/accuracy_real",
            "train/net/weight_pde",
            "train/net/lr",
            "val/vrmse",
        )
    }
    for chosen in (logged, {k: v for k, v in logged.items() if "another" not in k}):
        figure = curves.draw(chosen)
        figures.image(figure)
        panels = {panel.get_title(loc="left"): panel for panel in figure.axes}
        shares = [line.get_label() for line in panels["shares"].get_lines()]
        assert shares == ["disc/accuracy_real", "net/clipped_fraction"]
        losses = {line.get_label() for line in panels["training loss"].get_lines()}
        assert losses == {
            tag.removeprefix("train/") for tag in chosen if tag.split("/")[-1] in names
        }
        for panel in panels.values():
            legend = panel.get_legend()
            if legend:
                title = panel._left_title.get_window_extent()
                assert not legend.get_window_extent().overlaps(title)
