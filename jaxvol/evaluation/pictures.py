"""Pictures of a run: slices of an example, solutions over their coordinates, spectra, curves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jaxvol import pdes
from jaxvol.data import measured
from jaxvol.evaluation import tables
from jaxvol.ops import laplacian, normalise
from jaxvol.plots import curves, figures, solutions, spectra, volumes
from jaxvol.types import Dataset, Extra, Field, Params, Parts, Spec, Task

# an example as it is drawn: {input, target, prediction}, [D, H, W, C] in physical units
Fields = Mapping[str, np.ndarray]


def example(
    task: Task,
    dataset: Dataset,
    params: Params,
    extra: Extra,
    put: Callable,
    rows: slice,
    size: int,
    split: str,
) -> dict[str, np.ndarray]:
    """{input, target, prediction} of the first example of a split, [D, H, W, C] in
    physical units.
    """
    batch = put(next(dataset.batches(split, size, rows, 1)))
    # each of several processes gets all of it
    everywhere = NamedSharding(batch["input"].sharding.mesh, PartitionSpec())

    @functools.partial(jax.jit, out_shardings=everywhere)
    def fields(params: Params, extra: Extra, batch: dict) -> dict:
        return {
            "input": batch["input"],
            "target": batch["target"],
            "prediction": task.predict(params, extra, batch),
        }

    fitted = {name: field.normaliser for name, field in dataset.spec.fields.items()}
    return {
        name: np.asarray(
            normalise.inverse(
                fitted["input" if name == "input" else "target"], jax.device_get(x)[0]
            )
        )
        for name, x in fields(params, extra, batch).items()
    }


def example_figure(
    parts: Parts, params: Params, extra: Extra, put: Callable, rows: slice, size: int
) -> dict[str, Figure]:
    """The picture that training writes every few evaluations; none without a target to show."""
    if "paired" not in parts.task.provides:
        return {}
    fields = example(parts.task, parts.dataset, params, extra, put, rows, size, "val")
    title = f"validation example {parts.dataset.names('val')[0]}"
    return {"slices": slices(parts.dataset.spec, fields, title)}


def label(spec: Spec, name: str) -> str:
    """What the values of a field are, for axes: "density (mean matter density)"."""
    field = spec.fields[name]
    quantity = field.channels[0].replace("_", " ")
    return f"{quantity} ({field.unit})" if field.unit else quantity


def slices(spec: Spec, fields: Fields, title: str) -> Figure:
    """Mid-depth slices of the first channel of `example`'s fields; the fields over their
    coordinates where those are the input.
    """
    if spec.fields["input"].kind == "coordinates":
        return solutions.draw(solution(spec, fields), title)
    return volumes.slices(
        *(fields[name][..., 0] for name in ("input", "target", "prediction")),
        spacing=spec.spacing,
        length_unit=spec.unit,
        title=title,
        units={name: label(spec, name) for name in ("input", "target")},
        input_scale=curved(spec.fields["input"]),
    )


def curved(field: Field) -> Callable[[np.ndarray], np.ndarray] | None:
    """The normaliser of a field's first channel, values of any shape -> the same shape, where it is
    no straight line (log10, log1p, asinh): what is drawn in proportion to such values is all dark.
    """
    if not any(step["name"] in ("log10", "log1p", "asinh") for step in field.normaliser):
        return None
    channels = len(field.channels)

    def place(values: np.ndarray) -> np.ndarray:
        every = np.repeat(np.asarray(values, np.float32)[..., None], channels, -1)
        return np.asarray(normalise.forward(field.normaliser, every))[..., 0]

    return place


def solution(
    spec: Spec, fields: Fields, residual: np.ndarray | None = None, remainder: str = ""
) -> solutions.Solution:
    """`example`'s fields over their coordinates; a target that is NaN everywhere is one that nobody
    knows.

    residual: what is left of the equation there, and `remainder` what that is called.
    """
    exact = None if np.isnan(fields["target"]).all() else fields["target"]
    return solutions.Solution(
        fields["input"],
        exact,
        fields["prediction"],
        residual,
        spec.fields["input"].channels,
        spec.fields["target"].channels,
        remainder,
    )


def residual(
    problem: pdes.Problem, spec: Spec, task: Task, params: Params, extra: Extra, x: np.ndarray
) -> np.ndarray:
    """What is left of the equation at the points x [.., d], [.., equations]."""
    scale = spec.fields["input"].normaliser
    unknown = params["net"]["unknown"] if problem.unknown else {}

    @jax.jit
    def equation(points):
        f = lambda p: task.predict(params, extra, {"input": normalise.forward(scale, p)})
        return problem.residual(
            points, *laplacian.second_order(f, problem.weights, "diagonal")(points), unknown
        )

    points = x.reshape(-1, x.shape[-1])
    return np.asarray(equation(points)).reshape(*x.shape[:-1], -1)


def draw_solution(
    folder: Path,
    workdir: Path,
    config: ConfigDict,
    spec: Spec,
    fields: Fields,
    predictor: tuple[Task, Params, Extra],
) -> None:
    """The solution of an equation next to the exact one, its motion where there is time, and how
    the errors fell: solution.png, solution.gif, curves.png.
    """
    title = f"{config.data.problem.name.replace('_', ' ')}, {tables.pretty(config.model.name)}"
    problem = measured.problem(config.data.problem)
    left = residual(problem, spec, *predictor, fields["input"])
    drawn = solution(spec, fields, left, problem.remainder)
    figures.save(solutions.draw(drawn, title), folder / "solution.png")
    solutions.animate(drawn, folder / "solution.gif", title)
    history = solutions.history(curves.read(workdir / "metrics.csv"))
    figures.save(history, folder / "curves.png")


def draw_volumes(
    folder: Path,
    workdir: Path,
    config: ConfigDict,
    spec: Spec,
    fields: Fields,
    scores: Mapping[str, tuple],
    title: str,
) -> None:
    """Slices, spectra, PDF and loss curves as PNG files."""
    figures.save(slices(spec, fields, title), folder / "slices.png")
    values = {name: fields[name][..., 0] for name in ("target", "prediction")}
    figures.save(volumes.pdf(values, label(spec, "target")), folder / "pdf.png")
    series = {
        tables.label(name, config.model.name): metrics["spectra"]
        for name, (metrics, _) in scores.items()
        if "spectra" in metrics
    }
    if series:
        figures.save(spectra.draw(series, spec.unit), folder / "spectra.png")
    if (workdir / "metrics.csv").exists():
        rows = curves.read(workdir / "metrics.csv")
        figures.save(curves.draw(rows, config.checkpoint.best_metric), folder / "curves.png")
