"""What the first update should do to the weights, by optax itself, against what the step did."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.training import optim
from jaxvol.types import TrainState

# weights whose gradient is below this share of the group's root mean square are not compared
SMALL = 0.03


def dot(a, b) -> float:
    """Inner product of two trees, in float64."""
    return float(
        sum(
            np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64))
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
        )
    )


def textbook(ctx: Context, gradients: dict, reported: dict) -> dict:
    """group -> the update that optax's rule of the config, as it stands, makes of a gradient in the
    first step, at the rate that the step reported.

    Groups that wait for others (`optimizer.groups.<group>.delay`) are left out.
    """
    updates = {}
    for group, gradient in gradients.items():
        settings = optim.settings(ctx.config.optimizer, group)
        if settings.delay > 0:
            continue
        fields = dict(settings[settings.name])
        if "weight_decay" in fields:
            fields["mask"] = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)
        rule = optax.chain(
            optax.clip_by_global_norm(settings.clip_norm or np.inf),
            getattr(optax, settings.name)(reported[f"{group}/lr"], **fields),
        )
        start = jax.device_get(ctx.state.params[group])
        updates[group] = jax.device_get(rule.update(gradient, rule.init(start), start)[0])
    return updates


def update_error(ctx: Context, gradients: dict, expected: dict) -> float:
    """|movement - textbook update| / |textbook update| of the first step, both rounded to the
    weights' precision; worst group.

    Weights whose gradient is nearly zero (SMALL) are left out: rules such as Adam's use its sign,
    which rounding decides there.
    """
    moved, worst = jax.device_get(probe.run(ctx, 1)[0].params), 0.0
    for group, updates in expected.items():
        size = sum(g.size for g in jax.tree.leaves(gradients[group]))
        least = SMALL * np.sqrt(dot(gradients[group], gradients[group]) / size)
        trees = (gradients[group], ctx.state.params[group], moved[group], updates)
        wrong = length = 0.0
        for g, start, end, update in zip(*map(jax.tree.leaves, trees)):
            start, large = np.asarray(start), np.abs(g) > least
            wanted = (start + update).astype(start.dtype)[large].astype(np.float64) - start[large]
            movement = end[large].astype(np.float64) - start[large]
            wrong += float(np.square(movement - wanted).sum())
            length += float(np.square(wanted).sum())
        worst = max(worst, (wrong / max(length, 1e-30)) ** 0.5)
    return worst


def frozen(ctx: Context, gradients: list[dict], state: TrainState, expected: dict) -> float:
    """Share of the weights that the short run, which ended in `state`, did not move: of those in
    arrays that get a gradient and a textbook update above rounding.
    """
    still = total = 0
    for group, updates in expected.items():
        reached = [
            any(np.any(v) for v in leaves)
            for leaves in zip(*(jax.tree.leaves(g[group]) for g in gradients))
        ]
        trees = (ctx.state.params[group], state.params[group], updates)
        for has_gradient, start, end, update in zip(reached, *map(jax.tree.leaves, trees)):
            if has_gradient and np.any(np.asarray(start) + update != start):
                total += start.size
                still += start.size if np.array_equal(start, end) else 0
    return still / max(total, 1)


def norm_error(reported: dict, gradients: dict) -> float:
    """|reported norm - norm| / norm of the first update's gradient, worst group."""
    norms = {group: dot(tree, tree) ** 0.5 for group, tree in gradients.items()}
    return max(
        abs(reported[f"{group}/grad_norm"] - norm) / max(norm, 1e-30)
        for group, norm in norms.items()
    )


def reported_error(ctx: Context) -> float:
    """|reported norm - norm| / norm of the optimizers alone, for a gradient of norm 1000 that any
    clip would cut; worst group.
    """
    worst = 0.0
    weight, gradient = {"w": jnp.zeros((2, 2))}, {"w": jnp.full((2, 2), 500.0)}
    for optimizer in ctx.optimizers.values():
        _, state = optimizer.update(
            gradient,
            optimizer.init(weight),
            weight,
            value=jnp.float32(1),
            grad=gradient,
            value_fn=lambda p: jnp.float32(1),
            monitor={"value": jnp.float32(jnp.inf), "count": jnp.int32(0)},
        )
        worst = max(worst, abs(float(ctx.readings(state)["grad_norm"]) / 1000.0 - 1))
    return worst
