"""What is carried from step to step: saved, restored, continued and averaged; and whether
validation uses the weights that the config says.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.training import averages
from jaxvol.types import PyTree, Result, TrainState

RANK = 20
NEEDS = ()
HALF = 3
MEANING = {
    "not_restored": (
        "leaves of the state that a checkpoint does not bring back bit by bit",
        "a restart would go on from something else: the table names the leaves",
    ),
    "resumed": (
        "largest difference between 3 + 3 updates with a restart in between and 6 in a row, "
        "relative",
        "a restarted run would end elsewhere: something random or counted is not in the state",
    ),
    "repeated": (
        "largest difference between the same updates done twice, relative",
        "the step is not deterministic: results cannot be repeated",
    ),
    "ema": (
        "error of the averaged weights against the average of the trajectory, relative to how far "
        "they moved",
        "the EMA does not follow its definition: check ema_decay and what updates it",
    ),
    "same_noise": (
        "1 if every update draws the same random numbers, else 0",
        "dropout, noise or sampled points never change: the key has to be a function of the step",
    ),
    "validated": (
        "difference between the metric that validation reports and that of the weights that "
        "evaluate.weights names, relative",
        "validation, and with it the best checkpoint, uses other weights than the config says",
    ),
    "selected": (
        "1 if a nearly perfect prediction would not become the best one, or a NaN would, else 0",
        "the best checkpoint is the worst: check the direction that checkpoint.best_metric states "
        "where it is defined",
    ),
}
LIMITS = {
    "not_restored": ("<", 0.0, 0.0),  # leaves
    "resumed": ("<", 0.0, 1e-4),  # relative; 0 on CPUs, GPUs may add in another order
    "repeated": ("<", 0.0, 1e-4),  # relative
    "ema": ("<", 1e-3, 0.02),  # relative to the distance moved
    "same_noise": ("<", 0.0, 0.0),  # 1 or 0
    "validated": ("<", 1e-5, 1e-4),  # relative
    "selected": ("<", 0.0, 0.0),  # 1 or 0
}


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """Six updates in a row; and three, a checkpoint, three."""
    straight, trail = trajectory(ctx, ctx.state, 0, 2 * HALF)
    half, again = trajectory(ctx, ctx.state, 0, HALF)
    back = ctx.save_restore(probe.copy(half))
    lost = [
        path
        for path, a, b in leaves(half, back)
        if a.shape != b.shape or not np.array_equal(a, b, equal_nan=True)
    ]
    resumed, _ = trajectory(ctx, back, HALF, HALF)
    metrics = {
        "not_restored": float(len(lost)),
        "resumed": difference(straight, resumed),
        "repeated": difference(trail[HALF - 1], again[HALF - 1]),
        "ema": ema_error(ctx, trail, straight),
        "validated": validated(ctx, straight),
    }
    if (same := same_noise(ctx)) is not None:
        metrics["same_noise"] = same
    if (wrong := selected(ctx, straight)) is not None:
        metrics["selected"] = wrong
    return Result(metrics, {"not restored": [{"leaf": path} for path in lost[:20]]} if lost else {})


def same_noise(ctx: Context) -> float | None:
    """1 if updates 0 and 1 of the same weights on the same batch have the same loss although it is
    random, else 0; None where it is not random.
    """
    batch, loss = ctx.batch(0), probe.losses(ctx)
    one, two = (
        jax.device_get(loss(ctx.state.params, probe.fixed(ctx), batch, jax.random.key(i)))
        for i in range(2)
    )
    if one == two:
        return None
    reported = []
    for step in range(2):
        _, metrics = ctx.step(
            probe.copy(ctx.state).replace(step=jnp.int32(step)), batch, jnp.int32(step)
        )
        reported.append({name: float(v) for name, v in metrics.items() if name.endswith("/loss")})
    return float(reported[0] == reported[1])


def trajectory(ctx: Context, state: TrainState, start: int, steps: int) -> tuple[TrainState, list]:
    """`steps` updates from `state`: the last state, and the parameters after each of them on the
    host.
    """
    state, trail = probe.copy(state), []
    for step in range(start, start + steps):
        state, _ = ctx.step(state, ctx.batch(step), jnp.int32(step))
        trail.append(jax.device_get(state.params))
    return state, trail


def leaves(a: PyTree, b: PyTree) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(path, leaf of a, leaf of b)."""
    return [
        (jax.tree_util.keystr(path), np.asarray(x), np.asarray(y))
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b))
    ]


def difference(a: PyTree, b: PyTree) -> float:
    """Largest difference of a leaf's values, relative to the leaf's largest value."""
    return max(
        (
            float(np.abs(x.astype(np.float64) - y).max() / max(np.abs(x).max(), 1e-30))
            for _, x, y in leaves(a, b)
            if x.size and np.isfinite(x).all()
        ),
        default=0.0,
    )


def ema_error(ctx: Context, trail: list, state: TrainState) -> float:
    """|EMA - its definition| / |its definition - start| over all parameters; the decay at update t
    is min(ema_decay, (1 + t) / (10 + t)).

    A movement below 1e-5 of the weights counts as that much: rounding is not the average's fault.
    """
    top = wrong = 0.0
    average = dict(
        jax.tree_util.tree_leaves_with_path(jax.device_get(state.averages["ema"]["params"]))
    )
    for path, start in jax.tree_util.tree_leaves_with_path(jax.device_get(ctx.state.params)):
        values = [dict(jax.tree_util.tree_leaves_with_path(p))[path] for p in trail]
        mean, moves = np.asarray(start, np.float64), 0
        for before, value in zip([start, *values], values):
            # a group that waits does not tick
            if np.array_equal(before, value) and np.abs(value).max() > 0:
                continue
            decay = min(ctx.config.ema_decay, (1 + moves) / (10 + moves))
            mean, moves = decay * mean + (1 - decay) * value, moves + 1
        ema = average[path].astype(np.float64)
        rounding = 1e-5 * np.asarray(start, np.float64)
        wrong += float(((ema - mean) ** 2).sum())
        top += float(np.maximum(np.square(mean - start), np.square(rounding)).sum())
    return float(np.sqrt(wrong / max(top, 1e-30)))


def validated(ctx: Context, state: TrainState) -> float:
    """Relative difference between what validation reports and the score of the weights that the
    config names.
    """
    if ctx.dataset.sizes["val"] == 0:
        return 0.0
    count, name = ctx.config.preflight.examples, ctx.config.checkpoint.best_metric
    weights = averages.weights_of(state, ctx.config.evaluate.weights)
    expected = ctx.score(*weights, "val", count)[0][name]
    return abs(ctx.validate(state, count)[name] - expected) / max(abs(expected), 1e-30)


def selected(ctx: Context, state: TrainState) -> float | None:
    """0 if training prefers the score of a prediction that misses its target by a thousandth of its
    variation to today's score, and today's to a NaN; else 1; None where the two are equal.
    """
    host = probe.examples(ctx)
    if "target" not in host or not ctx.dataset.sizes["val"]:
        return None
    weights = averages.weights_of(state, ctx.config.evaluate.weights)
    name = ctx.config.checkpoint.best_metric
    perfect = ctx.task.summarize(probe.against_itself(ctx, *weights, ctx.put(host), 1e-3)[0])[name]
    today = ctx.score(*weights, "val", ctx.config.preflight.examples)[0][name]
    if abs(perfect - today) <= ctx.config.early_stopping.min_delta:
        return None
    return float(
        not ctx.better(perfect, today)
        or ctx.better(today, perfect)
        or ctx.better(float("nan"), today)
    )
