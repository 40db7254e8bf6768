"""From the blocks of a config to objects: the dataset, the model, the task of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.runtime import modules
from jaxvol.scores import columns
from jaxvol.types import Dataset, Params, Spec, Task, UserError

FIT_EXAMPLES = 256  # training examples that the trivial predictors are fitted on


def dataset(config: ConfigDict) -> Dataset:
    """The dataset of `config.data`."""
    return modules.module("data", config.data.name).make(config)


def model(config: ConfigDict, spec: Spec):
    """The linen module of `config.model` for this spec; None where its name is "", for a task that
    brings networks of its own.
    """
    if not config.model.name:
        return None
    return modules.module("models", config.model.name).make(config, spec)


def task(config: ConfigDict, spec: Spec, wrap: Callable[[Any, Spec], Any] | None = None) -> Task:
    """The task of `config.task` around the model of `config.model`.

    wrap: (module, spec) -> what is called in the module's place, for prediction alone.
    """
    network = model(config, spec)
    wrapped = network if wrap is None else wrap(network, spec)
    return modules.module("tasks", config.task.name).make(config, spec, wrapped)


def baselines(
    config: ConfigDict, spec: Spec, train_batches
) -> dict[str, tuple[Task, Params, dict]]:
    """Trivial predictors that every table has next to the model, fitted on training batches: name
    -> (task, params, extra).
    """
    return modules.module("tasks", config.task.name).baselines(config, spec, train_batches)


def fitted_baselines(
    config: ConfigDict, data: Dataset, batch_size: int
) -> dict[str, tuple[Task, Params, dict]]:
    """`baselines`, fitted on the same training examples wherever they are asked for."""
    batches = data.batches("train", batch_size, slice(0, batch_size), FIT_EXAMPLES)
    return baselines(config, data.spec, batches)


def best_direction(config: ConfigDict) -> int:
    """+1 where more of `config.checkpoint.best_metric` is better, -1 where less is.

    Raises UserError where nobody knows, see jaxvol/scores/columns.py.
    """
    best, named = config.checkpoint.best_metric, metrics(config)
    if not columns.direction(best, named):
        raise UserError(columns.undirected(best))
    return columns.direction(best, named)


def metrics(config: ConfigDict) -> tuple:
    """`config.task.metrics`; () of a task that names its scores otherwise."""
    return config.task.metrics if "task" in config and "metrics" in config.task else ()


def example(config: ConfigDict, spec: Spec, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as it looks to the compiler, one leaf per field, and what is known of a table."""
    number = jnp.float64 if config.precision == "f64" else jnp.float32
    leaves = {}
    for name, field in spec.fields.items():
        shape = (batch_size, *field.leaf(spec.shape))
        dtype = jnp.int32 if field.whole_numbers else number
        leaves[name] = jax.ShapeDtypeStruct(shape, dtype)
        if field.kind == "table":
            leaves[f"{name}_known"] = jax.ShapeDtypeStruct(shape, dtype)
    return leaves
