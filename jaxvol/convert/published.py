"""Weights of published PyTorch models -> jaxvol: a module and its variables, or a workdir.

    module, variables = convert.from_torch("vnet", tensors, config)

The workdir (`import_run`) is that of a run at step 0: `--mode=evaluate`, `--mode=predict` and
`config.init_from` accept it, and training goes on from it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxvol.config import base, components, identity, validate
from jaxvol.convert import cheb_kan, fno, names, pix2pixcc, vit3d, vnet
from jaxvol.runtime import provenance
from jaxvol.training import assemble, checkpoint, progress, sharding, step
from jaxvol.types import Spec, TrainState, UserError

Converted = tuple[nn.Module, dict]
CONVERTERS: dict[str, Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Converted]] = {
    "fno": fno.fno,
    "spectral_conv": fno.spectral_conv,
    "vnet": vnet.vnet,
    "vit3d": vit3d.vit3d,
    "generator": pix2pixcc.generator,
    "discriminator": pix2pixcc.discriminator,
    "cheb_kan": cheb_kan.cheb_kan,
}
# kind -> config file, fields of config.model
NETWORKS: dict[str, tuple[str, Callable[[Mapping[str, Any]], ConfigDict]]] = {
    "fno": ("configs/fno.py", fno.config),
    "vnet": ("configs/vnet.py", vnet.config),
    "vit3d": ("configs/vit3d.py", vit3d.config),
    "generator": ("configs/pix2pixcc.py", pix2pixcc.config),
}


class Hyperparameters(dict):
    """The original's hyper-parameters; one that is needed and absent is the user's mistake."""

    def __missing__(self, name: str) -> Any:
        raise UserError(
            f"the original's hyper-parameters have no {name!r}; found "
            f"{', '.join(map(str, self)) or 'none'}: add it, spelled as in the original's "
            "constructor"
        )


def from_torch(
    kind: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> Converted:
    """(module, variables) that equal a published model.

    module.apply(variables, x) takes x [B, D, H, W, C] to [B, D, H, W, K].

    kind:    one of CONVERTERS
    tensors: original name -> array, in torch's layout (`jaxvol.data.io.weights.read` gives them);
             complex ones may be split in `<name>.real`, `<name>.imag`
    config:  the original's hyper-parameters, spelled as in its constructor
    Raises UserError: unknown kind, unsupported or absent hyper-parameters, tensors that are
    missing, superfluous or misshapen.
    """
    if kind not in CONVERTERS:
        raise UserError(f"there is no converter for {kind!r}; known are {', '.join(CONVERTERS)}")
    try:
        module, variables = CONVERTERS[kind](
            {name: np.asarray(x) for name, x in tensors.items()}, Hyperparameters(config)
        )
    except KeyError as error:
        raise UserError(f"{kind}: the tensor {error} is missing") from error
    return module, jax.tree.map(np.ascontiguousarray, variables)


def import_run(
    kind: str,
    tensors: Mapping[str, np.ndarray],
    original: Mapping[str, Any],
    config: ConfigDict,
    output: Path,
    source: Mapping[str, Any],
) -> str:
    """Make the workdir `output` of a converted network and say what it is.

    config: of a run whose data the network is meant for; its model block is replaced, its task
            becomes regression
    source: goes into <output>/imported.json as it is
    Raises UserError as `from_torch`; when the data have other channels or another size than the
    network takes; when the workdir holds a run already.
    """
    if (output / "config.json").exists() or (output / "checkpoints").exists():
        raise UserError(f"{output} holds a run already; choose another --output or remove it")
    _, variables = from_torch(kind, tensors, original)
    config = run_config(kind, original, config)
    dataset = components.dataset(config)
    state = state_of(config, dataset.spec, variables)
    store = checkpoint.open_store(output, config.checkpoint.keep)
    meta = {
        "config": config.to_json(),
        "config_hash": identity.fingerprint(config),
        "data_hash": dataset.hash,
        "versions": provenance.versions(),
        "phase": 0,
        "phase_name": "",
        "steps": config.total_steps,
        "spec": dataset.spec.to_json(),
        "progress": dataclasses.asdict(progress.Progress(starts=[0])),
    }
    provenance.write_config(output, config)
    checkpoint.save(store, state, meta)
    store.manager.wait_until_finished()
    store.manager.close()
    (output / "imported.json").write_text(
        json.dumps({"kind": kind, "original": dict(original), **source}, indent=1) + "\n"
    )
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    lines = [f"{output}: {kind} with {count:,} parameters, step 0."]
    for name, field in dataset.spec.fields.items():
        chain = " -> ".join(entry["name"] for entry in field.normaliser)
        lines.append(
            f"{name}: {f'{chain}, fitted on the data of the config' if chain else 'no normaliser'}"
        )
    return "\n".join(lines)


def run_config(kind: str, original: Mapping[str, Any], config: ConfigDict) -> ConfigDict:
    """`config` with the model block of the original, one phase, and the task regression.

    Raises UserError that lists the rules it breaks.
    """
    chosen = ConfigDict(config.to_dict())
    chosen.model = NETWORKS[kind][1](Hyperparameters(original))
    if chosen.task.name != "regression":
        task = base.task("regression")
        task.update(
            {name: chosen.task[name] for name in ("metrics", "spectra") if name in chosen.task}
        )
        chosen.task, chosen.phases = task, ()
    validate.validate(chosen)
    return chosen.lock()


def state_of(config: ConfigDict, spec: Spec, variables: dict) -> TrainState:
    """The TrainState of step 0 with these weights in the group "net", raw and averaged."""
    _, struct = assemble.state_template(config, spec, config.total_steps, sharding.one_device())
    template = {
        "params": struct.averages["ema"]["params"]["net"],
        **struct.averages["ema"]["stats"]["net"],
    }
    given, wanted = (
        dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (variables, template)
    )
    text = jax.tree_util.keystr
    names.refuse(
        f"{config.model.name} for the data of --config ({describe(spec)})",
        {
            "missing": [text(path) for path in wanted if path not in given],
            "superfluous": [text(path) for path in given if path not in wanted],
            "of another shape": [
                f"{text(path)}: found {given[path].shape}, expected {wanted[path].shape}"
                for path in wanted
                if path in given and given[path].shape != wanted[path].shape
            ],
        },
        "Choose a --config whose data have the channels, and the size of volume, that the network "
        "was trained on.",
    )
    placed = jax.tree_util.tree_map_with_path(
        lambda path, s: jax.device_put(np.asarray(given[path], s.dtype), s.sharding), template
    )
    params, stats = {"net": placed.pop("params")}, {"net": placed}
    task = dataclasses.replace(
        components.task(config, spec), init=lambda key, batch: (params, {"stats": stats})
    )
    return step.init(
        task, assemble.make_optimizers(config, params, config.total_steps), config.seed, {}
    )


def describe(spec: Spec) -> str:
    """Channels and grid of the data, for errors."""
    inputs, targets = (len(spec.fields[name].channels) for name in ("input", "target"))
    return f"{inputs} -> {targets} channel(s), {'x'.join(map(str, spec.shape))} voxels"
