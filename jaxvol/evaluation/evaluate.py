"""Scoring a split with a run on disk, next to the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.config import components
from jaxvol.evaluation import costs, loading, pictures, report, tta
from jaxvol.evaluation.evaluators import examples
from jaxvol.runtime import provenance
from jaxvol.training import assemble, sharding
from jaxvol.types import Dataset, Extra, Params, Spec, Task, UserError


def evaluate_run(choice: ConfigDict, workdir: Path, mesh: Mesh) -> str:
    """Score `choice.split` with the checkpoint and the weights of `choice`, a `config.evaluate`.

    Writes `<workdir>/evaluation/`, or the folder in it that `report.folder` gives to another split
    or checkpoint than the run's own; returns the table.
    """
    task, params, extra, config, spec, meta = loading.restored(
        workdir, choice.checkpoint, choice.weights, choice.tta, mesh
    )
    folder = report.folder(workdir, usual(workdir, config), choice.split, choice.checkpoint)
    dataset, split, size = components.dataset(config), choice.split, choice.batch_size
    config = with_choice(config, choice)
    sharding.check(mesh, size, spec.shape[0], "config.evaluate.batch_size")
    rows = sharding.rows(mesh, size)
    announce(choice, meta, dataset)

    def put(batch):
        return sharding.put(mesh, batch, size)

    def score(task: Task, params: Params, extra: Extra):
        run = assemble.evaluation(task, mesh)
        return examples.score(run, task, dataset, config, params, extra, put, rows, split)

    predictors = {
        "model": (task, params, extra),
        **components.fitted_baselines(config, dataset, size),
    }
    scores = {name: score(*predictor) for name, predictor in predictors.items()}
    batch = put(next(dataset.batches(split, size, rows, 1)))
    info = {
        **origin(config, meta, dataset, spec, params),
        "gflop_per_prediction": costs.forward_gflop(task, params, extra, batch, size),
        "steps_per_sec": costs.steps_per_second(workdir),
    }
    gain = ""
    if choice.tta != "none":
        single = components.task(config, spec)
        seconds = [costs.seconds(t, params, extra, batch) / size for t in (single, task)]
        views = len(tta.transforms(choice.tta, spec, spec.shape))
        pair = score(single, params, extra)[0], scores["model"][0]
        info["tta"], gain = costs.tta_report(choice.tta, config.model.name, *pair, seconds, views)
    fields = {}
    if choice.figures and "paired" in task.provides:
        fields = pictures.example(task, dataset, params, extra, put, rows, size, split)
    if jax.process_index() > 0:
        return ""
    named = components.metrics(config)
    text = report.report(folder, scores, dataset.names(split), info, named) + gain
    if fields and spec.fields["input"].kind == "coordinates":
        pictures.draw_solution(folder, workdir, config, spec, fields, predictors["model"])
    elif fields:
        title = f"{config.model.name}, {split} example {dataset.names(split)[0]}"
        pictures.draw_volumes(folder, workdir, config, spec, fields, scores, title)
    return f"{text}\n\nTables and pictures are in {folder}/."


def usual(workdir: Path, stored: ConfigDict) -> ConfigDict:
    """`evaluate` of the run's own config; of the one `stored` in the checkpoint where there is no
    config.json beside it.
    """
    file = workdir / "config.json"
    config = provenance.read_config(file) if file.exists() else stored
    if "evaluate" not in config or not {"split", "checkpoint"} <= set(dir(config.evaluate)):
        raise UserError(
            f"{file} cannot be used as the config.json of a run (it has no evaluate.split or no "
            "evaluate.checkpoint). Restore it, or delete it: the checkpoint has the run's config."
        )
    return config.evaluate


def with_choice(config: ConfigDict, choice: ConfigDict) -> ConfigDict:
    """The run's own config with another `evaluate`."""
    merged = ConfigDict(config.to_dict())
    merged.evaluate = choice
    return merged


def announce(choice: ConfigDict, meta: dict, dataset: Dataset) -> None:
    """Say what is scored; warn where the data is not what the run was trained on."""
    logging.info(
        "scoring %s with checkpoint %s (step %d), %s weights",
        choice.split,
        choice.checkpoint,
        meta["step"],
        choice.weights,
    )
    if meta["data_hash"] != dataset.hash:
        logging.warning(
            "the data is not what this run was trained on (hash %s -> %s)",
            meta["data_hash"],
            dataset.hash,
        )


def origin(
    config: ConfigDict, meta: dict, dataset: Dataset, spec: Spec, params: Params
) -> dict[str, Any]:
    """What the scores belong to, for metrics.json: the run, its checkpoint, the split, the data."""
    sizes = {group: sum(x.size for x in jax.tree.leaves(tree)) for group, tree in params.items()}
    return {
        "name": config.model.name or config.task.name.rpartition(".")[2],
        "split": config.evaluate.split,
        "weights": config.evaluate.weights,
        "checkpoint": config.evaluate.checkpoint,
        "step": meta["step"],
        "seed": config.seed,
        "config_hash": meta["config_hash"],
        "data_hash": dataset.hash,
        "versions": meta["versions"],
        "unit": spec.unit,
        "parameters": ", ".join(f"{group} {size:,}" for group, size in sizes.items()),
    }
