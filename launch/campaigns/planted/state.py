"""Faults of what is carried from step to step: pretrained weights, averages, checkpoints, random
numbers, and what is called best.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxvol.config import components
from jaxvol.training import assemble, averages, checkpoint, handover, step, validation
from launch.campaigns.planted import Fault, replaced

# a finished run, for faults of pretrained weights
SOURCE = Path(__file__).parents[3] / ".cache" / "faults" / "source"
FROM_SOURCE = {"init_from": str(SOURCE), "init_checkpoint": "final"}


def pretrained(warmup: int):
    """Training starts from a finished run, with a warm-up as for random weights."""
    return {**FROM_SOURCE, "optimizer.schedule.warmup_steps": warmup}, []


def reinitialised(part: str):
    """Of the weights that were loaded, those whose name contains `part` are random again."""

    def make(load):
        def faulty(state, sources, partial):
            new = load(state, sources, partial)
            mixed = jax.tree_util.tree_map_with_path(
                lambda path, fresh, loaded: fresh if part in jax.tree_util.keystr(path) else loaded,
                state.params,
                new.params,
            )
            return new.replace(params=mixed)

        return faulty

    overrides = {**FROM_SOURCE, "optimizer.schedule.warmup_steps": 0}
    return overrides, [replaced(handover, "load_pretrained", make)]


def other_weights(named: str):
    """Validation while training takes the raw weights where the config names the averages, and the
    reverse; every other use of the weights is right.
    """

    def make(validate):
        def faulty(score, config, *rest):
            config = config.copy_and_resolve_references()
            config.evaluate.weights = "raw" if named == "ema" else "ema"
            return validate(score, config, *rest)

        return faulty

    return {"evaluate.weights": named}, [replaced(validation, "validate", make)]


def still_average(decay: float):
    """The EMA's decay is another one: 1 never moves."""
    return {}, [replaced(averages, "ema_decay_at", lambda old: lambda d, t: jnp.float32(decay))]


def same_key(rate: float):
    """Every update uses the random numbers of update 0."""
    return {"model.dropout": rate}, [
        replaced(step, "key_at", lambda old: lambda seed, at: old(seed, 0))
    ]


def forgetful(part: str):
    """A checkpoint does not bring back the optimizer's moments, its counter, or the averages."""

    def make(restore):
        def faulty(store, template):
            tree, meta = restore(store, template)
            if part == "averages":
                pair = tree["averages"]["ema"]
                ema = {**pair, "params": jax.tree.map(jnp.copy, tree["params"])}
                return {**tree, "averages": {"ema": ema}}, meta
            if part == "counter":
                opt = {
                    group: state._replace(count=jnp.zeros_like(state.count))
                    for group, state in tree["opt"].items()
                }
                return {**tree, "opt": opt}, meta
            return {**tree, "opt": jax.tree.map(jnp.zeros_like, tree["opt"])}, meta

        return faulty

    return {}, [replaced(checkpoint, "restore_newest", make)]


def random_step(size: float):
    """The step adds noise that is no function of the seed."""
    calls = iter(range(10**9))

    def make(compile_parts):
        def faulty(config, mesh, task, optimizers, state):
            update, evaluate = compile_parts(config, mesh, task, optimizers, state)

            def noisy(old, batch, taken):
                new, metrics = update(old, batch, taken)
                factor = 1 + size * jax.random.normal(jax.random.key(next(calls)), ())
                return new.replace(params=jax.tree.map(lambda p: p * factor, new.params)), metrics

            return noisy, evaluate

        return faulty

    return {}, [replaced(assemble, "compiled", make)]


def turned(metric: str):
    """The best checkpoint is chosen in the wrong direction."""
    opposite = replaced(components, "best_direction", lambda old: lambda config: -old(config))
    return {"checkpoint.best_metric": metric}, [opposite]


FAULTS = (
    Fault("warm-up restarted on pretrained weights", "fno", "schedule", (10, 100), pretrained),
    Fault(
        "pretrained weights re-initialised",
        "fno",
        "structure",
        ("projection", "kernel"),
        reinitialised,
        ("schedule",),
    ),
    Fault("evaluation with raw instead of EMA weights", "fno", "state", ("ema",), other_weights),
    Fault("evaluation with EMA instead of raw weights", "vit3d", "state", ("raw",), other_weights),
    Fault("EMA decay that never moves", "fno", "state", (0.98, 1.0), still_average),
    Fault("the same random numbers at every step", "vit3d", "state", (0.05, 0.3), same_key),
    Fault("restore that skips the optimizer", "fno", "state", ("counter", "moments"), forgetful),
    Fault("restore that skips the averages", "vnet", "state", ("averages",), forgetful),
    Fault("a step that is not deterministic", "fno", "state", (1e-5, 1e-2), random_step),
    Fault(
        "best checkpoint chosen in the wrong direction",
        "fno",
        "state",
        ("pearson", "vrmse"),
        turned,
    ),
)
