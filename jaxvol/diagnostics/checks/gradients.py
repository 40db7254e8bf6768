"""Gradients of the real loss: every module gets some, the step reports them as they are, and finite
differences confirm them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvol.diagnostics import probe
from jaxvol.ops.quasi_newton import SEARCHED
from jaxvol.plots import figures
from jaxvol.types import Context, Params, Result, TrainState

RANK = 50
MEANING = {
    "dead": (
        "share of the weights, in arrays whose gradient is exactly zero for every batch",
        "these parameters do not reach the loss: a branch is cut, multiplied by zero, or never "
        "called",
    ),
    "imbalance": (
        "largest over smallest root-mean-square gradient of the modules, in powers of ten",
        "gradients vanish or explode from block to block: check initialisation, norms and skips",
    ),
    "norm_error": (
        "difference between the gradient norm that the step reports and the gradient's own norm, "
        "relative",
        "the norm is measured after clipping, or of something else: log it before",
    ),
    "frozen": (
        "share of the weights that get a gradient and are not moved by the first updates",
        "these parameters are not part of what the optimizer updates: they keep their random "
        "values",
    ),
    "update_error": (
        "difference between how far the first step moved the weights and the update that the "
        "config's rule makes of that "
        "gradient at the reported rate, relative",
        "the step does not apply the update that it reports: wrong sign or size, or weights that "
        "are left out",
    ),
    "clipped": (
        "median share of the gradient's norm that clipping takes away over the first updates",
        "the clip decides the direction and size of every update: raise optimizer.clip_norm or "
        "lower the loss's scale",
    ),
    "slope_error": (
        "difference between the gradient and a finite difference of the loss along a random "
        "direction, relative",
        "the backward pass does not belong to the forward pass: check custom gradients",
    ),
    "largest_share": (
        "largest share of one loss term in its group's gradient, where there are several",
        "the other terms are decoration: change the weights",
    ),
    "smallest_share": (
        "smallest share of one loss term in its group's gradient, where there are several",
        "this term does nothing: raise its weight or remove it",
    ),
}
# metric -> (side, warn, fail), see jaxvol/config/limits.py
LIMITS = {
    "dead": ("<", 0.0, 0.02),  # share of weights
    "imbalance": ("<", 4.0, 7.0),  # powers of ten
    "norm_error": ("<", 1e-3, 0.02),  # relative
    "update_error": ("<", 0.02, 0.1),  # relative
    "clipped": ("<", 0.9, 0.99),  # share of the norm
    "frozen": ("<", 0.0, 0.001),  # share of weights
    "slope_error": ("<", 0.02, 0.1),  # relative, in float32
    "largest_share": ("<", 0.95, 0.98),  # of the group's gradient
    "smallest_share": (">", 0.01, 0.0),  # of the group's gradient
}


def applies(config) -> bool:
    return config.optimizer.name not in SEARCHED


def prepare(ctx: Context) -> None:
    """The program of all terms' gradients."""
    probe.jacobian(ctx).lower(
        ctx.state.params, probe.fixed(ctx), probe.micro(ctx, 0)[0], probe.key(ctx)
    ).compile()


def diagnose(ctx: Context) -> Result:
    """Gradients at the start on two batches, the norms that the first updates report, and a central
    difference.
    """
    terms, jacobian, parts = probe.terms_of(ctx), probe.jacobian(ctx), probe.term_gradients(ctx)
    first = jax.tree.map(lambda *v: sum(v) / len(parts), *parts)
    # shares at the end of the run: a term may have to wait for its weight
    late = jax.device_get(
        jacobian(
            ctx.state.params,
            probe.fixed(ctx, ctx.steps - 1),
            probe.micro(ctx, 1)[0],
            probe.key(ctx),
        )
    )
    own = [probe.group_gradients(found, terms) for found in (first, late)]
    table, metrics = by_module(own), shares(late, terms)
    norms = [row["rms gradient"] for row in table if row["rms gradient"] > 0]
    total = sum(row["weights"] for row in table)
    state, history = probe.short_run(ctx)
    expected = textbook(ctx, own[0], history[0])
    metrics |= {
        "dead": sum(row["dead weights"] for row in table) / total,
        "imbalance": float(np.log10(max(norms) / min(norms))) if norms else np.inf,
        "norm_error": max(norm_error(history[0], own[0]), reported_error(ctx)),
        "slope_error": slope_error(ctx, probe.group_gradients(parts[0], terms)),
        "frozen": frozen(ctx, own, state, expected),
        "update_error": update_error(ctx, own[0], expected),
    }
    groups = [g for g in ctx.state.params if f"{g}/grad_norm" in history[0]]
    lost = {
        g: [
            1 - row[f"{g}/clipped_norm"] / row[f"{g}/grad_norm"]
            for row in history
            if row[f"{g}/grad_norm"] > 0
        ]
        for g in groups
    }
    metrics["clipped"] = max(
        (float(np.median(values)) for values in lost.values() if values), default=0.0
    )
    return Result(
        metrics,
        {"gradient per module": table},
        {"gradient norms": draw(history, groups, table)},
        absent=tuple(set(MEANING) - set(metrics)),
    )


