"""What is done with a run on disk: score a split next to the baselines, draw it, predict files."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from jaxvol import pdes
from jaxvol.config import components
from jaxvol.data import measured
from jaxvol.evaluation import loading, predict, report, tables, tta
from jaxvol.evaluation.evaluators import examples
from jaxvol.ops import flops, laplacian, normalise
from jaxvol.plots import figures, solutions
from jaxvol.training import assemble, sharding
from jaxvol.types import Dataset, Extra, Metrics, Params, Spec, Task


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
    def shown(params: Params, extra: Extra, batch: dict) -> dict:
        return {
            "input": batch["input"],
            "target": batch["target"],
            "prediction": task.predict(params, extra, batch),
        }

    values = shown(params, extra, batch)
    fitted = {name: field.normaliser for name, field in dataset.spec.fields.items()}
    return {
        name: np.asarray(
            normalise.inverse(
                fitted["input" if name == "input" else "target"], jax.device_get(x)[0]
            )
        )
        for name, x in values.items()
    }


def label(spec: Spec, name: str) -> str:
    """What the values of a field are, for axes: "density (mean matter density)"."""
    field = spec.fields[name]
    return (
        f"{field.channels[0].replace('_', ' ')} ({field.unit})"
        if field.unit
        else field.channels[0].replace("_", " ")
    )


def slices(spec: Spec, shown: dict[str, np.ndarray], title: str) -> Figure:
    """Mid-depth slices of the first channel of `example`'s fields; the fields over their
    coordinates where those are the input.
    """
    if spec.fields["input"].kind == "coordinates":
        return solutions.draw(solution(spec, shown), title)
    return figures.slices(
        *(shown[name][..., 0] for name in ("input", "target", "prediction")),
        spacing=spec.spacing,
        length_unit=spec.unit,
        title=title,
        units={name: label(spec, name) for name in ("input", "target")},
    )


def solution(
    spec: Spec,
    shown: dict[str, np.ndarray],
    residual: np.ndarray | None = None,
    remainder: str = "",
) -> solutions.Solution:
    """`example`'s fields over their coordinates; a target that is NaN everywhere is one that nobody
    knows.
    """
    exact = None if np.isnan(shown["target"]).all() else shown["target"]
    return solutions.Solution(
        shown["input"],
        exact,
        shown["prediction"],
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


def example_figure(
    parts, params: Params, extra: Extra, put: Callable, rows: slice, size: int
) -> dict[str, Figure]:
    """The picture that training writes every few evaluations."""
    shown = example(parts.task, parts.dataset, params, extra, put, rows, size, "val")
    return {
        "slices": slices(
            parts.dataset.spec, shown, f"validation example {parts.dataset.names('val')[0]}"
        )
    }


def evaluate_run(asked: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Score `asked.split` with the checkpoint and the weights asked for; writes
    `<workdir>/evaluation/`, returns the table.
    """
    task, params, extra, config, spec, meta = loading.restored(
        workdir, asked.checkpoint, asked.weights, asked.tta, mesh
    )
    dataset = components.dataset(config)
    size = asked.batch_size
    sharding.check(mesh, size, spec.shape[0], "config.evaluate.batch_size")
    rows = sharding.rows(mesh, size)

    def put(batch):
        return sharding.put(mesh, batch, size)

    logging.info(
        "scoring %s with checkpoint %s (step %d), %s weights",
        asked.split,
        asked.checkpoint,
        meta["step"],
        asked.weights,
    )
    if meta["data_hash"] != dataset.hash:
        logging.warning(
            "the data is not what this run was trained on (hash %s -> %s)",
            meta["data_hash"],
            dataset.hash,
        )
    scored = {"model": (task, params, extra)}
    scored.update(components.fitted_baselines(config, dataset, size))

    def score(who: Task, p: Params, e: Extra) -> tuple[Metrics, dict[str, np.ndarray]]:
        return examples.score(
            assemble.evaluation(who, mesh),
            who,
            dataset,
            asked_with_seed(asked, config),
            p,
            e,
            put,
            rows,
            asked.split,
            0,
        )

    scores = {name: score(*parts) for name, parts in scored.items()}
    info = {
        "name": config.model.name,
        "split": asked.split,
        "weights": asked.weights,
        "checkpoint": asked.checkpoint,
        "step": meta["step"],
        "seed": config.seed,
        "config_hash": meta["config_hash"],
        "data_hash": dataset.hash,
        "versions": meta["versions"],
        "unit": spec.unit,
        "parameters": ", ".join(
            f"{group} {sum(x.size for x in jax.tree.leaves(tree)):,}"
            for group, tree in params.items()
        ),
        "gflop_per_prediction": forward_gflop(
            task, params, extra, put(next(dataset.batches(asked.split, size, rows, 1))), size
        ),
        "steps_per_sec": steps_per_second(workdir),
    }
    folder, told = workdir / "evaluation", ""
    if asked.tta != "none":
        single = components.task(config, spec)
        batch = put(next(dataset.batches(asked.split, size, rows, 1)))
        cost = [seconds(who, params, extra, batch) / size for who in (single, task)]
        info["tta"], told = tta_report(
            asked.tta,
            config.model.name,
            score(single, params, extra)[0],
            scores["model"][0],
            cost,
            len(tta.transforms(asked.tta, spec, spec.shape)),
        )
    shown = (
        example(task, dataset, params, extra, put, rows, size, asked.split) if asked.figures else {}
    )
    if jax.process_index() > 0:
        return ""
    text = report.report(folder, scores, dataset.names(asked.split), info) + told
    title = f"{config.model.name}, {asked.split} example {dataset.names(asked.split)[0]}"
    if shown and spec.fields["input"].kind == "coordinates":
        title = f"{config.data.problem.name.replace('_', ' ')}, {tables.pretty(config.model.name)}"
        problem = measured.problem(config.data.problem)
        found = solution(
            spec,
            shown,
            residual(problem, spec, task, params, extra, shown["input"]),
            problem.remainder,
        )
        figures.save(solutions.draw(found, title), folder / "solution.png")
        solutions.animate(found, folder / "solution.gif", title)
        figures.save(
            solutions.history(figures.read_curves(workdir / "metrics.csv")), folder / "curves.png"
        )
    elif shown:
        draw(folder, workdir, spec, shown, scores, title, config)
    return f"{text}\n\nTables and pictures are in {folder}/."


