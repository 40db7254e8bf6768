"""The Context that the checks of the pre-flight look at, made of the parts of the run."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.config import components
from jaxvol.diagnostics.records import Context
from jaxvol.evaluation.evaluators import examples as scoring
from jaxvol.training import assemble, checkpoint, handover, optim, restore, sharding, validation
from jaxvol.types import Batch, Metrics, Parts, Task, TrainState


def save_restore(now: TrainState) -> TrainState:
    """A state through a checkpoint on disk and back, with the shardings it had."""
    with tempfile.TemporaryDirectory() as folder:
        store = checkpoint.open_store(folder)
        checkpoint.save(store, now, {"progress": {"best_step": None}})
        store.manager.wait_until_finished()
        struct = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), now
        )
        tree, _ = checkpoint.restore_newest(store, lambda meta: checkpoint.as_dict(struct))
        store.manager.close()
    return TrainState(**tree)


def traced(parts: Parts, mesh: Mesh, example: Batch, size: int):
    """The train step, traced for a batch of `size`; `example` is a batch of the run.

    Its arguments are those of the train loop, so that the program of the run's own batch is found
    in the cache and not compiled again.
    """
    batch = {
        name: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)
        for name, leaf in example.items()
    }
    taken = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    return parts.step.trace(parts.struct, batch, taken)


def rebuilt(config: ConfigDict, parts: Parts, overrides: dict[str, Any]) -> Task:
    """The task of the config with overrides {"a.b": value}."""
    other = ConfigDict(config.to_dict())
    other.update_from_flattened_dict(overrides)
    return components.task(other.lock(), parts.dataset.spec)


def scored_baselines(config: ConfigDict, mesh: Mesh, parts: Parts, score) -> dict[str, Metrics]:
    """What the trivial predictors score on the first validation examples."""
    fitted = components.fitted_baselines(config, parts.dataset, config.evaluate.batch_size)
    return {
        name: score(
            assemble.evaluation(task, mesh), task, params, extra, "val", config.preflight.examples
        )[0]
        for name, (task, params, extra) in fitted.items()
    }


def make(
    config: ConfigDict, mesh: Mesh, workdir: Path, steps: int, parts: Parts | None = None
) -> Context:
    """The Context of a run's first phase of `steps` updates; `parts` are made here unless they
    exist already.
    """
    parts = assemble.parts(config, mesh, steps) if parts is None else parts
    state = handover.start(parts)
    state = handover.load_pretrained(state, restore.initial(config, mesh), config.init_partial)
    put, rows, size = validation.placing(config, mesh)

    def batch_of(step: int) -> Batch:
        batch = parts.dataset.batch(step, sharding.rows(mesh, config.batch_size))
        return sharding.put(mesh, batch, config.batch_size)

    def batches(split: str, examples: int) -> list[dict[str, np.ndarray]]:
        return list(parts.dataset.batches(split, size, rows, examples))

    def score(evaluate, task, params, extra, split: str, examples: int):
        return scoring.score(
            evaluate, task, parts.dataset, config, params, extra, put, rows, split, examples
        )

    return Context(
        steps=steps,
        config=config,
        workdir=workdir,
        mesh=mesh,
        dataset=parts.dataset,
        task=parts.task,
        optimizers=parts.optimizers,
        init=lambda: handover.start(parts),
        state=state,
        step=parts.step,
        evaluate=parts.evaluate,
        readings=optim.readings,
        batch=batch_of,
        batches=batches,
        put=put,
        score=functools.partial(score, parts.evaluate, parts.task),
        validate=lambda now, n: validation.validate(scoring.score, config, mesh, parts, now, n),
        better=lambda value, best: validation.improves(config, value, best),
        baselines=lambda: scored_baselines(config, mesh, parts, score),
        trace=lambda size: traced(parts, mesh, batch_of(0), size),
        save_restore=save_restore,
        rebuild_task=functools.partial(rebuilt, config, parts),
    )
