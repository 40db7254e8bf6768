"""Small tasks and datasets whose truths can be written down, for the tests of the core."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.training import assemble, sharding, step
from jaxvol.types import Dataset, Field, Parts, Spec, Task

SPEC = Spec(
    fields={"input": Field(("x",)), "target": Field(("y",))},
    shape=(8, 8, 8),
    spacing=(1.0, 1.0, 1.0),
)


def config(**overrides) -> ConfigDict:
    """The common config, quick, with dotted overrides."""
    chosen = base.common()
    chosen.model, chosen.task, chosen.data = (
        ConfigDict({"name": n}) for n in ("none", "none", "none")
    )
    chosen.total_steps, chosen.log_every, chosen.evaluate.every, chosen.checkpoint.every = (
        12,
        1,
        4,
        4,
    )
    chosen.batch_size, chosen.evaluate.batch_size, chosen.ema_decay, chosen.evaluate.figures = (
        8,
        8,
        0.9,
        False,
    )
    chosen.optimizer.learning_rate = 0.05
    chosen.update_from_flattened_dict({k.replace("__", "."): v for k, v in overrides.items()})
    return chosen.lock()


def regression_task() -> Task:
    """y = a x + b per voxel, with a running statistic; the mean squared error is convex, so its
    optimum is known.
    """

    def init(key, batch):
        return (
            {"net": {"a": jax.random.normal(key, (1, 64)), "b": jnp.zeros((1,))}},
            {"stats": {"net": {"seen": jnp.zeros(())}}},
        )

    def forward(params, x):
        return x * params["net"]["a"].mean() + params["net"]["b"]

    def loss(params, fixed, batch, key):
        error = forward(params, batch["input"]) - batch["target"] + 0.0 * jax.random.normal(key, ())
        seen = 0.5 * fixed.extra["stats"]["net"]["seen"] + 0.5 * batch["input"].mean()
        return {"net": {"mse": jnp.mean(error**2)}}, (
            {"noise": jax.random.normal(key, ())},
            {"stats": {"net": {"seen": seen}}},
        )

    def evaluate(params, extra, batch, key):
        error = (forward(params, batch["input"]) - batch["target"]).reshape(
            batch["input"].shape[0], -1
        )
        return {"vrmse": jnp.sqrt(jnp.mean(error**2, -1))}

    return Task(
        init,
        loss,
        evaluate,
        lambda rows: {"vrmse": float(np.mean(rows["vrmse"]))},
        lambda params, extra, batch: forward(params, batch["input"]),
    )


def game_task() -> Task:
    """Two players with terms that read each other's parameters: gen minimises (g d - 1)^2, disc
    minimises (d - g)^2.
    """

    def init(key, batch):
        return {"gen": jnp.float32(2.0), "disc": jnp.float32(3.0), "frozen": jnp.float32(5.0)}, {}

    def loss(params, fixed, batch, key):
        g, d = params["gen"], params["disc"]
        return {
            "gen": {"adversarial": (g * d - 1) ** 2, "l1": 0.5 * g**2},
            "disc": {"real": (d - g) ** 2},
        }, ({}, {})

    return Task(init, loss, None, None, None)


def batch(step: int, rows: slice, size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([7, step])
    x = rng.normal(size=(size, 8, 8, 8, 1)).astype(np.float32)
    return {"input": x[rows], "target": (2 * x + 0.5)[rows]}


def dataset(size: int = 8, hash: str = "toy") -> Dataset:
    """Endless training batches and one validation batch of y = 2 x + 1/2."""

    def batches(split, count, rows, limit):
        yield {
            **batch(10**6, slice(None), count),
            "_mask": np.ones(count, np.float32),
            "_index": np.arange(count, dtype=np.int32),
        }

    return Dataset(
        SPEC,
        {"train": 64, "val": 4, "test": 4},
        lambda step, rows: batch(step, rows, size),
        lambda start, stop, rows: (batch(s, rows, size) for s in range(start, stop)),
        batches,
        lambda split: ["a", "b", "c", "d"],
        hash,
        lambda: [],
    )


def parts(config, steps: int, task: Task, dataset: Dataset, mesh) -> Parts:
    """What a phase of `steps` updates trains with, as jaxvol/training/assemble.py makes it."""
    example = {
        k: jax.ShapeDtypeStruct((1, *v.shape[1:]), v.dtype)
        for k, v in batch(0, slice(None)).items()
    }

    def init():
        zeros = {k: jnp.zeros(s.shape, s.dtype) for k, s in example.items()}
        groups = jax.eval_shape(task.init, jax.random.key(0), example)[0]
        return step.init(task, assemble.make_optimizers(config, groups, steps), config.seed, zeros)

    shapes = jax.eval_shape(init)
    struct = jax.tree.map(
        lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d),
        shapes,
        sharding.state_shardings(mesh, shapes),
    )
    optimizers = assemble.make_optimizers(config, struct.params, steps)
    compiled = assemble.compiled(config, mesh, task, optimizers, struct)
    return Parts(task, dataset, optimizers, init, struct, *compiled)
