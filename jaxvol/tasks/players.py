"""The terms that two players of an adversarial task descend, and what tells who is winning."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.ops import adversarial, masked
from jaxvol.types import Array, Metrics

Features = adversarial.Features


def generator_terms(
    task: ConfigDict, real: Features, fake: Features, weight: Array
) -> dict[str, Array]:
    """The generator's weighted terms that read the discriminator, [B]; none of weight 0."""
    terms = {}
    if task.weights.adversarial > 0:
        rows = adversarial.generator_loss(task.mode, adversarial.logits(fake))
        terms["adversarial"] = weight * rows
    if task.weights.feature_matching > 0:
        rows = adversarial.feature_matching(fake, real, task.feature_matching_logits)
        terms["feature_matching"] = task.weights.feature_matching * rows
    return terms


def correlation(
    task: ConfigDict, pred: Array, target: Array, mask: Array | None, scope: str = ""
) -> dict[str, Array]:
    """The weighted correlation term, [B]; none if its weight is 0."""
    if task.weights.correlation == 0:
        return {}
    c = task.correlation
    rows = adversarial.correlation(
        pred, target, c.scales, c.kind, scope or c.scope, mask, c.count_padding
    )
    return {"correlation": task.weights.correlation * rows}


def ramped(task: ConfigDict, step: Array) -> Array:
    """The adversarial weight: 0 until step `ramp.start`, then linear over `ramp.steps` steps.

    It is full at once where `ramp.steps` is 0.
    """
    since = step - task.ramp.start + 1
    share = jnp.clip(since / max(task.ramp.steps, 1), 0.0, 1.0)
    return task.weights.adversarial * share.astype(jnp.float32)


def r1(task: ConfigDict, features: Callable[[Array], Features], y: Array, step: Array) -> Array:
    """weight / 2 times E |grad_y D(x, y)|^2 on real pairs, at every k-th step.

    Scalar (Mescheder et al. 2018, arXiv:1801.04406, Eq. 9).  D = sum_s sum_p D_s,p / sqrt(P_s) over
    the P_s patches of scale s: the squared gradient is then the mean over patches of each patch's
    own (as far as these do not overlap), whatever the size of the volume.  The step at which it is
    evaluated counts k times (StyleGAN2, arXiv:1912.04958, section 3.1): the strength does not
    depend on k, and only these steps, chosen by `lax.cond`, pay for the second backward pass.
    """

    def score(image: Array) -> Array:
        return sum(
            jnp.sum(masked.promote(d)) / (d.size / d.shape[0]) ** 0.5
            for d in adversarial.logits(features(image))
        )

    def penalty() -> Array:
        slope = masked.promote(jax.grad(score)(y))
        return 0.5 * task.r1.weight * task.r1.every * jnp.sum(jnp.square(slope)) / y.shape[0]

    return jax.lax.cond(
        step % task.r1.every == 0, penalty, lambda: jnp.zeros_like(masked.promote(y).ravel()[0])
    )


def readings(
    task: ConfigDict, terms: dict[str, dict[str, Array]], real: Features, fake: Features
) -> Metrics:
    """What tells whether the players are balanced; see `make` of adversarial.py."""
    middle = 0.5 * (1 - task.label_smoothing) if task.mode == "lsgan" else 0.0
    metrics = {"disc/d_loss": terms["disc"]["real"] + terms["disc"]["fake"]}
    for name, features, sign in (("real", real, 1), ("fake", fake, -1)):
        scales = [masked.promote(d) for d in adversarial.logits(features)]
        right = [jnp.mean(sign * (d - middle) > 0) for d in scales]
        metrics[f"disc/D_{name}"] = sum(jnp.mean(d) for d in scales) / len(scales)
        metrics[f"disc/accuracy_{name}"] = sum(right) / len(scales)
    total = sum(jnp.abs(value) for value in terms["gen"].values())
    return metrics | {
        f"gen/share_{name}": jnp.abs(value) / jnp.where(total > 0, total, 1)
        for name, value in terms["gen"].items()
    }
