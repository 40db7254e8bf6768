"""The Context that the checks of the pre-flight look at, made of the parts of the run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.config import components
from jaxvol.evaluation.evaluators import examples as scoring
from jaxvol.training import assemble, checkpoint, loop, optim, restore, sharding
from jaxvol.types import Batch, Context, Extra, Metrics, Params, Parts, Rows, Task, TrainState


def save_restore(now: TrainState) -> TrainState:
    """A state through a checkpoint on disk and back, with the shardings it had."""
    with tempfile.TemporaryDirectory() as folder:
        store = checkpoint.open_store(folder)
        checkpoint.save(store, now, {"progress": {"best_step": None}}, None)
        store.manager.wait_until_finished()
        struct = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), now
        )
        tree, _ = checkpoint.restore_newest(store, lambda meta: checkpoint.as_dict(struct))
        store.manager.close()
    return TrainState(**tree)


def make(
    config: ConfigDict, mesh: Mesh, workdir: Path, steps: int, given: Parts | None = None
) -> Context:
    """The Context of a run's first phase of `steps` updates; `given` are its parts where they exist
    already.
    """
    run = assemble.parts(config, mesh, steps) if given is None else given
    state = loop.start(run)
    if config.init_from:
        state = loop.load_pretrained(config, state, *restore.initial(config, mesh))

    def trace(batch_size: int):
        batch = {
            name: jax.ShapeDtypeStruct((batch_size, *s.shape[1:]), s.dtype, sharding=s.sharding)
            for name, s in batch_of(0).items()
        }
        # as the step is called: the compiled program of the run's run batch is then found, not made
        # again
        return run.step.trace(
            run.struct,
            batch,
            jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh)),
        )

    def batch_of(step: int) -> Batch:
        size = config.batch_size
        return sharding.put(mesh, run.dataset.batch(step, sharding.rows(mesh, size)), size)

    def batches(split: str, examples: int) -> list[dict[str, np.ndarray]]:
        size = config.evaluate.batch_size
        return list(run.dataset.batches(split, size, sharding.rows(mesh, size), examples))

    def put(batch: dict[str, np.ndarray]) -> Batch:
        return sharding.put(mesh, batch, config.evaluate.batch_size)

    def score_task(task: Task, evaluate, params, extra, split: str, examples: int):
        rows = sharding.rows(mesh, config.evaluate.batch_size)
        return scoring.score(
            evaluate, task, run.dataset, config, params, extra, put, rows, split, examples
        )

    def score(params: Params, extra: Extra, split: str, examples: int) -> tuple[Metrics, Rows]:
        return score_task(run.task, run.evaluate, params, extra, split, examples)

    def validate(now: TrainState, examples: int) -> Metrics:
        return loop.validate(scoring.score, config, mesh, run, now, examples)

    def scored_baselines() -> dict[str, Metrics]:
        fitted = components.fitted_baselines(config, run.dataset, config.evaluate.batch_size)
        return {
            name: score_task(
                task,
                assemble.evaluation(task, mesh),
                params,
                extra,
                "val",
                config.preflight.examples,
            )[0]
            for name, (task, params, extra) in fitted.items()
        }

    def rebuild_task(overrides: dict[str, Any]) -> Task:
        other = ConfigDict(config.to_dict())
        other.update_from_flattened_dict(overrides)
        return components.task(other.lock(), run.dataset.spec)

    return Context(
        steps=steps,
        config=config,
        workdir=workdir,
        mesh=mesh,
        dataset=run.dataset,
        task=run.task,
        optimizers=run.optimizers,
        init=lambda: loop.start(run),
        state=state,
        step=run.step,
        evaluate=run.evaluate,
        readings=optim.readings,
        batch=batch_of,
        batches=batches,
        put=put,
        score=score,
        validate=validate,
        better=lambda value, best: loop.improves(config, value, best),
        baselines=scored_baselines,
        trace=trace,
        save_restore=save_restore,
        rebuild_task=rebuild_task,
    )
