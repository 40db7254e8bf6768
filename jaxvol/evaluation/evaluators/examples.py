"""Scores of a split, example by example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxvol.types import Batch, Dataset, Extra, Metrics, Params, Task, UserError


def score(
    evaluate: Callable,
    task: Task,
    dataset: Dataset,
    config: Any,
    params: Params,
    extra: Extra,
    put: Callable[[dict[str, np.ndarray]], Batch],
    rows: slice,
    split: str,
    limit: int = 0,
) -> tuple[Metrics, dict[str, np.ndarray]]:
    """Metrics of a split and its rows, one per example in the order of the split, padding dropped.

    evaluate: what `training.assemble.evaluation` returned.
    put:      host batch of this process -> arrays on the mesh.
    rows:     the part of each global batch of `config.evaluate.batch_size` examples that this
              process reads.
    limit:    score only the first examples; 0 = all.
    Example number `_index` stays in the rows.  Batch number b uses the key fold_in(key(seed), b).
    UserError when the split is empty.
    """
    key = jax.random.key(config.seed)
    parts: list[dict[str, np.ndarray]] = []
    for number, batch in enumerate(dataset.batches(split, config.evaluate.batch_size, rows, limit)):
        scores = jax.device_get(
            evaluate(params, extra, put(batch), jax.random.fold_in(key, number))
        )
        real = np.asarray(scores.pop("_mask")) > 0
        parts.append({name: np.asarray(values)[real] for name, values in scores.items()})
    if not parts or not any(len(next(iter(part.values()))) for part in parts):
        raise UserError(
            f"split '{split}' has no examples to score (sizes: {dataset.sizes}); "
            "choose another with --config.evaluate.split or give it data"
        )
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return task.summarize({k: v for k, v in joined.items() if not k.startswith("_")}), joined
