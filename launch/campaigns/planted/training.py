"""Faults of what moves the weights: losses, gradients, optimizers, schedules, averages, checkpoints
and the players of a GAN.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxvol.config import components
from jaxvol.diagnostics import context
from jaxvol.tasks import scoring
from jaxvol.training import checkpoint, loop, optim, step
from launch.campaigns.planted import Fault, replaced

# a finished run, for faults of pretrained weights
SOURCE = Path(__file__).parents[3] / ".cache" / "faults" / "source"


def leaking(share: float):
    """The discriminator descends a share of the generator's terms as well."""

    def faulty(loss, params, fixed, batch, key):
        terms, pullback, (metrics, extra) = jax.vjp(
            lambda p: loss(p, fixed, batch, key), params, has_aux=True
        )

        def gradient(group):
            weights = {
                g: jax.tree.map(
                    lambda v, g=g: jnp.full_like(
                        v, 1.0 if g == group else share if group == "disc" else 0.0
                    ),
                    t,
                )
                for g, t in terms.items()
            }
            return pullback(weights)[0][group]

        return terms, {group: gradient(group) for group in terms}, metrics, extra

    return [replaced(step, "group_gradients", lambda old: faulty)]


def optimizer(change):
    """Patch every optimizer: change(update) -> update."""

    def make(build):
        def faulty(config, group, steps):
            own = build(config, group, steps)
            return own._replace(update=change(own.update))

        return faulty

    return [replaced(optim, "make", make)]


def norm_after_clip(update):
    """grad_norm is measured when the gradient was clipped already."""

    @functools.wraps(update)
    def faulty(grads, state, params, **arguments):
        updates, new = update(grads, state, params, **arguments)
        return updates, new._replace(
            readings={**new.readings, "grad_norm": new.readings["clipped_norm"]}
        )

    return faulty


def left_out(part: str):
    """Weights whose name contains `part` are not moved."""

    def change(update):
        def faulty(grads, state, params, **arguments):
            updates, new = update(grads, state, params, **arguments)
            return jax.tree_util.tree_map_with_path(
                lambda path, u: jnp.zeros_like(u) if part in jax.tree_util.keystr(path) else u,
                updates,
            ), new

        return faulty

    return optimizer(change)


def lowered(factor: float):
    """The schedule's highest rate is a fraction of the config's."""
    return [
        replaced(
            optim,
            "schedule",
            lambda old: (
                lambda config, steps: lambda count, rate=old(config, steps): factor * rate(count)
            ),
        )
    ]


def other_schedule(updates: int):
    """The step uses another schedule than the one that is planned: it has gone on for so many
    updates already.
    """

    def make(compile_parts):
        def faulty(config, mesh, task, optimizers, state):
            def late(update):
                return lambda grads, s, params, **k: update(
                    grads, s._replace(count=s.count + updates), params, **k
                )

            moved = {group: o._replace(update=late(o.update)) for group, o in optimizers.items()}
            return compile_parts(config, mesh, task, moved, state)

        return faulty

    return [replaced(context, "compiled", make)]


def pretrained(warmup: int):
    """Training starts from a finished run, with a warm-up as for random weights."""
    return {
        "init_from": str(SOURCE),
        "init_checkpoint": "final",
        "optimizer.schedule.warmup_steps": warmup,
    }, []


def reinitialised(part: str):
    """Of the weights that were loaded, those whose name contains `part` are random again."""

    def make(adopt):
        def faulty(config, state, params, stats):
            new = adopt(config, state, params, stats)
            kept = jax.tree_util.tree_map_with_path(
                lambda path, own, loaded: own if part in jax.tree_util.keystr(path) else loaded,
                state.params,
                new.params,
            )
            return new.replace(params=kept)

        return faulty

    return {
        "init_from": str(SOURCE),
        "init_checkpoint": "final",
        "optimizer.schedule.warmup_steps": 0,
    }, [replaced(loop, "adopt", make)]


def other_weights(asked: str):
    """Validation takes the raw weights where the config asks for the averages, and the reverse."""

    def make(validated):
        return lambda kind, state: validated("raw" if kind == "ema" else "ema", state)

    return {"evaluate.weights": asked}, [replaced(step, "validated", make)]


def still_average(decay: float):
    """The EMA's decay is another one: 1 never moves."""
    return [replaced(step, "ema_decay_at", lambda old: lambda d, t: jnp.float32(decay))]


