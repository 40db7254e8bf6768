"""Gradients of the real loss: every module gets some, the step reports them as they are and makes
the update of them that the config says, and finite differences confirm them.
"""

from __future__ import annotations

import jax
import numpy as np

from jaxvol.diagnostics import probe, updates
from jaxvol.diagnostics.records import Context
from jaxvol.ops.quasi_newton import SEARCHED
from jaxvol.plots import figures
from jaxvol.types import Params, Result

RANK = 50
NEEDS = ()
MEANING = {
    "dead": (
        "share of the weights that lie in arrays whose gradient is exactly zero for every batch",
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
        "difference between how the first step moved the weights and the update that the config's "
        "rule makes of that gradient at the reported rate, relative",
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
        "one term decides where the weights go: lower its weight or raise the others'",
    ),
    "smallest_share": (
        "smallest share of one loss term in its group's gradient, where there are several",
        "this term does nothing: raise its weight or remove it",
    ),
}
LIMITS = {
    "dead": ("<", 0.0, 0.02),  # share of weights
    "imbalance": ("<", 4.0, 7.0),  # powers of ten
    "norm_error": ("<", 1e-3, 0.02),  # relative
    "frozen": ("<", 0.0, 0.001),  # share of weights
    "update_error": ("<", 0.02, 0.1),  # relative
    "clipped": ("<", 0.9, 0.99),  # share of the norm
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
    terms, parts = probe.terms_of(ctx), probe.term_gradients(ctx)
    first = jax.tree.map(lambda *v: sum(v) / len(parts), *parts)
    # as the loss will be in the last update: a term may have to wait for its weight
    fixed, batch = probe.fixed(ctx, ctx.steps - 1), probe.micro(ctx, 1)[0]
    late = jax.device_get(probe.jacobian(ctx)(ctx.state.params, fixed, batch, probe.key(ctx)))
    gradients = [probe.group_gradients(ctx, of_terms, terms) for of_terms in (first, late)]
    table, metrics = by_module(gradients), shares(ctx, late, terms)
    norms = [row["rms gradient"] for row in table if row["rms gradient"] > 0]
    total = sum(row["weights"] for row in table)
    state, history = probe.short_run(ctx)
    expected = updates.textbook(ctx, gradients[0], history[0])
    reported = updates.norm_error(history[0], gradients[0])
    metrics |= {
        "dead": sum(row["dead weights"] for row in table) / total,
        "imbalance": float(np.log10(max(norms) / min(norms))) if norms else np.inf,
        "norm_error": max(reported, updates.reported_error(ctx)),
        "slope_error": slope_error(ctx, probe.group_gradients(ctx, parts[0], terms)),
        "frozen": updates.frozen(ctx, gradients, state, expected),
        "update_error": updates.update_error(ctx, gradients[0], expected),
    }
    groups = [g for g in ctx.state.params if f"{g}/grad_norm" in history[0]]
    metrics["clipped"] = max((clipped(history, g) for g in groups), default=0.0)
    return Result(
        metrics,
        {"gradient per module": table},
        {"gradient norms": draw(history, groups, table)},
    )


def clipped(history: list[dict], group: str) -> float:
    """Median share of a group's gradient norm that clipping took away; 0 where it had none."""
    lost = [
        1 - row[f"{group}/clipped_norm"] / row[f"{group}/grad_norm"]
        for row in history
        if row[f"{group}/grad_norm"] > 0
    ]
    return float(np.median(lost)) if lost else 0.0


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


def shares(ctx: Context, jacobian: dict, terms: list[tuple[str, str]]) -> dict[str, float]:
    """Largest and smallest share of a term in the sum of the norms of its objective's terms, over
    the groups that descend it; nothing where every objective has one term.
    """
    fractions, owner = [], probe.objective_of(ctx)
    for objective in sorted(set(owner.values())):
        moved = [jacobian[group] for group in jacobian if owner.get(group) == objective]
        norms = [
            np.sqrt(
                sum(
                    float((np.asarray(v[j], np.float64) ** 2).sum()) for v in jax.tree.leaves(moved)
                )
            )
            for j, (name, _) in enumerate(terms)
            if name == objective
        ]
        if len(norms) > 1:
            fractions += [norm / max(sum(norms), 1e-30) for norm in norms]
    if not fractions:
        return {}
    return {"largest_share": max(fractions), "smallest_share": min(fractions)}


def slope_error(ctx: Context, gradient: dict) -> float:
    """Central difference of each group's terms along a direction in its parameters, against the
    gradient; worst group.

    Half of the direction is the gradient's own, so that the slope is no small difference of large
    numbers; the best of three step lengths, the longest of which changes the loss by about three
    per cent, far above the rounding of float32.
    """
    rng, params, worst = np.random.default_rng(0), ctx.state.params, 0.0

    def totals(moved: Params) -> dict[str, float]:
        terms = probe.losses(ctx)(moved, probe.fixed(ctx), probe.micro(ctx, 0)[0], probe.key(ctx))
        return {group: float(sum(values.values())) for group, values in terms.items()}

    start, owner = totals(params), probe.objective_of(ctx)
    for group, grad in gradient.items():
        noise = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype), grad)
        steep, wide = (updates.dot(tree, tree) ** 0.5 for tree in (grad, noise))
        along = jax.tree.map(lambda g, n, s=steep, w=wide: g / max(s, 1e-30) + n / w, grad, noise)
        slope, errors = updates.dot(grad, along), []
        for change in (0.03, 0.01, 0.003):
            h = change * abs(start[owner[group]]) / max(abs(slope), 1e-30)
            shifted = [
                jax.tree.map(lambda p, a, step=step: p + step * a, params[group], along)
                for step in (h, -h)
            ]
            ahead, behind = (
                totals({**params, group: weights})[owner[group]] for weights in shifted
            )
            errors.append(abs((ahead - behind) / (2 * h) - slope) / max(abs(slope), 1e-30))
            # close enough: the other lengths would only tell how much closer
            if errors[-1] < 1e-3:
                break
        worst = max(worst, min(errors))
    return worst


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