def forward_gflop(task: Task, params: Params, extra: Extra, batch: dict, size: int) -> float:
    """Floating-point operations of one example's prediction in 1e9, those of products and FFTs
    (ops/flops.py).
    """
    return flops.count(task.predict, params, extra, batch) / size / 1e9


def steps_per_second(workdir: Path) -> float:
    """Median over the run's log, compilation left out; NaN where there is no log."""
    try:
        rows = (workdir / "perf.csv").read_text().splitlines()
    except OSError:
        return float("nan")
    found = [float(row.split(",")[2]) for row in rows if "perf/steps_per_sec" in row]
    return float(np.median(found)) if found else float("nan")


def seconds(task: Task, params: Params, extra: Extra, batch: dict) -> float:
    """Time of one prediction of a batch: the quickest of three, compilation left out."""
    run = jax.jit(task.predict)

    def once() -> float:
        began = time.perf_counter()
        jax.block_until_ready(run(params, extra, batch))
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(3))


def tta_report(
    name: str, model: str, without: Metrics, averaged: Metrics, cost: list[float], views: int
) -> tuple[dict, str]:
    """What test-time augmentation gained and cost: (for metrics.json, text).

    gain: per metric, how much better the average is than one prediction, in the metric's own unit;
          negative = worse.
    """
    one, mean = tables.scalars(without), tables.scalars(averaged)
    gain = {k: tables.direction(k) * (mean[k] - one[k]) for k in mean if tables.direction(k)}
    found = {
        "transforms": name,
        "views": views,
        "without": without,
        "gain": gain,
        "time_ratio": cost[1] / cost[0],
        "seconds_per_example": {"without": cost[0], "with": cost[1]},
    }
    label = tables.pretty(model)
    lines = {f"{label}, one prediction": one, f"{label}, mean of {views} ({name})": mean}
    return found, (
        f"\n\nTest-time augmentation: the scores above are those of the mean over {views} views.\n"
        f"{tables.table(lines, list(lines)[1:])}\n"
        f"It takes {cost[1] / cost[0]:.3g} times as long: {cost[1]:.3g} instead of {cost[0]:.3g} s "
        "per example."
    )


def asked_with_seed(asked: ConfigDict, config: ConfigDict) -> ConfigDict:
    """The config that scoring reads: the run's own, with the evaluation fields asked for now."""
    merged = ConfigDict(config.to_dict())
    merged.evaluate = asked
    return merged


def draw(
    folder: Path,
    workdir: Path,
    spec: Spec,
    shown: dict,
    scores: dict,
    title: str,
    config: ConfigDict,
) -> None:
    """Slices, spectra, PDF and loss curves as PNG files."""
    figures.save(slices(spec, shown, title), folder / "slices.png")
    figures.save(
        figures.pdf(
            {name: shown[name][..., 0] for name in ("target", "prediction")}, label(spec, "target")
        ),
        folder / "pdf.png",
    )
    found = {
        tables.label(name, config.model.name): metrics["spectra"]
        for name, (metrics, _) in scores.items()
        if "spectra" in metrics
    }
    if found:
        figures.save(figures.spectra(found, spec.unit), folder / "spectra.png")
    if (workdir / "metrics.csv").exists():
        curves = figures.read_curves(workdir / "metrics.csv")
        figures.save(figures.curves(curves, config.checkpoint.best_metric), folder / "curves.png")


def predict_run(asked: ConfigDict, workdir: Path) -> None:
    """Predict the files of `asked.predict.input` with the run's weights."""
    task, params, extra, config, spec, meta = loading.restored(
        workdir, asked.evaluate.checkpoint, asked.evaluate.weights, asked.evaluate.tta
    )
    merged = ConfigDict(config.to_dict())
    merged.predict, merged.evaluate = asked.predict, asked.evaluate
    compiled = jax.jit(lambda x: task.predict(params, extra, {"input": x}))
    made_by = {
        "run": str(workdir),
        "checkpoint": asked.evaluate.checkpoint,
        "step": meta["step"],
        "weights": asked.evaluate.weights,
        "tta": asked.evaluate.tta,
        "config_hash": meta["config_hash"],
        "versions": meta["versions"],
    }
    trained_on = (
        config.data.input.key if "input" in config.data and "key" in config.data.input else ""
    )
    for file in predict.predict(merged, spec, compiled, workdir, made_by, trained_on):
        print(file)