def last_dropped(parts: int):
    """Gradient accumulation leaves the last micro-batch out."""

    def make(accumulate):
        def faulty(loss, params, fixed, batch, key, n):
            fewer = (
                {
                    name: x.reshape(x.shape[0] // n, n, *x.shape[1:])
                    .swapaxes(0, 1)[:-1]
                    .reshape(-1, *x.shape[1:])
                    for name, x in batch.items()
                }
                if n > 1
                else batch
            )
            return accumulate(loss, params, fixed, fewer, key, max(n - 1, 1))

        return faulty

    return {"micro_batches": parts, "batch_size": 4}, [replaced(step, "accumulate", make)]


def same_key(rate: float):
    """Every update uses the random numbers of update 0."""
    return {"model.dropout": rate}, [
        replaced(step, "key_at", lambda old: lambda seed, at: old(seed, 0))
    ]


def averaged_twice(devices: int):
    """The loss is divided by the number of devices once more."""

    def make(terms):
        def faulty(config, spec):
            rows = terms(config, spec)
            return lambda pred, batch: {
                name: value / devices for name, value in rows(pred, batch).items()
            }

        return faulty

    return [replaced(scoring, "terms", make)]


def forgetful(what: str):
    """A checkpoint that does not bring the optimizer, or its counter, or the averages back."""

    def make(restore):
        def faulty(store, template):
            tree, meta = restore(store, template)
            zero = functools.partial(jax.tree.map, jnp.zeros_like)
            if what == "averages":
                return {
                    **tree,
                    "ema": {**tree["ema"], "params": jax.tree.map(jnp.copy, tree["params"])},
                }, meta
            if what == "counter":
                return {
                    **tree,
                    "opt": {g: o._replace(count=zero(o.count)) for g, o in tree["opt"].items()},
                }, meta
            return {**tree, "opt": zero(tree["opt"])}, meta

        return faulty

    return [replaced(checkpoint, "restore_newest", make)]


def random_step(size: float):
    """The step adds noise that is no function of the seed."""
    calls = iter(range(10**9))

    def make(compile_parts):
        def faulty(config, mesh, task, optimizers, state):
            update, evaluate = compile_parts(config, mesh, task, optimizers, state)

            def noisy(old, batch, taken):
                new, metrics = update(old, batch, taken)
                key = jax.random.key(next(calls))
                return new.replace(
                    params=jax.tree.map(
                        lambda p: p * (1 + size * jax.random.normal(key, ())), new.params
                    )
                ), metrics

            return noisy, evaluate

        return faulty

    return [replaced(context, "compiled", make)]


def turned(metric: str):
    """The best checkpoint is chosen in the wrong direction."""
    opposite = replaced(components, "best_direction", lambda old: lambda config: -old(config))
    return {"checkpoint.best_metric": metric}, [opposite]


def terms_of(weight: float):
    """Two losses, one of which is decoration."""
    return {"task.losses": (("mse", 1.0), ("l1", weight))}, []


EVERYTHING_LATER = ("overfit", "baselines", "prediction", "lr_range", "spectra")
FAULTS = (
    Fault(
        "generator loss reaching the discriminator",
        "pix2pixcc",
        "adversarial",
        (0.5, 1.0),
        lambda s: ({}, leaking(s)),
        ("gradients",),
    ),
    Fault(
        "norms measured after the clip",
        "fno",
        "gradients",
        (1.0, 0.05),
        lambda s: ({"optimizer.clip_norm": s}, optimizer(norm_after_clip)),
    ),
    Fault(
        "weights left out of the optimizer",
        "vit3d",
        "gradients",
        ("block_1", "head"),
        lambda s: ({}, left_out(s)),
        ("overfit",),
    ),
    Fault(
        "position table not in the optimizer",
        "vit3d-linear",
        "gradients",
        ("position",),
        lambda s: ({}, left_out(s)),
    ),
    Fault(
        "schedule that never reaches its maximum",
        "fno",
        "schedule",
        (0.8, 0.1),
        lambda s: ({}, lowered(s)),
        EVERYTHING_LATER,
    ),
    Fault(
        "cycle longer than the run",
        "vnet",
        "schedule",
        (500, 5000),
        lambda s: (
            {"optimizer.schedule.name": "cyclic", "optimizer.schedule.cyclic.period": s},
            [],
        ),
        EVERYTHING_LATER,
    ),
    Fault(
        "another schedule in the step",
        "fno",
        "schedule",
        (50, 150),
        lambda s: ({}, other_schedule(s)),
        ("state",),
    ),
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
    Fault(
        "EMA decay that never moves", "fno", "state", (0.98, 1.0), lambda s: ({}, still_average(s))
    ),
    Fault(
        "accumulation that drops the last micro-batch",
        "fno",
        "gradients",
        (4, 2),
        last_dropped,
        ("numerics",),
    ),
    Fault("the same random numbers at every step", "vit3d", "state", (0.05, 0.3), same_key),
    Fault(
        "a mean over devices taken twice",
        "fno",
        "numerics",
        (2, 8),
        lambda s: ({}, averaged_twice(s)),
    ),
    Fault(
        "restore that skips the optimizer",
        "fno",
        "state",
        ("counter", "moments"),
        lambda s: ({}, forgetful(s)),
    ),
    Fault(
        "restore that skips the averages",
        "vnet",
        "state",
        ("averages",),
        lambda s: ({}, forgetful(s)),
    ),
    Fault(
        "a step that is not deterministic",
        "fno",
        "state",
        (1e-5, 1e-2),
        lambda s: ({}, random_step(s)),
    ),
    Fault(
        "best checkpoint chosen in the wrong direction",
        "fno",
        "state",
        ("pearson", "vrmse"),
        turned,
    ),
    Fault("one loss term at 98 % of the gradient", "fno", "gradients", (0.01, 1e-4), terms_of),
    Fault(
        "learning rate far too high",
        "fno",
        "lr_range",
        (30.0, 1000.0),
        lambda s: ({"optimizer.learning_rate": 1e-2 * s}, []),
        (
            "overfit",
            "baselines",
            "prediction",
            "numerics",
            "state",
            "structure",
            "spectra",
            "fno",
            "schedule",
            "gradients",
        ),
    ),
    Fault(
        "learning rate far too low",
        "vnet",
        "overfit",
        (1e-4, 1e-6),
        lambda s: ({"optimizer.learning_rate": 2e-3 * s}, []),
        ("prediction", "lr_range"),
    ),
    Fault(
        "clip that takes all of the gradient",
        "fno",
        "gradients",
        (1e-3, 1e-6),
        lambda s: ({"optimizer.clip_norm": s}, []),
    ),
)
