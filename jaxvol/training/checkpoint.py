"""Checkpoints by Orbax, with what Orbax leaves out: a content checksum, a fall-back to the newest
sound step, and names.

One composite per step: `state` (the TrainState) and `meta` (JSON: config, spec, progress,
checksums).  Orbax restores flipped bits without a word, so each leaf's checksum, computed on the
devices before the save, is verified on restore.
Best and final are names, not copies: `best` is the step that the newest checkpoint's progress calls
best.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvol.runtime import processes
from jaxvol.training import checksums
from jaxvol.types import TrainState, UserError

# of what is saved: 1 had one average, `ema`, and the run's config; 2 has `averages` and the phase's
FORMAT = 2


def is_step(name: str) -> bool:
    """Whether a folder is named as the checkpoint of a step is."""
    return name.isascii() and name.isdecimal()


@dataclasses.dataclass
class Keep:
    """Preservation policy: the newest `newest` steps and the best ones of the phases."""

    newest: int
    best: frozenset[int] = frozenset()

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        first = len(checkpoints) - self.newest
        return [i >= first or info.step in self.best for i, info in enumerate(checkpoints)]


@dataclasses.dataclass(frozen=True)
class Store:
    """An open checkpoint folder."""

    manager: ocp.CheckpointManager
    keep: Keep
    directory: Path


def open_store(
    workdir: str | Path, newest: int = 2, read_only: bool = False, alone: bool = False
) -> Store:
    """Open (and make) `<workdir>/checkpoints`; half-written steps of a killed run are removed.

    alone: this process uses it without the others of its run, which all have to open and use it
           together otherwise.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    keep = Keep(newest)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=None if read_only else keep,
        read_only=read_only,
        create=False,
        cleanup_tmp_directories=not read_only,
    )
    if alone and processes.several():
        own = {jax.process_index()}
        options.multiprocessing_options = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes=own, barrier_sync_key_prefix="alone"
        )

    def clean() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Orbax removes them too, but only in the background
        for stale in directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(stale, ignore_errors=True)

    if not read_only:
        clean() if alone else processes.once(clean)
    return Store(ocp.CheckpointManager(directory, options=options), keep, directory)


def steps(workdir: str | Path) -> list[int]:
    """Steps that are saved in a workdir, without opening it."""
    return sorted(int(p.name) for p in (Path(workdir) / "checkpoints").glob("*") if is_step(p.name))


def _seal(meta: dict) -> str:
    return hashlib.sha256(
        json.dumps({k: v for k, v in meta.items() if k != "seal"}, sort_keys=True).encode()
    ).hexdigest()


def save(store: Store, state: TrainState, meta: dict, best: Collection[int] = ()) -> bool:
    """Save `state` under its step, in the background; `best` are steps to preserve.  False if the
    step is there already.
    """
    step = int(state.step)
    if step in store.manager.all_steps():
        return False
    store.keep.best = frozenset(best)
    tree = as_dict(state)
    meta = json.loads(
        json.dumps({**meta, "format": FORMAT, "step": step, "checksums": checksums.checksums(tree)})
    )
    meta["seal"] = _seal(meta)
    done = store.manager.save(
        step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree), meta=ocp.args.JsonSave(meta))
    )
    if not done:
        raise RuntimeError(
            f"Orbax refused to save step {step} in {store.directory} (newer steps: "
            f"{store.manager.all_steps()})"
        )
    return True


def as_dict(state: TrainState) -> dict:
    """The state's fields by name, as they are stored."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def read_meta(store: Store, step: int) -> dict:
    """The verified JSON of one step."""
    meta = store.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    if meta["seal"] != _seal(meta):
        raise ValueError("its JSON was altered after it was written")
    if meta["step"] != step:
        raise ValueError(f"its folder is called {step}, but it holds step {meta['step']}")
    return meta


def read_state(store: Store, step: int, template: dict, meta: dict) -> dict:
    """The leaves of `template` ({"params": ..., ...}: ShapeDtypeStructs with shardings) at `step`,
    checksums verified.
    """
    restore_args = ocp.checkpoint_utils.construct_restore_args(template)
    item = ocp.args.PyTreeRestore(template, restore_args=restore_args, partial_restore=True)
    tree = store.manager.restore(step, args=ocp.args.Composite(state=item))["state"]
    wrong = [
        path
        for path, value in checksums.checksums(tree).items()
        if meta["checksums"].get(path) != value
    ]
    if wrong:
        raise ValueError(
            f"checksum of {wrong[0]}{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''} does "
            "not match"
        )
    return tree


def restore_newest(store: Store, template: Callable[[dict], dict]) -> tuple[dict, dict] | None:
    """(tree, meta) of the newest sound step, or None when there is no checkpoint at all.

    template: (meta) -> tree of ShapeDtypeStructs.  Unsound steps are reported and set aside in
              `corrupt/`, so that their
    numbers can be used again.  Raises UserError when there are checkpoints and none is sound.

    Of several processes the first looks alone for the newest sound step: one that stumbled over a
    torn file of its own while the others read on would leave them waiting.
    """
    if not processes.several():
        return _newest_sound(store, template)

    def look() -> int:
        own = open_store(store.directory.parent, store.keep.newest, alone=True)
        cpu = Mesh(
            np.asarray(jax.local_devices(backend="cpu")[:1]), ("cpu",), axis_types=(AxisType.Auto,)
        )
        here = NamedSharding(cpu, PartitionSpec())
        with jax.set_mesh(cpu):
            newest = _newest_sound(
                own,
                lambda meta: jax.tree.map(
                    lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), template(meta)
                ),
            )
        own.manager.close()
        return -1 if newest is None else newest[1]["step"]

    step = processes.once(look)
    step = processes.agree(-1 if step is None else step)
    store.manager.reload()
    if step < 0:
        return None
    meta = read_meta(store, step)
    return read_state(store, step, template(meta), meta), meta


def _newest_sound(store: Store, template: Callable[[dict], dict]) -> tuple[dict, dict] | None:
    steps = sorted(store.manager.all_steps(), reverse=True)
    for step in steps:
        try:
            meta = read_meta(store, step)
            tree = read_state(store, step, template(meta), meta)
        except UserError:
            raise
        # Orbax, TensorStore and JSON raise many types for the same torn file
        except Exception as error:
            logging.error(
                "CHECKPOINT %s/%d IS NOT SOUND: %s. Trying the one before it.",
                store.directory,
                step,
                reason_of(error),
            )
            continue
        for bad in (s for s in steps if s > step):
            aside = store.directory.parent / "corrupt" / f"{bad}-{time.time_ns()}"
            aside.parent.mkdir(exist_ok=True)
            (store.directory / str(bad)).rename(aside)
        store.manager.reload()
        return tree, meta
    if steps:
        raise UserError(
            f"None of the checkpoints {steps[::-1]} in {store.directory} is sound (reasons above). "
            "Restore the folder from a backup, or start over with --config.resume=fresh."
        )
    return None


def reason_of(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