def by_module(gradients: list[dict]) -> list[dict]:
    """Root-mean-square gradient of every module, and its weights in arrays that never get any."""
    rows: dict[str, list] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients[0]):
        name = "/".join(str(getattr(p, "key", p)) for p in path[:2])
        values = [dict(jax.tree_util.tree_leaves_with_path(g))[path] for g in gradients]
        rows.setdefault(name, []).append(
            (
                leaf.size,
                sum(float((np.asarray(v, np.float64) ** 2).sum()) for v in values),
                all(not np.any(v) for v in values),
            )
        )
    return [
        {
            "module": name,
            "weights": sum(n for n, _, _ in leaves),
            "dead weights": sum(n for n, _, dead in leaves if dead),
            "rms gradient": float(
                np.sqrt(
                    sum(s for _, s, _ in leaves) / sum(n for n, _, _ in leaves) / len(gradients)
                )
            ),
        }
        for name, leaves in rows.items()
    ]


def shares(jacobian: dict, terms: list[tuple[str, str]]) -> dict[str, float]:
    """Largest and smallest share of a term in the sum of the norms of its group's terms."""
    found = []
    for group in sorted({g for g, _ in terms}):
        norms = [
            np.sqrt(
                sum(
                    float((np.asarray(v[j], np.float64) ** 2).sum())
                    for v in jax.tree.leaves(jacobian[group])
                )
            )
            for j, (g, _) in enumerate(terms)
            if g == group
        ]
        if len(norms) > 1:
            found += [norm / max(sum(norms), 1e-30) for norm in norms]
    return {"largest_share": max(found), "smallest_share": min(found)} if found else {}


def norm_error(reported: dict, own: dict) -> float:
    """|reported - own| / own of the first update, worst group."""
    norms = {group: dot(tree, tree) ** 0.5 for group, tree in own.items()}
    return max(
        abs(reported[f"{group}/grad_norm"] - norm) / max(norm, 1e-30)
        for group, norm in norms.items()
    )


def reported_error(ctx: Context) -> float:
    """The same of the optimizers alone, for a gradient of norm 1000 that any clip would cut; worst
    group.
    """
    worst = 0.0
    for group, optimizer in ctx.optimizers.items():
        weight = {"w": jnp.zeros((2, 2))}
        gradient, monitor = (
            {"w": jnp.full((2, 2), 500.0)},
            {"value": jnp.float32(jnp.inf), "count": jnp.int32(0)},
        )
        _, state = optimizer.update(
            gradient,
            optimizer.init(weight),
            weight,
            value=jnp.float32(1),
            grad=gradient,
            value_fn=lambda p: jnp.float32(1),
            monitor=monitor,
        )
        worst = max(worst, abs(float(ctx.readings(state)["grad_norm"]) / 1000.0 - 1))
    return worst


def frozen(ctx: Context, gradients: list[dict], state: TrainState, expected: dict) -> float:
    """Share of the weights, in arrays that get a gradient and an update above rounding, that the
    short run did not move.
    """
    still = total = 0
    for group, updates in expected.items():
        reached = [
            any(np.any(v) for v in leaves)
            for leaves in zip(*(jax.tree.leaves(g[group]) for g in gradients))
        ]
        for got, start, end, update in zip(
            reached, *map(jax.tree.leaves, (ctx.state.params[group], state.params[group], updates))
        ):
            if got and np.any(np.asarray(start) + update != start):
                total += start.size
                still += start.size if np.array_equal(start, end) else 0
    return still / max(total, 1)


def textbook(ctx: Context, gradients: dict, reported: dict) -> dict:
    """group -> the update that optax's rule of the config, as it stands, makes of a gradient at the
    reported rate in the first step.

    Groups that wait for others are left out.
    """
    updates = {}
    for group, gradient in gradients.items():
        if optim_waits(ctx, group):
            continue
        name, clip, fields = rule_of(ctx, group)
        start = jax.device_get(ctx.state.params[group])
        if "weight_decay" in fields:
            fields["mask"] = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)
        rule = optax.chain(
            optax.clip_by_global_norm(clip or np.inf),
            getattr(optax, name)(reported[f"{group}/lr"], **fields),
        )
        updates[group] = jax.device_get(rule.update(gradient, rule.init(start), start)[0])
    return updates


