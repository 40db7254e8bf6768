"""Three heads on one encoder: a category, a table with unknown entries, two views of other sizes
that a teacher has to agree on; a queue of what was seen; no target, no volumes to predict.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxvol.data import pipeline, source
from jaxvol.types import Field, Spec, Task

QUEUE = 4
SPEC = Spec(
    {
        "scan": Field(("t1",), role="input"),
        "glimpse": Field(("t1",), role="input", shape=(4, 4, 4)),
        "blood": Field(("age", "iron"), "table"),
        "sex": Field(("sex",), "category", class_names=("f", "m")),
    },
    (8, 8, 8),
    (1.0, 1.0, 1.0),
)


def fields():
    config = pipeline.fields()
    config.augment = ()
    return config


def read(split, index, rng):
    own = np.random.default_rng([len(split), index])
    level = own.normal()
    scan = (level + own.normal(size=(8, 8, 8, 1))).astype(np.float32)
    blood = np.array([50 + 10 * level, np.nan if index % 3 else 5.0])
    return {"scan": scan, "glimpse": scan[2:6, 2:6, 2:6], "blood": blood, "sex": int(level > 0)}


def make(config, *rest):
    """The task where a spec and a model are given, else the data set."""
    if rest:
        return task()
    sizes, names = (
        {"train": 16, "val": 8, "test": 8},
        lambda split: [f"{split} {i}" for i in range(16)],
    )
    return pipeline.dataset(source.Source(SPEC, sizes, read, names, "multitask"), config)


def baselines(config, spec, batches):
    return {}


def encode(params, x):
    return jnp.tanh(x.mean((1, 2, 3)) * params["encoder"]["w"])


def task() -> Task:
    def init(key, batch):
        heads = {name: {"w": 0.1 * jnp.ones(4)} for name in ("age", "sex")}
        return {"encoder": {"w": jnp.ones(4)}, **heads}, {"queue": jnp.zeros((QUEUE, 4))}

    def loss(params, fixed, batch, key):
        z = encode(params, batch["scan"])
        teacher = encode(fixed.averages["teacher"]["params"], batch["glimpse"])
        known = batch["blood_known"][:, 0]
        age = jnp.mean(known * (z @ params["age"]["w"] - batch["blood"][:, 0]) ** 2)
        sign = 2.0 * batch["sex"] - 1
        sex = jnp.mean(jnp.log1p(jnp.exp(-sign * (z @ params["sex"]["w"]))))
        queue = jnp.concatenate([fixed.extra["queue"], z])[-QUEUE:]
        agree = jnp.mean((z - jax.lax.stop_gradient(teacher)) ** 2)
        terms = {"fit": {"age": age, "sex": sex, "agree": agree}}
        return terms, ({}, {"queue": jax.lax.stop_gradient(queue)})

    def evaluate(params, extra, batch, key):
        wrong = encode(params, batch["scan"]) @ params["age"]["w"] - batch["blood"][:, 0]
        return {"loss": wrong**2}

    return Task(
        init,
        loss,
        evaluate,
        lambda rows: {"loss": float(np.mean(rows["loss"]))},
        lambda params, extra, batch: encode(params, batch["scan"]),
        objectives={"fit": ("encoder", "age", "sex")},
        averages={"teacher": lambda updates: jnp.float32(0.9)},
        provides=frozenset(("tables", "views")),
    )


def get_config(variant=""):
    from jaxvol.config import base

    config = base.common()
    config.model = ConfigDict({"name": ""})  # the task brings its own
    config.task = ConfigDict({"name": "tests.systems.multitask", "metrics": ("loss",)})
    config.data = base.data("tests.systems.multitask")
    config.batch_size = config.evaluate.batch_size = 8
    config.total_steps, config.log_every = 12, 2
    config.evaluate.every = config.checkpoint.every = 4
    config.checkpoint.best_metric = "loss"
    config.optimizer.learning_rate = 0.05
    config.preflight.steps = 6
    return config
