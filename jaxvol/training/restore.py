"""Weights of a run on disk: its task, parameters, config and spec as they were saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.config import components, identity
from jaxvol.training import assemble, checkpoint, lookup, sharding
from jaxvol.training.transfer import Source
from jaxvol.types import Params, Spec, Task, UserError


def restore(
    workdir: str | Path,
    which: str,
    weights: str,
    mesh: Mesh | None = None,
    wrap: Callable[[Any, Spec], Any] | None = None,
) -> tuple[Task, Params, dict, ConfigDict, Spec, dict]:
    """(task, params, extra, config, spec, meta) of a checkpoint, with the config and the spec
    stored in it.

    which: best | final | <step>; weights: ema | raw; wrap: see `components.task`.
    """
    if not (Path(workdir) / "checkpoints").is_dir():
        raise UserError(
            f"{workdir} has no folder checkpoints/: it is not the workdir of a jaxvol run, or "
            "nothing was saved yet."
        )
    store = checkpoint.open_store(workdir, read_only=True)
    _, meta = lookup.resolve(store, which)
    config = identity.config_from(meta["config"])
    spec = today(config, Spec.from_json(meta["spec"]))
    if config.precision == "f64":
        jax.config.update("jax_enable_x64", True)
    _, struct = assemble.state_template(
        config, spec, meta["steps"], sharding.one_device() if mesh is None else mesh
    )
    params, stats, meta = lookup.weights(store, which, checkpoint.as_dict(struct), weights)
    store.manager.close()
    return components.task(config, spec, wrap), params, {"stats": stats}, config, spec, meta


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


def sources(config: ConfigDict) -> tuple[tuple, ...]:
    """(workdir, checkpoint, weights, groups) of every run whose weights this one begins with.

    `config.init_from` is read with init_checkpoint, averaged weights and init_groups; then come
    `config.init_sources`, of which later ones win where they overlap.
    """
    one = (config.init_from, config.init_checkpoint, "ema", config.init_groups)
    return ((one,) if config.init_from else ()) + tuple(config.init_sources)


def initial(config: ConfigDict, mesh: Mesh) -> list[Source]:
    """The weights that `config.init_from` names, read from their runs."""
    loaded = []
    for workdir, which, weights, groups in sources(config):
        _, params, extra, _, _, meta = restore(workdir, which, weights, mesh)
        label = f"init_from {workdir}, checkpoint {which} (step {meta['step']}), {weights} weights"
        loaded.append(Source(label, {"params": params, "stats": extra["stats"]}, groups))
    return loaded