def rule_of(ctx: Context, group: str) -> tuple[str, float, dict]:
    """(name, clip norm, fields) of the config's rule for a group."""
    every, groups = ctx.config.optimizer, ctx.config.optimizer.groups
    own = groups[group] if group in groups else {}
    name = own["name"] if "name" in own else every.name
    return (
        name,
        own["clip_norm"] if "clip_norm" in own else every.clip_norm,
        {**every[name], **(own[name] if name in own else {})},
    )


def update_error(ctx: Context, gradients: dict, expected: dict) -> float:
    """|movement - textbook update| / |textbook update| of the first step, both rounded to the
    weights' precision; worst group.

    Weights whose gradient is below 3 % of the group's root mean square are left out: rules such as
    Adam's use its sign, which rounding decides where it is nearly zero.
    """
    moved, worst = jax.device_get(probe.run(ctx, 1)[0].params), 0.0
    for group, updates in expected.items():
        wrong = size = 0.0
        least = 0.03 * np.sqrt(
            dot(gradients[group], gradients[group])
            / sum(g.size for g in jax.tree.leaves(gradients[group]))
        )
        for g, start, end, update in zip(
            *map(
                jax.tree.leaves, (gradients[group], ctx.state.params[group], moved[group], updates)
            )
        ):
            start, seen = np.asarray(start), np.abs(g) > least
            wanted = (start + update).astype(start.dtype)[seen].astype(np.float64) - start[seen]
            wrong += float(np.square(end[seen].astype(np.float64) - start[seen] - wanted).sum())
            size += float(np.square(wanted).sum())
        worst = max(worst, (wrong / max(size, 1e-30)) ** 0.5)
    return worst


def optim_waits(ctx: Context, group: str) -> bool:
    """Whether a group has a head start of others to wait for."""
    groups = ctx.config.optimizer.groups
    return group in groups and "delay" in groups[group] and groups[group].delay > 0


def slope_error(ctx: Context, gradient: dict) -> float:
    """Central difference of each group's terms along a direction in its parameters, against the
    gradient; worst group.

    Half of the direction is the gradient's own, so that the slope is no small difference of large
    numbers; the best of three step lengths, the longest of which changes the loss by about three
    per cent, far above the rounding of float32.
    """
    rng, params, worst = np.random.default_rng(0), ctx.state.params, 0.0

    def totals(moved: Params) -> dict[str, float]:
        found = probe.losses(ctx)(moved, probe.fixed(ctx), probe.micro(ctx, 0)[0], probe.key(ctx))
        return {group: float(sum(terms.values())) for group, terms in found.items()}

    start = totals(params)
    for group, grad in gradient.items():
        noise = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype), grad)
        steep, wide = dot(grad, grad) ** 0.5, dot(noise, noise) ** 0.5
        along = jax.tree.map(lambda g, n, s=steep, w=wide: g / max(s, 1e-30) + n / w, grad, noise)
        slope, errors = dot(grad, along), []
        for change in (0.03, 0.01, 0.003):
            h = change * abs(start[group]) / max(abs(slope), 1e-30)
            ahead, behind = (
                totals(
                    {
                        **params,
                        group: jax.tree.map(lambda p, a, s=s: p + s * h * a, params[group], along),
                    }
                )[group]
                for s in (1, -1)
            )
            errors.append(abs((ahead - behind) / (2 * h) - slope) / max(abs(slope), 1e-30))
            # close enough: the other lengths would only tell how much closer
            if errors[-1] < 1e-3:
                break
        worst = max(worst, min(errors))
    return worst


def dot(a, b) -> float:
    """Inner product of two trees, in float64."""
    return float(
        sum(
            np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64))
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
        )
    )


def draw(history: list[dict], groups: list[str], table: list[dict]):
    """Norms over the first updates, before and after clipping, and the modules' gradients side by
    side.
    """
    figure = figures.canvas(10.5, 0.9 + max(2.8, 0.24 * len(table)))
    left, right = figure.subplots(1, 2)
    for group, colour in zip(groups, figures.COLOURS):
        left.plot(
            [row[f"{group}/grad_norm"] for row in history],
            color=colour,
            label=f"{group}, before clipping",
        )
        left.plot(
            [row[f"{group}/clipped_norm"] for row in history],
            "--",
            color=colour,
            label=f"{group}, after clipping",
        )
    left.set(xlabel="update", ylabel="norm of the gradient", yscale="log")
    left.legend(fontsize=8)
    names = [row["module"] for row in table]
    right.barh(
        range(len(table)),
        [max(row["rms gradient"], 1e-20) for row in table],
        color=figures.COLOURS[0],
    )
    right.set_yticks(range(len(table)), names, fontsize=7)
    right.invert_yaxis()
    right.set(xlabel="root-mean-square gradient per weight", xscale="log")
    return figure
