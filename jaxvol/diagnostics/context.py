"""The parts of a run, made once: for the train loop, and as the Context that the checks of the
pre-flight look at.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.config import components
from jaxvol.evaluation import report
from jaxvol.training import checkpoint, loop, optim, sharding
from jaxvol.training import step as stepping
from jaxvol.types import Batch, Context, Extra, Metrics, Params, Parts, Rows, Task, TrainState

FIT_BATCHES = 16  # training batches that the baselines are fitted on


def parts(config: ConfigDict, mesh: Mesh, steps: int) -> Parts:
    """Everything that a phase of `steps` updates trains with.  Raises UserError where batch or
    volumes do not fit the mesh.
    """
    dataset = components.dataset(config)
    for size, what in (
        (config.batch_size, "config.batch_size"),
        (config.evaluate.batch_size, "config.evaluate.batch_size"),
    ):
        sharding.check(mesh, size, dataset.spec.shape[0], what)
    task = components.task(config, dataset.spec)
    init, struct = components.state_template(config, dataset.spec, steps, mesh)
    optimizers = components.optimizers(config, struct.params, steps)
    return Parts(
        task, dataset, optimizers, init, struct, *compiled(config, mesh, task, optimizers, struct)
    )


def compiled(
    config: ConfigDict, mesh: Mesh, task: Task, optimizers: dict, state: TrainState
) -> tuple[Callable, Callable]:
    """(train step, evaluation) of a task, jitted; `state` says how each leaf is sharded."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        stepping.make(task, optimizers, config.seed, config.ema_decay, config.micro_batches),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    return step, report.make(task, mesh)


def initial(config: ConfigDict, mesh: Mesh) -> tuple[Params, Any]:
    """(params, stats) of the averaged weights of the run `config.init_from`."""
    _, params, extra, _, _, meta = components.restore(
        config.init_from, config.init_checkpoint, "ema", mesh
    )
    logging.info(
        "init_from %s, checkpoint %s (step %d), averaged weights",
        config.init_from,
        config.init_checkpoint,
        meta["step"],
    )
    return params, extra["stats"]


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
    own = parts(config, mesh, steps) if given is None else given
    state = loop.start(own)
    if config.init_from:
        state = loop.adopt(config, state, *initial(config, mesh))

    def trace(batch_size: int):
        batch = {
            name: jax.ShapeDtypeStruct((batch_size, *s.shape[1:]), s.dtype, sharding=s.sharding)
            for name, s in batch_of(0).items()
        }
        # as the step is called: the compiled program of the run's own batch is then found, not made
        # again
        return own.step.trace(
            own.struct,
            batch,
            jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh)),
        )

    def batch_of(step: int) -> Batch:
        size = config.batch_size
        return sharding.put(mesh, own.dataset.batch(step, sharding.rows(mesh, size)), size)

    def batches(split: str, examples: int) -> list[dict[str, np.ndarray]]:
        size = config.evaluate.batch_size
        return list(own.dataset.batches(split, size, sharding.rows(mesh, size), examples))

    def put(batch: dict[str, np.ndarray]) -> Batch:
        return sharding.put(mesh, batch, config.evaluate.batch_size)

    def score(params: Params, extra: Extra, split: str, examples: int) -> tuple[Metrics, Rows]:
        size = config.evaluate.batch_size
        return report.score(
            own.evaluate,
            own.task,
            own.dataset,
            config,
            params,
            extra,
            put,
            sharding.rows(mesh, size),
            split,
            examples,
        )

    def validate(now: TrainState, examples: int) -> Metrics:
        return loop.validate(config, mesh, own, now, examples)

    def scored_baselines() -> dict[str, Metrics]:
        size, examples = config.evaluate.batch_size, config.preflight.examples
        fit = itertools.islice(own.dataset.batches("train", size, slice(0, size), 0), FIT_BATCHES)
        return {
            name: report.score(
                report.make(task, mesh),
                task,
                own.dataset,
                config,
                params,
                extra,
                put,
                sharding.rows(mesh, size),
                "val",
                examples,
            )[0]
            for name, (task, params, extra) in components.baselines(
                config, own.dataset.spec, fit
            ).items()
        }

    def retask(overrides: dict[str, Any]) -> Task:
        other = ConfigDict(config.to_dict())
        other.update_from_flattened_dict(overrides)
        return components.task(other.lock(), own.dataset.spec)

    return Context(
        steps=steps,
        config=config,
        workdir=workdir,
        mesh=mesh,
        dataset=own.dataset,
        task=own.task,
        optimizers=own.optimizers,
        init=lambda: loop.start(own),
        state=state,
        step=own.step,
        evaluate=own.evaluate,
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
        retask=retask,
    )
