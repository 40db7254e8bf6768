"""What several checks measure with: short runs of the real step, and forward passes with some
blocks taken out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvol.types import Array, Batch, Context, Fixed, Key, Params, TrainState

Path = tuple[str, ...]


def quick() -> dict[str, int] | None:
    """Compiler options of what is called once or twice: optimising it takes longer than it saves.
    (No constant: asking for the
    backend at import would start it before the processes of a run have found each other.)"""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def copy(tree):
    """Arrays of their own, which a step may donate."""
    return jax.tree.map(jnp.copy, tree)


def run(
    ctx: Context, steps: int, batch: Callable[[int], Batch] | None = None
) -> tuple[TrainState, list[dict[str, float]]]:
    """`steps` updates of the real compiled step from the start, and the metrics of each; on the
    run's own batches or others.
    """
    state, batch, history = copy(ctx.state), batch or ctx.batch, []
    for step in range(steps):
        state, metrics = ctx.step(state, batch(step), jnp.int32(step))
        history.append({name: float(value) for name, value in jax.device_get(metrics).items()})
    return state, history


@functools.lru_cache(maxsize=2)
def short_run(ctx: Context) -> tuple[TrainState, list[dict[str, float]]]:
    """The first `preflight.steps` updates of the run, shared by all checks; do not donate what it
    returns.
    """
    return run(ctx, ctx.config.preflight.steps)


def recorded(ctx: Context) -> tuple[list[dict[str, float]], dict[str, list[float]]]:
    """(metrics of the short run, some voxels of example predictions after it); empty where no check
    needed that run.
    """
    if short_run.cache_info().currsize == 0:
        return [], {}
    state, history = short_run(ctx)
    host = ctx.batches(
        "val" if ctx.dataset.sizes["val"] else "train", ctx.config.evaluate.batch_size
    )[0]
    batch = {name: v for name, v in ctx.put(host).items() if name[0] != "_"}
    y = np.asarray(jax.device_get(predict(ctx)(*pair(state, "raw"), batch)), np.float64).reshape(
        len(next(iter(batch.values()))), -1
    )
    return history, {
        f"example {i}": row[:: max(row.size // 16, 1)].tolist() for i, row in enumerate(y[:2])
    }


@functools.lru_cache(maxsize=2)
def predict(ctx: Context) -> Callable[[Params, dict, Batch], Array]:
    """The compiled prediction in normalised units."""
    return jax.jit(ctx.task.predict)


@functools.lru_cache(maxsize=2)
def losses(ctx: Context) -> Callable[[Params, Fixed, Batch, Key], dict[str, dict[str, Array]]]:
    """The compiled loss alone: group -> term -> weighted value."""
    return jax.jit(
        lambda params, fixed, batch, key: ctx.task.loss(params, fixed, batch, key)[0],
        compiler_options=quick(),
    )


def fixed(ctx: Context, step: int = 0) -> Fixed:
    """What the loss of update `step` reads besides the parameters, as at the start."""
    return Fixed(jnp.int32(step), jnp.int32(step), ctx.state.extra, ctx.state.averages["ema"])


def micro(ctx: Context, step: int) -> list[Batch]:
    """The micro-batches of a step, divided as the step divides them."""
    parts = ctx.config.micro_batches
    return [{name: v[i::parts] for name, v in ctx.batch(step).items()} for i in range(parts)]


def terms_of(ctx: Context) -> list[tuple[str, str]]:
    """(group, term) of the loss."""
    terms, _ = jax.eval_shape(
        ctx.task.loss, ctx.state.params, fixed(ctx), ctx.batch(0), jax.random.key(0)
    )
    return [(group, name) for group in sorted(terms) for name in sorted(terms[group])]


@functools.lru_cache(maxsize=2)
def jacobian(ctx: Context) -> Callable[[Params, Fixed, Batch, Key], Params]:
    """The compiled gradients of all terms, in the order of `terms_of`, along a new first axis."""
    names = terms_of(ctx)

    def gradients(params, fixed, batch, key):
        def values(p):
            terms, _ = ctx.task.loss(p, fixed, batch, key)
            return jnp.stack([terms[group][name] for group, name in names])

        found, pull = jax.vjp(values, params)
        # one after the other: a batch of them holds all in memory, and CPUs have no batched
        # products of bfloat16
        return jax.lax.map(lambda one: pull(one)[0], jnp.eye(len(names), dtype=found.dtype))

    return jax.jit(gradients)


def term_gradients(ctx: Context) -> list[Params]:
    """Gradients of all terms at the start, [terms, ...] per leaf, of every micro-batch
    of update 0.
    """
    return [
        jax.device_get(jacobian(ctx)(ctx.state.params, fixed(ctx), part, key(ctx, i)))
        for i, part in enumerate(micro(ctx, 0))
    ]


def group_gradients(found: Params, terms: list[tuple[str, str]]) -> Params:
    """group -> gradient of the sum of its own terms, by its own parameters; `found` as `jacobian`
    gives it.
    """
    return {
        g: jax.tree.map(
            lambda v: sum(v[j] for j, (group, _) in enumerate(terms) if group == g), found[g]
        )
        for g in sorted({group for group, _ in terms})
    }


def key(ctx: Context, part: int = 0) -> Key:
    """The key that update 0 uses for its micro-batch `part`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(ctx.config.seed), 0), part)


