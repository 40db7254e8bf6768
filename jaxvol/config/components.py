"""From names in a config to objects: the only place that imports a module by name.

`config.model.name = "fno"` means `jaxvol/models/fno.py`, its function `make(config, spec)`; the
same for tasks and data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxvol.evaluation import tta
from jaxvol.training import checkpoint, optim, sharding, step
from jaxvol.types import Dataset, Params, Spec, Task, TrainState, UserError

HELPERS = {
    "data": {"pipeline", "augment", "layout"},
    "models": {"layers", "discriminator", "coordinates"},
    "tasks": {"scoring"},
    "diagnostics/checks": set(),
}  # modules that are no choices


def choices(room: str) -> list[str]:
    """Names that `config.<room>.name` may have: the files of jaxvol/<room>/."""
    files = (Path(__file__).parents[1] / room).glob("*.py")
    return sorted({f.stem for f in files} - {"__init__"} - HELPERS[room])


def module(room: str, name: str) -> ModuleType:
    """jaxvol/<room>/<name>.py; UserError with the list of known names otherwise."""
    if name not in choices(room):
        raise UserError(
            f"config.{room.rstrip('s')}.name is {name!r}, but jaxvol/{room}/ has "
            f"{', '.join(choices(room))}. "
            f"Use one of these, or add jaxvol/{room}/{name}.py."
        )
    return importlib.import_module(f"jaxvol.{room.replace('/', '.')}.{name}")


def dataset(config: ConfigDict) -> Dataset:
    """The dataset of `config.data`."""
    return module("data", config.data.name).make(config)


def model(config: ConfigDict, spec: Spec):
    """The linen module of `config.model` for this spec."""
    return module("models", config.model.name).make(config, spec)


def task(config: ConfigDict, spec: Spec, transforms: str = "none") -> Task:
    """The task of `config.task` around the model of `config.model`, averaged over `transforms`
    (jaxvol/evaluation/tta.py) for prediction.
    """
    return module("tasks", config.task.name).make(
        config, spec, tta.wrap(model(config, spec), transforms, spec)
    )


def baselines(
    config: ConfigDict, spec: Spec, train_batches
) -> dict[str, tuple[Task, Params, dict]]:
    """Trivial predictors that every table has next to the model, fitted on training batches: name
    -> (task, params, extra).
    """
    return module("tasks", config.task.name).baselines(config, spec, train_batches)


def optimizers(config: ConfigDict, groups, steps: int) -> dict:
    """One optimizer per parameter group, for a phase of `steps` updates."""
    return {group: optim.make(config.optimizer, group, steps) for group in groups}


def example(config: ConfigDict, spec: Spec, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as it looks to the compiler: volumes of the spec's shape, one leaf per field."""
    dtype = jnp.float64 if config.precision == "f64" else jnp.float32
    return {
        name: jax.ShapeDtypeStruct((batch_size, *spec.shape, len(field.channels)), dtype)
        for name, field in spec.fields.items()
    }


def state_template(config: ConfigDict, spec: Spec, steps: int, mesh) -> tuple[Callable, TrainState]:
    """(init: zeros batch -> TrainState, its ShapeDtypeStructs with shardings) for the task of
    `config`.
    """
    learned = task(config, spec)
    batch = example(config, spec, 1)

    def init() -> TrainState:
        zeros = {name: jnp.zeros(s.shape, s.dtype) for name, s in batch.items()}
        groups = jax.eval_shape(learned.init, jax.random.key(0), batch)[0]
        return step.init(learned, optimizers(config, groups, steps), config.seed, zeros)

    shapes = jax.eval_shape(init)
    shardings = sharding.state_shardings(mesh, shapes)
    struct = jax.tree.map(
        lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings
    )
    return init, struct


# May change when a run goes on.  Early stopping and the metric that decides "best" may not: they
# are part of the result.
RUN_ONLY = (
    "total_steps",
    "max_hours",
    "stall_minutes",
    "distributed",
    "log_every",
    "checkpoint.every",
    "checkpoint.keep",
    "evaluate",
    "predict",
    "compare",
    "wandb",
    "resume",
    "profile",
    "mesh",
    "data.num_workers",
    "data.cache_dir",
    "preflight",
)


