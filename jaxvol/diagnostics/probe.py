"""What several checks measure with: short runs of the real step, predictions, gradients of single
loss terms, and forward passes with some blocks taken out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvol.diagnostics.records import Context
from jaxvol.training import averages
from jaxvol.training.gradients import objectives
from jaxvol.types import Array, Batch, Extra, Fixed, Key, Params, TrainState

Path = tuple[str, ...]


def quick() -> dict[str, int] | None:
    """Compiler options of what is called once or twice: optimising it takes longer than it saves.

    No constant: asking for the backend at import would start it before the processes of a run have
    found each other.
    """
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def copy(tree):
    """Arrays of their own, which a step may donate."""
    return jax.tree.map(jnp.copy, tree)


def run(
    ctx: Context, steps: int, batch: Callable[[int], Batch] | None = None
) -> tuple[TrainState, list[dict[str, float]]]:
    """`steps` updates of the real compiled step from the start, on the run's batches or others: the
    state that they reach, and the metrics of each.
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
    y = prediction(ctx, averages.weights_of(state, "raw"), ctx.put(examples(ctx)))[:2]
    voxels = [row[:: max(row.size // 16, 1)].tolist() for row in y.reshape(len(y), -1)]
    return history, {f"example {i}": values for i, values in enumerate(voxels)}


def split(ctx: Context) -> str:
    """The split whose examples checks look at: validation, or training where there is none."""
    return "val" if ctx.dataset.sizes["val"] else "train"


def examples(ctx: Context) -> dict[str, np.ndarray]:
    """The first evaluation batch of that split, on the host, padding marked by `_mask`."""
    return ctx.batches(split(ctx), ctx.config.evaluate.batch_size)[0]


def unmarked(batch: Batch) -> Batch:
    """What a model may see of an evaluation batch: not the marks `_mask` and `_index`."""
    return {name: leaf for name, leaf in batch.items() if not name.startswith("_")}


@functools.lru_cache(maxsize=2)
def predict(ctx: Context) -> Callable[[Params, dict, Batch], Array]:
    """The compiled prediction in normalised units."""
    return jax.jit(ctx.task.predict)


def prediction(ctx: Context, weights: tuple[Params, Extra], batch: Batch) -> np.ndarray:
    """The prediction for a batch in normalised units, float64 on the host."""
    return np.asarray(jax.device_get(predict(ctx)(*weights, unmarked(batch))), np.float64)


@functools.lru_cache(maxsize=2)
def losses(ctx: Context) -> Callable[[Params, Fixed, Batch, Key], dict[str, dict[str, Array]]]:
    """The compiled loss alone: group -> term -> weighted value."""
    return jax.jit(
        lambda params, fixed, batch, key: ctx.task.loss(params, fixed, batch, key)[0],
        compiler_options=quick(),
    )


def fixed(ctx: Context, step: int = 0) -> Fixed:
    """What the loss of update `step` reads besides the parameters, as at the start."""
    return Fixed(jnp.int32(step), jnp.int32(step), ctx.state.extra, ctx.state.averages)


def micro(ctx: Context, step: int) -> list[Batch]:
    """The micro-batches of a step, divided as the step divides them."""
    parts = ctx.config.micro_batches
    return [{name: v[i::parts] for name, v in ctx.batch(step).items()} for i in range(parts)]


def terms_of(ctx: Context) -> list[tuple[str, str]]:
    """(objective, term) of the loss."""
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

        stacked, pull = jax.vjp(values, params)
        # one after the other: a batch of them holds all in memory, and CPUs have no batched
        # products of bfloat16
        return jax.lax.map(lambda one: pull(one)[0], jnp.eye(len(names), dtype=stacked.dtype))

    return jax.jit(gradients)


def term_gradients(ctx: Context) -> list[Params]:
    """Gradients of all terms at the start, [terms, ...] per leaf; one tree per micro-batch of
    update 0.
    """
    return [
        jax.device_get(jacobian(ctx)(ctx.state.params, fixed(ctx), part, key(ctx, i)))
        for i, part in enumerate(micro(ctx, 0))
    ]


def objective_of(ctx: Context) -> dict[str, str]:
    """Group that is moved -> the objective whose terms it descends."""
    owners = {objective for objective, _ in terms_of(ctx)}
    return {
        group: objective
        for objective, groups in objectives(ctx.task, ctx.state.params).items()
        for group in groups
        if objective in owners
    }


def group_gradients(ctx: Context, gradients: Params, terms: list[tuple[str, str]]) -> Params:
    """group -> gradient of the sum of its objective's terms by its own parameters; `gradients` are
    those of all terms, as `jacobian` gives them.
    """
    rows = {
        group: [j for j, (owner, _) in enumerate(terms) if owner == objective]
        for group, objective in sorted(objective_of(ctx).items())
    }
    return {
        group: jax.tree.map(lambda v, numbers=numbers: sum(v[j] for j in numbers), gradients[group])
        for group, numbers in rows.items()
    }


def key(ctx: Context, part: int = 0) -> Key:
    """The key that update 0 uses for its micro-batch `part`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(ctx.config.seed), 0), part)


def against_itself(
    ctx: Context, params: Params, extra: Extra, batch: Batch, noise: float = 0.0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(rows of evaluation where the target is the prediction itself plus noise of so many of its
    standard deviations, the prediction), without padding.
    """
    y = predict(ctx)(params, extra, unmarked(batch)).astype(batch["target"].dtype)
    target = y
    if noise:
        target = y + noise * y.std() * jax.random.normal(jax.random.key(0), y.shape, y.dtype)
    rows = ctx.evaluate(params, extra, {**batch, "target": target}, jax.random.key(0))
    real = np.asarray(batch["_mask"]) > 0
    return {name: np.asarray(v)[real] for name, v in rows.items()}, np.asarray(y)[real]


def loss_weights(ctx: Context) -> dict[str, float]:
    """Named voxel loss of the config -> its weight."""
    return dict(ctx.config.task.losses) if "losses" in ctx.config.task else {}


def learner(ctx: Context) -> str:
    """The objective that has the named losses: the network's own, where there are other players
    beside it.
    """
    terms = jax.eval_shape(
        ctx.task.loss, ctx.state.params, fixed(ctx), ctx.batch(0), jax.random.key(0)
    )[0]
    named = set(loss_weights(ctx))
    return next((group for group in terms if set(terms[group]) & named), next(iter(terms)))


def learning_group(ctx: Context) -> str:
    """The first parameter group that descends the objective of `learner`."""
    wanted = learner(ctx)
    return next(group for group, objective in objective_of(ctx).items() if objective == wanted)


def shapes(ctx: Context, depth: int = 1) -> dict[Path, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Submodules that a prediction calls, in order and down to `depth` names below the model:
    path -> (shape of the first input, shape of the first output).
    """
    shapes_of: dict[Path, tuple] = {}

    def note(call, arguments, keywords, context):
        y, path = call(*arguments, **keywords), context.module.path
        if context.method_name == "__call__" and 0 < len(path) <= depth:
            shapes_of.setdefault(path, (np.shape(arguments[0]), np.shape(jax.tree.leaves(y)[0])))
        return y

    # a new function every time: a cached trace would call nothing
    def traced(params, extra, batch):
        with nn.intercept_methods(note):
            return ctx.task.predict(params, extra, batch)

    jax.eval_shape(traced, ctx.state.params, ctx.state.extra, ctx.batch(0))
    return shapes_of


def modules(ctx: Context, depth: int = 1) -> list[Path]:
    """Paths of the submodules that a prediction calls."""
    return list(shapes(ctx, depth))


def gated(
    ctx: Context, paths: list[Path], often: bool = False
) -> Callable[[Params, dict, Batch, Array], Array]:
    """The prediction with a gate per submodule, compiled once: (params, extra, batch, gates [n]).

    Gates of 1 change nothing; a gate of 0 replaces the output of its submodule by its input where
    the shapes agree, and by zero where they do not.
    often: it is called so many times that optimising the program pays.
    """

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
    """1 - sum (prediction - target)^2 / sum (target - its mean)^2 over all examples and voxels that
    the mask leaves: 1 = perfect, 0 = the mean.
    """
    weight = np.ones_like(target)
    if mask is not None:
        weight = np.broadcast_to(np.asarray(mask) > 0, np.shape(target)).astype(np.float32)
    mean = float((weight * target).sum()) / max(float(weight.sum()), 1.0)
    residual = float((weight * (prediction - target) ** 2).sum())
    return 1.0 - residual / max(float((weight * (target - mean) ** 2).sum()), 1e-30)
