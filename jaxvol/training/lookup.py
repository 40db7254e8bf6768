"""Which checkpoint a name means, and the weights in it."""

from __future__ import annotations

from jaxvol.training import checkpoint
from jaxvol.training.checkpoint import Store, reason_of
from jaxvol.types import PyTree, UserError


def resolve(store: Store, which: str) -> tuple[int, dict]:
    """(step, meta) of a checkpoint's name: best (of the last phase that was validated),
    best-<phase>, final (the newest) or a step number.

    Raises UserError that names what there is.
    """
    steps = sorted(store.manager.all_steps())
    if not steps:
        raise UserError(
            f"There is no checkpoint in {store.directory}; train first, or name another --workdir."
        )
    newest = sound_meta(store, steps[-1], steps)
    if which == "final":
        return steps[-1], newest
    names = named_steps(newest)
    if which == "best" and "best" not in names:
        return steps[-1], newest  # never evaluated: the newest is all there is
    step = int(which) if checkpoint.is_step(which) else names.get(which)
    if step not in steps:
        raise UserError(
            f"Checkpoint {which!r} is not in {store.directory}, which has the steps {steps}; "
            f"use {', '.join([*names, 'final'])} or one of them."
        )
    return step, sound_meta(store, step, steps)


def named_steps(meta: dict) -> dict[str, int]:
    """{"best": step, "best-<phase>": step, ...} as the newest checkpoint knows them."""
    progress = meta["progress"]
    earlier = progress["best_steps"] if "best_steps" in progress else {}
    names = {f"best-{phase}": step for phase, step in earlier.items()}
    if progress["best_step"] is not None:
        if "phase_name" in meta and meta["phase_name"]:
            names[f"best-{meta['phase_name']}"] = progress["best_step"]
        return {"best": progress["best_step"], **names}
    return {"best": list(earlier.values())[-1], **names} if earlier else names


def sound_meta(store: Store, step: int, steps: list[int]) -> dict:
    """The JSON of a step; UserError with a remedy if it is torn."""
    try:
        return checkpoint.read_meta(store, step)
    except Exception as error:
        raise UserError(
            f"Checkpoint {store.directory}/{step} is not sound: {reason_of(error)}. Choose another "
            f"one of {steps} with config.evaluate.checkpoint, or run the training's command again, "
            "which sets it aside."
        ) from error


def weights(store: Store, which: str, template: dict, name: str) -> tuple[PyTree, PyTree, dict]:
    """(params, stats, meta) of a checkpoint; name: "raw", "ema" or another average of the run.

    Verified; never falls back silently.  Checkpoints of format 1 are read as well.
    """
    step, meta = resolve(store, which)
    if name != "raw" and name not in template["averages"]:
        raise UserError(
            f"config.evaluate.weights is {name!r}, but {store.directory} has raw, "
            f"{', '.join(template['averages'])}."
        )
    if name == "raw":
        part = {"params": template["params"], "extra": {"stats": template["extra"]["stats"]}}
    elif "format" in meta:
        part = {"averages": {name: template["averages"][name]}}
    else:
        part = {"ema": template["averages"]["ema"]}
    try:
        tree = checkpoint.read_state(store, step, part, meta)
    except Exception as error:
        raise UserError(
            f"Checkpoint {store.directory}/{step} cannot be read: {reason_of(error)}. "
            f"Choose another one of {sorted(store.manager.all_steps())}."
        ) from error
    if name == "raw":
        return tree["params"], tree["extra"]["stats"], meta
    pair = tree["averages"][name] if "format" in meta else tree["ema"]
    return pair["params"], pair["stats"], meta