def flatten(value, prefix: str = "") -> dict:
    """{"a.b": leaf} of nested dicts."""
    if isinstance(value, dict) and value:
        return {
            k: v
            for name, item in value.items()
            for k, v in flatten(item, f"{prefix}.{name}".lstrip(".")).items()
        }
    return {prefix: value}


def shaping(config: ConfigDict) -> dict:
    """{"a.b": leaf} of the fields that shape the result of a run, as JSON has them."""
    return {
        name: leaf
        for name, leaf in flatten(json.loads(config.to_json())).items()
        if not any(name == free or name.startswith(free + ".") for free in RUN_ONLY)
    }


def fingerprint(config: ConfigDict) -> str:
    """Hash of the fields that shape the result of a run and of its length."""
    text = json.dumps({**shaping(config), "total_steps": config.total_steps}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Fields in which a run that goes on would change, as readable lines."""
    was, now = shaping(old), shaping(new)
    absent = "absent"
    return [
        f"{name}: {was[name] if name in was else absent} -> {now[name] if name in now else absent}"
        for name in sorted(was.keys() | now.keys())
        if name not in was or name not in now or was[name] != now[name]
    ]


def tuples(value):
    """JSON's lists back to the tuples they were; dicts below a list stay plain."""
    if isinstance(value, list):
        return tuple(tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: tuples(v) for k, v in value.items()}
    return value


def config_from(text: str) -> ConfigDict:
    """The locked config that `config.to_json()` wrote."""
    return ConfigDict(tuples(json.loads(text))).lock()


def load(
    workdir: str | Path, which: str = "best", kind: str = "ema", transforms: str = "none"
) -> tuple[Callable, ConfigDict, Spec]:
    """(predict, config, spec) of a finished or running training, for Python and notebooks.

    predict: physical input `[B, D, H, W, C]` -> physical prediction `[B, D, H, W, K]`, at any grid
             size the model takes.
    which: best | final | <step>; kind: ema | raw; transforms: see evaluate.tta.  Raises UserError
           if there is no such checkpoint.
    """
    from jaxvol.ops import normalise

    task_, params, extra, config, spec, _ = restore(workdir, which, kind, transforms=transforms)
    run = jax.jit(task_.predict)

    def predict(x: np.ndarray) -> np.ndarray:
        batch = {"input": normalise.forward(spec.fields["input"].normaliser, np.asarray(x))}
        return normalise.inverse(
            spec.fields["target"].normaliser, np.asarray(run(params, extra, batch))
        )

    return predict, config, spec


def today(config: ConfigDict, spec: Spec) -> Spec:
    """A spec from disk in today's words: points of equations were saved as a scalar field before
    there was the kind "coordinates".
    """
    if config.data.name != "collocation":
        return spec
    return dataclasses.replace(
        spec,
        fields={
            **spec.fields,
            "input": dataclasses.replace(spec.fields["input"], kind="coordinates"),
        },
    )


def restore(
    workdir: str | Path, which: str, kind: str, mesh=None, transforms: str = "none"
) -> tuple[Task, Params, dict, ConfigDict, Spec, dict]:
    """(task, params, extra, config, spec, meta) of a checkpoint, with the config and the spec
    stored in it.
    """
    if not (Path(workdir) / "checkpoints").is_dir():
        raise UserError(
            f"{workdir} has no folder checkpoints/: it is not the workdir of a jaxvol run, or "
            "nothing was saved yet."
        )
    store = checkpoint.open_store(workdir, read_only=True)
    _, meta = checkpoint.resolve(store, which)
    config = config_from(meta["config"])
    spec = today(config, Spec.from_json(meta["spec"]))
    if config.precision == "f64":
        jax.config.update("jax_enable_x64", True)
    _, struct = state_template(
        config, spec, meta["steps"], sharding.one_device() if mesh is None else mesh
    )
    params, stats, meta = checkpoint.weights(store, which, checkpoint.as_dict(struct), kind)
    store.manager.close()
    return task(config, spec, transforms), params, {"stats": stats}, config, spec, meta
