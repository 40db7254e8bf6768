"""Faults of what moves the weights: losses, gradients, optimizers, schedules and the players of a
GAN.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxvol.tasks import scoring
from jaxvol.training import assemble, gradients, optim, schedules
from launch.campaigns.planted import Fault, replaced


def leaking(share: float):
    """The discriminator descends a share of the generator's terms as well."""

    def faulty(task, params, fixed, batch, key):
        terms, pullback, (metrics, extra) = jax.vjp(
            lambda p: task.loss(p, fixed, batch, key), params, has_aux=True
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

        grads = {group: gradient(group) for group in terms}
        return gradients.Gradients(terms, grads, metrics, extra)

    return {}, [replaced(gradients, "pull_back", lambda old: faulty)]


def optimizer(change):
    """Patch every optimizer: change(update) -> update."""

    def make(build):
        def faulty(config, group, steps):
            rule = build(config, group, steps)
            return rule._replace(update=change(rule.update))

        return faulty

    return {}, [replaced(optim, "make", make)]


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

    def make(build):
        def faulty(config, steps):
            rate = build(config, steps)
            return lambda count: factor * rate(count)

        return faulty

    return {}, [replaced(schedules, "schedule", make)]


def other_schedule(updates: int):
    """The step is ahead of the planned schedule by so many updates."""

    def make(compile_parts):
        def faulty(config, mesh, task, optimizers, state):
            def late(update):
                return lambda grads, s, params, **k: update(
                    grads, s._replace(count=s.count + updates), params, **k
                )

            moved = {group: o._replace(update=late(o.update)) for group, o in optimizers.items()}
            return compile_parts(config, mesh, task, moved, state)

        return faulty

    return {}, [replaced(assemble, "compiled", make)]


def last_dropped(parts: int):
    """Gradient accumulation leaves the last micro-batch out."""

    def make(accumulate):
        def faulty(task, params, fixed, batch, key, n):
            if n == 1:
                return accumulate(task, params, fixed, batch, key, n)
            fewer = {
                name: parts[:-1].reshape(-1, *parts.shape[2:])
                for name, parts in gradients.split(batch, n).items()
            }
            return accumulate(task, params, fixed, fewer, key, n - 1)

        return faulty

    return {"micro_batches": parts, "batch_size": 4}, [replaced(gradients, "accumulate", make)]


def averaged_twice(devices: int):
    """The loss is divided by the number of devices once more."""

    def make(terms):
        def faulty(config, spec):
            rows = terms(config, spec)
            return lambda pred, batch: {
                name: value / devices for name, value in rows(pred, batch).items()
            }

        return faulty

    return {}, [replaced(scoring, "terms", make)]


def terms_of(weight: float):
    """Two losses, of which one has next to no weight."""
    return {"task.losses": (("mse", 1.0), ("l1", weight))}, []


EVERYTHING_LATER = ("overfit", "baselines", "prediction", "lr_range", "spectra")
FAULTS = (
    Fault(
        "generator loss reaching the discriminator",
        "pix2pixcc",
        "adversarial",
        (0.5, 1.0),
        leaking,
        ("gradients",),
    ),
    Fault(
        "norms measured after the clip",
        "fno",
        "gradients",
        (1.0, 0.05),
        lambda s: ({"optimizer.clip_norm": s}, optimizer(norm_after_clip)[1]),
    ),
    Fault(
        "weights left out of the optimizer",
        "vit3d",
        "gradients",
        ("block_1", "head"),
        left_out,
        ("overfit",),
    ),
    Fault(
        "position table not in the optimizer", "vit3d-linear", "gradients", ("position",), left_out
    ),
    Fault(
        "schedule that never reaches its maximum",
        "fno",
        "schedule",
        (0.8, 0.1),
        lowered,
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
    Fault("another schedule in the step", "fno", "schedule", (50, 150), other_schedule, ("state",)),
    Fault(
        "accumulation that drops the last micro-batch",
        "fno",
        "gradients",
        (4, 2),
        last_dropped,
        ("numerics",),
    ),
    Fault("a mean over devices taken twice", "fno", "numerics", (2, 8), averaged_twice),
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
