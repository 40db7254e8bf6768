"""The parts of a run, made once: for the train loop, and for the checks of the pre-flight."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxvol.config import components, phases
from jaxvol.config.phases import Phase
from jaxvol.training import handover, optim, sharding, step
from jaxvol.types import (
    Batch,
    Dataset,
    Extra,
    Key,
    Params,
    Parts,
    Rows,
    Spec,
    Task,
    TrainState,
    UserError,
)


def parts(config: ConfigDict, mesh: Mesh, steps: int, dataset: Dataset | None = None) -> Parts:
    """Everything that a phase of `steps` updates trains with, with a dataset that exists already
    where two phases read the same.  Raises UserError where batch or volumes do not fit the mesh.
    """
    dataset = components.dataset(config) if dataset is None else dataset
    for size, what in (
        (config.batch_size, "config.batch_size"),
        (config.evaluate.batch_size, "config.evaluate.batch_size"),
    ):
        sharding.check(mesh, size, dataset.spec.shape[0], what)
    task = components.task(config, dataset.spec)
    init, struct = state_template(config, dataset.spec, steps, mesh)
    if config.evaluate.weights not in ("raw", *struct.averages):
        raise UserError(
            f"config.evaluate.weights is {config.evaluate.weights!r}; this run has raw, "
            f"{', '.join(struct.averages)}."
        )
    optimizers = make_optimizers(config, struct.params, steps)
    return Parts(
        task, dataset, optimizers, init, struct, *compiled(config, mesh, task, optimizers, struct)
    )


def compiled(
    config: ConfigDict, mesh: Mesh, task: Task, optimizers: dict, state: TrainState
) -> tuple[Callable, Callable]:
    """(train step, evaluation) of a task, jitted; `state` says how each leaf is sharded."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    train_step = jax.jit(
        step.make(task, optimizers, config.seed, config.ema_decay, config.micro_batches),
        donate_argnums=0,
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    return train_step, evaluation(task, mesh)


def evaluation(task: Task, mesh: Mesh) -> Callable[[Params, Extra, Batch, Key], Rows]:
    """Compile `task.evaluate`; rows and the leaves `_mask`, `_index` come back on every process,
    whole.
    """

    def rows(params: Params, extra: Extra, batch: Batch, key: Key) -> Rows:
        return {
            **task.evaluate(params, extra, batch, key),
            **{k: v for k, v in batch.items() if k.startswith("_")},
        }

    return jax.jit(rows, out_shardings=NamedSharding(mesh, PartitionSpec()))


def make_optimizers(config: ConfigDict, groups, steps: int) -> dict:
    """One optimizer per parameter group, for a phase of `steps` updates."""
    return {group: optim.make(config.optimizer, group, steps) for group in groups}


def trace(parts: Parts, config: ConfigDict, where: str) -> None:
    """Trace one train step without compiling it; UserError, named by `where`, if that fails.

    What a loss or a model does not like (a misspelt term, a shape) is found in seconds, before an
    earlier phase has trained for hours.
    """
    batch = components.example(config, parts.dataset.spec, config.batch_size)
    first = {
        name: x for name, x in parts.dataset.batch(0, slice(0, 1)).items() if name not in batch
    }
    batch |= {
        name: jax.ShapeDtypeStruct((config.batch_size, *x.shape[1:]), x.dtype)
        for name, x in first.items()
    }
    try:
        jax.eval_shape(parts.step, parts.struct, batch, jax.ShapeDtypeStruct((), jnp.int32))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # flax, jax and tasks raise many types
        raise UserError(
            f"{where} cannot be trained: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def state_template(config: ConfigDict, spec: Spec, steps: int, mesh) -> tuple[Callable, TrainState]:
    """(init: zeros batch -> TrainState, its ShapeDtypeStructs with shardings) for the task of
    `config`.
    """
    learned = components.task(config, spec)
    batch = components.example(config, spec, 1)

    def init() -> TrainState:
        zeros = {name: jnp.zeros(s.shape, s.dtype) for name, s in batch.items()}
        groups = jax.eval_shape(learned.init, jax.random.key(0), batch)[0]
        return step.init(learned, make_optimizers(config, groups, steps), config.seed, zeros)

    shapes = jax.eval_shape(init)
    shardings = sharding.state_shardings(mesh, shapes)
    struct = jax.tree.map(
        lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings
    )
    return init, struct


def phase_parts(plan: list[Phase], index: int, mesh: Mesh, cache: dict[int, Parts]) -> Parts:
    """The parts of a phase, put in the place of another's in `cache`: one phase's dataset and
    programs at a time, and the same dataset where both read the same.
    """
    phase = plan[index]
    same = [i for i in cache if phases.same_data(plan[i].config, phase.config)]
    dataset = cache[same[0]].dataset if same else None
    cache.clear()
    steps = plan[-1].stop if phase.config.optimizer.schedule.span == "run" else phase.steps
    try:
        return parts(phase.config, mesh, steps, dataset)
    except UserError as error:
        if not phase.name:
            raise
        raise UserError(f"phase {phase.name!r}: {error}") from error


def check_phases(plan: list[Phase], parts_of: Callable[[int], Parts]) -> None:
    """Every phase is built and traced before the first one trains; UserError names the phase.

    Warns where a batch is larger than the split train.
    """
    size, examples = plan[0].config.batch_size, parts_of(0).dataset.sizes["train"]
    if 0 < examples < size:
        logging.warning(
            "batch_size is %d, and the split train has %d examples: every batch holds some of them "
            "up to %d times, and an epoch is %.2g updates.",
            size,
            examples,
            -(-size // examples),
            examples / size,
        )
    for index in range(len(plan) - 1, 0, -1):
        before, phase = parts_of(index - 1), plan[index]
        after = parts_of(index)
        trace(after, phase.config, f"phase {phase.name!r}")
        handover.check(before, after, phase, plan[index - 1].name)