def against_itself(
    ctx: Context, params: Params, extra: dict, batch: Batch, noise: float = 0.0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(rows of evaluation where the target is the prediction itself, plus noise of that many
    standard deviations; the prediction).
    """
    clean = {name: v for name, v in batch.items() if name[0] != "_"}
    y = predict(ctx)(params, extra, clean).astype(batch["target"].dtype)
    moved = (
        y + noise * y.std() * jax.random.normal(jax.random.key(0), y.shape, y.dtype) if noise else y
    )
    rows, real = (
        ctx.evaluate(params, extra, {**batch, "target": moved}, jax.random.key(0)),
        np.asarray(batch["_mask"]) > 0,
    )
    return {name: np.asarray(v)[real] for name, v in rows.items()}, np.asarray(y)[real]


def weights_of(ctx: Context) -> dict[str, float]:
    """Named voxel loss of the config -> its weight."""
    return (
        {name: weight for name, weight in ctx.config.task.losses}
        if "losses" in ctx.config.task
        else {}
    )


def learner(ctx: Context) -> str:
    """The parameter group that has the named losses: the network itself, where there are players
    beside it.
    """
    terms = jax.eval_shape(
        ctx.task.loss, ctx.state.params, fixed(ctx), ctx.batch(0), jax.random.key(0)
    )[0]
    return next(
        (group for group in terms if set(terms[group]) & set(weights_of(ctx))), next(iter(terms))
    )


def pair(state: TrainState, weights: str) -> tuple[Params, dict]:
    """(params, extra) that evaluation uses: the averages, or the raw weights."""
    if weights == "raw":
        return state.params, state.extra
    return state.averages["ema"]["params"], {**state.extra, "stats": state.averages["ema"]["stats"]}


def shapes(ctx: Context, depth: int = 1) -> dict[Path, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Submodules that a prediction calls, down to `depth` names below the model, in order: path ->
    shapes of first input and output.
    """
    found: dict[Path, tuple] = {}

    def note(call, arguments, keywords, context):
        y, path = call(*arguments, **keywords), context.module.path
        if context.method_name == "__call__" and 0 < len(path) <= depth:
            found.setdefault(path, (np.shape(arguments[0]), np.shape(jax.tree.leaves(y)[0])))
        return y

    # a new function every time: a cached trace would call nothing
    def traced(params, extra, batch):
        with nn.intercept_methods(note):
            return ctx.task.predict(params, extra, batch)

    jax.eval_shape(traced, ctx.state.params, ctx.state.extra, ctx.batch(0))
    return found


def modules(ctx: Context, depth: int = 1) -> list[Path]:
    """Paths of the submodules that a prediction calls."""
    return list(shapes(ctx, depth))


def gated(
    ctx: Context, paths: list[Path], often: bool = False
) -> Callable[[Params, dict, Batch, Array], Array]:
    """The prediction with a gate per submodule, compiled once: gates [n] of 1 change nothing, a
    gate of 0 replaces the output of its submodule by its input where the shapes agree, and by zero
    where they do not.  often: called so many times that compiling it
    as a whole pays."""

    def forward(params, extra, batch, gates):
        def replace(call, arguments, keywords, context):
            y = call(*arguments, **keywords)
            path = context.module.path
            if context.method_name != "__call__" or path not in paths:
                return y
            gate, x = gates[paths.index(path)] > 0, arguments[0]
            return jax.tree.map(
                lambda v: jnp.where(
                    gate, v, (x if np.shape(x) == v.shape else jnp.zeros_like(v)).astype(v.dtype)
                ),
                y,
            )

        with nn.intercept_methods(replace):
            return ctx.task.predict(params, extra, batch)

    return jax.jit(forward, compiler_options=None if often else quick())


def explained(prediction: Array, target: Array, mask: Array | None = None) -> float:
    """1 - residual variance / variance of the target, over all examples and voxels (1 = perfect, 0
    = the mean).
    """
    weight = (
        np.ones_like(target)
        if mask is None
        else np.broadcast_to(np.asarray(mask) > 0, np.shape(target)).astype(np.float32)
    )
    total = max(float(weight.sum()), 1.0)
    mean = float((weight * target).sum()) / total
    return 1.0 - float((weight * (prediction - target) ** 2).sum()) / max(
        float((weight * (target - mean) ** 2).sum()), 1e-30
    )
