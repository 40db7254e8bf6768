"""Faults that were written after the limits of the checks had been frozen: how well the checks do
on what they were not made for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.data import pipeline
from jaxvol.models import layers, vnet
from jaxvol.ops import adversarial
from jaxvol.tasks import scoring
from jaxvol.training import averages, optim
from launch.campaigns.planted import Fault, replaced
from launch.campaigns.planted.data import source
from launch.campaigns.planted.training import optimizer


def tailed(power: float):
    """The input's normaliser leaves a tail: values are raised to a power."""

    def make(normalised):
        def faulty(example, spec, dtype):
            example = normalised(example, spec, dtype)
            x = example["input"]
            return {**example, "input": (np.sign(x) * np.abs(x) ** power).astype(dtype)}

        return faulty

    return {}, [replaced(pipeline, "_normalise", make)]


def unrelated(share: float):
    """Targets that are noise, mixed with the true ones."""

    def change(example, split, index, read):
        noise = np.random.default_rng(index).normal(size=example["target"].shape).astype(np.float32)
        target = example["target"]
        example["target"] = (1 - share) * target + share * noise * target.std()
        return example

    return source(change)


def gate(gain: float):
    """Decoders see the skips only: what comes from the coarse grids is multiplied by `gain`."""
    return {}, [replaced(vnet, "brought", lambda old: lambda *a: gain * old(*a))]


def sign(factor: float):
    """The update goes uphill, or is scaled."""

    def change(update):
        def faulty(grads, state, params, **arguments):
            updates, new = update(grads, state, params, **arguments)
            return jax.tree.map(lambda u: factor * u, updates), new

        return faulty

    return optimizer(change)


def half_batch(share: float):
    """The loss reads the first part of the batch only."""

    def make(terms):
        def faulty(config, spec):
            rows = terms(config, spec)

            def part(value):
                read = max(int(share * value.shape[0]), 1)
                return jnp.where(
                    jnp.arange(value.shape[0]) < read, value * value.shape[0] / read, 0
                )

            return lambda pred, batch: {
                name: part(value) for name, value in rows(pred, batch).items()
            }

        return faulty

    return {}, [replaced(scoring, "terms", make)]


def lazy_generator(group: str):
    """One player of the GAN does not move."""

    def make(build):
        def faulty(config, player, steps):
            rule = build(config, player, steps)

            def still(grads, state, params, **arguments):
                updates, new = rule.update(grads, state, params, **arguments)
                return jax.tree.map(jnp.zeros_like, updates), new

            return rule._replace(update=still) if player == group else rule

        return faulty

    return {}, [replaced(optim, "make", make)]


def wrong_pairs(order: str):
    """The discriminator is shown pairs that are put together wrongly."""

    def make(pair):
        return lambda x, y, balance: (
            pair(y, x, balance) if order == "exchanged" else pair(x, x, balance)
        )

    return {}, [replaced(adversarial, "pair", make)]


def statistics_of_the_batch(statistics: str):
    """Evaluation normalises with the statistics of its batch."""

    def patch(old):
        def faulty(self, x, train):
            if train or self.is_initializing():
                return old(self, x, train)
            mean = x.mean((0, 1, 2, 3))
            return mean, jnp.square(x - mean).mean((0, 1, 2, 3))

        return faulty

    return {}, [replaced(layers.Norm, "running", patch)]


def other_prediction(change):
    """What is scored and returned is change(normalised, physical prediction)."""

    def make(network):
        def faulty(config, spec, model, group):
            predict = network(config, spec, model, group)
            return lambda params, extra, batch: change(*predict(params, extra, batch))

        return faulty

    return {}, [replaced(scoring, "network", make)]


def old_average(lag: int):
    """The averages are updated with the weights of before the step."""

    def make(average):
        def faulty(pair, ema, decay, updates, moved):
            return average(
                jax.tree.map(lambda p, e: e + (p - e) / lag, pair, ema), ema, decay, updates, moved
            )

        return faulty

    return {}, [replaced(averages, "move", make)]


FAULTS = (
    Fault(
        "values with a long tail",
        "fno",
        "data",
        (5.0, 9.0),
        tailed,
        ("numerics", "overfit", "gradients"),
    ),
    Fault(
        "targets that are noise",
        "fno",
        "data",
        (0.9, 1.0),
        unrelated,
        ("baselines", "prediction", "overfit"),
    ),
    Fault("coarse grids cut off", "vnet", "structure", (0.0,), gate, ("gradients", "vnet")),
    Fault(
        "update uphill",
        "fno",
        "gradients",
        (-1.0,),
        sign,
        ("overfit", "lr_range", "baselines", "prediction", "numerics"),
    ),
    Fault(
        "updates of half the size", "fno", "gradients", (0.5, 0.01), sign, ("overfit", "prediction")
    ),
    Fault("half of the batch is read", "fno", "numerics", (0.5,), half_batch, ("gradients",)),
    Fault(
        "generator that does not move",
        "pix2pixcc",
        "gradients",
        ("gen",),
        lazy_generator,
        ("adversarial", "overfit", "prediction"),
    ),
    Fault(
        "wrong pairs for the discriminator",
        "pix2pixcc",
        "adversarial",
        ("exchanged", "input twice"),
        wrong_pairs,
        ("gradients",),
    ),
    Fault(
        "evaluation with the batch's statistics",
        "vnet-batch",
        "structure",
        ("batch",),
        statistics_of_the_batch,
        ("vnet",),
    ),
    Fault(
        "metrics in other units",
        "fno",
        "prediction",
        (0.5, 0.1),
        lambda s: other_prediction(lambda y, physical: (y, s * physical)),
        ("baselines", "state"),
    ),
    Fault(
        "prediction clipped",
        "fno",
        "structure",
        (1.0, 0.3),
        lambda s: other_prediction(lambda y, physical: (jnp.clip(y, -s, s), physical)),
        ("prediction", "overfit"),
    ),
    Fault("averages that lag behind", "fno", "state", (1.5, 10), old_average),
)
