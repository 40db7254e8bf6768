"""What the network is, measured from outside: nonlinear, all blocks at work, able to give the
target's values, blind to the other examples of a batch.

Everything is read off predictions with the raw weights of the start, on validation examples.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.training import averages
from jaxvol.types import Result

RANK = 40
NEEDS = ("volumes", "paired")
MEANING = {
    "nonlinearity": (
        "|f(a) + f(b) - f(a + b) - f(0)| relative to |f(a) - f(0)| for two inputs a and b",
        "the model is affine: its activations are missing or switched off",
    ),
    "idle_blocks": (
        "blocks whose removal does not change the output",
        "a block's output is dropped, or its scale is zero for good",
    ),
    "weakest_block": (
        "change of the output when the weakest block is taken out, relative to its variation",
        "a block does next to nothing: check its initialisation and its skip",
    ),
    "range_low": (
        "share of the target below everything that the output layer can give",
        "the output is bounded (ReLU, tanh, norm after the head): use a linear head or another "
        "normaliser",
    ),
    "range_high": (
        "share of the target above everything that the output layer can give",
        "the output is bounded (tanh, norm after the head): use a linear head or another "
        "normaliser",
    ),
    "idle_weights": (
        "share of the weights whose change leaves the output exactly as it was",
        "these parameters are never used: a branch is missing, or a table is not part of the "
        "optimised tree",
    ),
    "batch_leak": (
        "change of an example's output when the others of its batch change, relative to its "
        "variation",
        "examples talk to each other: a mean over the batch, or batch statistics at evaluation",
    ),
    "mode_gap": (
        "change of a prediction from one call to the next, or when the config's dropout is set to "
        "0, relative to its variation",
        "dropout or another random choice is active at evaluation",
    ),
    "position": (
        "difference between the outputs for a shifted periodic input and the shifted output, "
        "relative to its variation",
        "coordinates or patches tell the model where it is, in a box that has no places: augment "
        "with shifts",
    ),
    "reach": (
        "share of the output's voxels that one input voxel can influence",
        "the receptive field is too small for the structures",
    ),
    "pretrained_moved": (
        "difference between the weights of the source and those that training starts from, "
        "relative",
        "pretrained weights are initialised again after they were loaded",
    ),
}
LIMITS = {
    "nonlinearity": (">", 0.01, 1e-3),  # relative
    "idle_blocks": ("<", 0.0, 0.0),  # blocks
    "weakest_block": (">", 1e-4, 1e-8),  # relative
    "range_low": ("<", 0.001, 0.02),  # share of the target's voxels
    "range_high": ("<", 0.001, 0.02),  # share of the target's voxels
    "idle_weights": ("<", 0.0, 0.001),  # share of the weights
    "batch_leak": ("<", 1e-4, 1e-2),  # relative
    "mode_gap": ("<", 1e-5, 1e-3),  # relative
    "position": ("<", 1.0, 1e9),  # relative; a warning only: augmentation can teach it away
    "reach": (">", 0.01, 1e-6),  # share of the voxels
    "pretrained_moved": ("<", 1e-6, 1e-3),  # relative, with init_from only
}


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """All metrics of MEANING; `position` only for periodic boxes, `pretrained_moved` only with
    init_from.
    """
    weights = averages.weights_of(ctx.state, "raw")
    batch = probe.unmarked(ctx.put(probe.examples(ctx)))
    if "input" not in batch or "target" not in batch:
        return Result(skip="the batch has no 'input' and 'target'")

    def f(x) -> np.ndarray:
        return probe.prediction(ctx, weights, {**batch, "input": x})

    x = batch["input"]
    y = f(x)
    scale = max(float(y.std()), 1e-12)
    again, undropped = f(x), without_dropout(ctx, weights, batch)
    metrics = {
        "nonlinearity": nonlinearity(f, x),
        "mode_gap": float(max(np.abs(again - y).max(), np.abs(undropped - y).max())) / scale,
        "reach": reach(f, x),
        **output_range(ctx, batch),
    }
    if len(x) > 1:
        other = jnp.concatenate([x[:1], jnp.flip(x[1:], 2) * 1.5 + 0.3])
        metrics["batch_leak"] = float(np.abs(f(other)[0] - y[0]).max()) / scale
    if any(ctx.spec.periodic):
        sides = zip(x.shape[1:4], ctx.spec.periodic)
        shift = tuple(n // 2 if wraps and n > 2 else 0 for n, wraps in sides)
        difference = f(jnp.roll(x, shift, (1, 2, 3))) - np.roll(y, shift, (1, 2, 3))
        metrics["position"] = float(np.sqrt((difference**2).mean())) / scale
    table = ablation(ctx, probe.modules(ctx), batch, scale)
    if table:
        effects = [row["change"] for row in table]
        metrics |= {
            "idle_blocks": float(sum(e == 0 for e in effects)),
            "weakest_block": min(effects),
        }
    metrics["idle_weights"], idle = idle_weights(ctx, batch)
    if ctx.config.init_from:
        metrics["pretrained_moved"] = pretrained_moved(ctx)
    tables = {"effect of taking out a block": table}
    if idle:
        tables["weights that change nothing"] = [{"weights": name} for name in idle]
    return Result(metrics, tables)


def nonlinearity(f, x) -> float:
    """|f(a) + f(b) - f(a + b) - f(0)| / |f(a) - f(0)| of two real inputs, whose sum is large enough
    to reach the bend of activations; an affine model gives rounding errors.
    """
    a, b = x, jnp.roll(jnp.flip(x, 3), 1, 0)
    zero = f(jnp.zeros_like(x))
    fa = f(a)
    rest = fa + f(b) - f(a + b) - zero
    return float(np.sqrt((rest**2).mean()) / max(np.sqrt(((fa - zero) ** 2).mean()), 1e-30))


def without_dropout(ctx: Context, weights, batch) -> np.ndarray:
    """The prediction of a model without any dropout, which is what evaluation has to give."""
    rates = {
        f"model.{name}": 0.0
        for name in ctx.config.model
        if "dropout" in name and ctx.config.model[name] > 0
    }
    if not rates:
        return probe.prediction(ctx, weights, batch)
    forward = jax.jit(ctx.rebuild_task(rates).predict)
    return np.asarray(jax.device_get(forward(*weights, batch)), np.float64)


def reach(f, x) -> float:
    """Share of the voxels whose output feels one input voxel in the middle, above rounding."""
    middle = (0, *(n // 2 for n in x.shape[1:4]), 0)
    change = np.abs(f(x.at[middle].add(3.0)) - f(x))[0].max(-1)
    return float((change > 1e-5 * max(change.max(), 1e-30)).mean()) if change.max() > 0 else 0.0


def output_range(ctx: Context, batch) -> dict[str, float]:
    """Shares of the target outside of all that the model gives with four sets of random weights,
    ten times as large as those of the start in two of them.
    """
    params, extra = averages.weights_of(ctx.state, "raw")
    forward, target = probe.predict(ctx), np.asarray(batch["target"])
    low, high = np.inf, -np.inf
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    for factor in (1.0, 10.0):
        for _ in range(2):
            tried = [
                v * factor + 0.1 * factor * jnp.asarray(rng.normal(size=v.shape), v.dtype)
                for v in leaves
            ]
            y = np.asarray(forward(jax.tree.unflatten(treedef, tried), extra, batch))
            y = y[np.isfinite(y)]
            low, high = min(low, y.min(initial=np.inf)), max(high, y.max(initial=-np.inf))
    return {"range_low": float((target < low).mean()), "range_high": float((target > high).mean())}


def ablation(ctx: Context, blocks: list, batch, scale: float) -> list[dict]:
    """Change of the output, relative to its variation, when a submodule is replaced by the identity
    or by zero; one row per submodule.
    """
    if not blocks:
        return []
    forward = probe.gated(ctx, blocks, often=len(blocks) > 8)
    weights, all_on = averages.weights_of(ctx.state, "raw"), jnp.ones(len(blocks))
    whole = np.asarray(forward(*weights, batch, all_on), np.float64)
    rows = []
    for i, path in enumerate(blocks):
        without = np.asarray(forward(*weights, batch, all_on.at[i].set(0)), np.float64)
        change = float(np.sqrt(((without - whole) ** 2).mean())) / scale
        rows.append({"block": "/".join(path), "change": change})
    return rows


def idle_weights(ctx: Context, batch) -> tuple[float, list[str]]:
    """(share of the weights that lie in arrays whose change leaves the output as it was, names of
    these arrays).

    Only arrays without a derivative of the output along a random cotangent are tried.
    """
    params, extra = averages.weights_of(ctx.state, "raw")

    def total(p, cotangent):
        return jnp.vdot(ctx.task.predict(p, extra, batch), cotangent)

    shape = jax.eval_shape(ctx.task.predict, params, extra, batch)
    rng = np.random.default_rng(1)
    grads = jax.jit(jax.grad(total), compiler_options=probe.quick())(
        params, jnp.asarray(rng.normal(size=shape.shape), shape.dtype)
    )
    predicting = predicting_groups(ctx, grads)
    silent = [
        path
        for path, leaf in jax.tree_util.tree_leaves_with_path(predicting)
        if not np.any(np.asarray(leaf))
    ]
    idle = really_idle(ctx, batch, silent)
    total = sum(leaf.size for leaf in jax.tree.leaves(predicting))
    share = sum(size for _, size in idle) / max(total, 1)
    return share, [jax.tree_util.keystr(path) for path, _ in idle]


def really_idle(ctx: Context, batch, silent: list) -> list[tuple]:
    """(path, size) of those of the arrays at the paths `silent` whose change by noise does not
    change the output.
    """
    params, extra = averages.weights_of(ctx.state, "raw")
    whole, rng, idle = probe.prediction(ctx, (params, extra), batch), np.random.default_rng(2), []
    for path in silent:
        leaf = dict(jax.tree_util.tree_leaves_with_path(params))[path]
        moved = leaf + jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
        other = jax.tree_util.tree_map_with_path(
            lambda at, v, path=path, moved=moved: moved if at == path else v, params
        )
        if np.array_equal(whole, probe.prediction(ctx, (other, extra), batch)):
            idle.append((path, leaf.size))
    return idle


def predicting_groups(ctx: Context, grads: dict) -> dict:
    """Groups with any influence on the prediction (a discriminator has none by design), or all."""
    predicting = {
        group: tree
        for group, tree in grads.items()
        if any(np.any(np.asarray(v)) for v in jax.tree.leaves(tree))
    }
    return predicting or grads


def pretrained_moved(ctx: Context) -> float:
    """Largest relative difference between the state's parameters and the averages that were loaded
    with them; 1 where the parameters are those of a fresh start.
    """
    pairs = zip(
        jax.tree.leaves(ctx.state.params), jax.tree.leaves(ctx.state.averages["ema"]["params"])
    )
    same = max(float(jnp.abs(a - b).max() / jnp.maximum(jnp.abs(b).max(), 1e-30)) for a, b in pairs)
    fresh = zip(jax.tree.leaves(ctx.state.params), jax.tree.leaves(ctx.init().params))
    untouched = all(bool((a == b).all()) for a, b in fresh)
    return 1.0 if untouched else same
