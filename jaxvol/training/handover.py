"""The state that a run or a phase begins with: fresh weights, those of other runs, those of the
phase before.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from absl import logging

from jaxvol.config.phases import Phase
from jaxvol.training import averages, checkpoint, transfer
from jaxvol.training.progress import Run
from jaxvol.training.transfer import Source
from jaxvol.types import Extra, Parts, PyTree, TrainState, UserError


def start(parts: Parts) -> TrainState:
    """The state of step 0, each leaf where it belongs."""
    # It runs once: XLA's optimisations would cost ten seconds to compile and save none.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    shardings = jax.tree.map(lambda s: s.sharding, parts.struct)
    return jax.jit(parts.init, out_shardings=shardings, compiler_options=options)()


def load_pretrained(state: TrainState, given: list[Source], partial: bool) -> TrainState:
    """`state` with other weights as parameters and as averages; moments stay those of step 0."""
    if not given:
        return state
    pair = averages.averaged(state.params, state.extra)
    for source in given:
        pair = transfer.transfer(pair, source.pair, source.label, source.groups, partial)
    extra = {**state.extra, "stats": pair["stats"]}
    average = averages.start(state.averages, pair["params"], extra)
    return state.replace(params=pair["params"], extra=extra, averages=average)


def enter(run: Run, before: Phase, phase: Phase, parts: Parts) -> TrainState:
    """The state before the first update of a phase, from `run.state` at the end of the one before.

    Parameters and running statistics pass on by `transfer`; groups that are new start afresh,
    those that the new phase's task does not have are dropped, and both are said.  Averages begin
    at the weights that were taken.  Keys of `extra` that fit are kept.  Moments and schedules
    begin anew, or go on with schedule.span="run" where the optimizer's state is of the same form.
    """
    old = source_state(run, before, phase)
    pair = taken(old, phase)
    if same_form(averages.averaged(parts.struct.params, parts.struct.extra), pair):
        fresh, weights = None, pair
    else:
        fresh = start(parts)
        target = averages.averaged(fresh.params, fresh.extra)
        label = f"phase {before.name!r}"
        weights = transfer.transfer(target, pair, label, (), phase.config.init_partial)
        tell(pair["params"], fresh.params, before, phase)
    extra = kept(old.extra, parts, fresh) | {"stats": weights["stats"]}
    extra["monitor"] = placed(monitor_at(run.state.step), parts.struct.extra["monitor"])
    opt = moments(run.state, weights["params"], parts, phase)
    average = averages.start(parts.struct.averages, weights["params"], extra)
    return TrainState(run.state.step, weights["params"], extra, opt, average)


def monitor_at(step: jax.Array) -> dict[str, jax.Array]:
    """The loop's own part of `extra` at the beginning of a phase (see step.monitor)."""
    return {"value": jnp.float32(jnp.inf), "count": jnp.int32(0), "start": jnp.asarray(step)}


def placed(tree: PyTree, struct: PyTree) -> PyTree:
    """A tree of arrays, each a copy where the struct says that it lies."""
    return jax.tree.map(lambda x, s: jax.device_put(jnp.copy(x), s.sharding), tree, struct)


def source_state(run: Run, before: Phase, phase: Phase) -> TrainState:
    """The state that a phase begins with: the end of the phase before, or its best validation."""
    best = run.progress.best_steps.get(before.name)
    if phase.source == "end" or best is None or best == int(run.state.step):
        return run.state
    run.store.manager.wait_until_finished()
    struct = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), run.state
    )
    meta = checkpoint.read_meta(run.store, best)
    tree = checkpoint.read_state(run.store, best, checkpoint.as_dict(struct), meta)
    logging.info("phase %r begins with the best of %r, step %d", phase.name, before.name, best)
    return TrainState(**tree)


def taken(state: TrainState, phase: Phase) -> PyTree:
    """Raw or averaged weights of a state, as `phase.weights` says."""
    if phase.weights == "raw":
        return averages.averaged(state.params, state.extra)
    if phase.weights not in state.averages:
        raise UserError(
            f"phase {phase.name!r} starts from {phase.weights!r}, but the phase before has raw, "
            f"{', '.join(state.averages)}."
        )
    return jax.tree.map(jnp.copy, state.averages[phase.weights])


def same_form(a: PyTree, b: PyTree) -> bool:
    """Whether two trees have the same paths, shapes and types."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.shape == y.shape and x.dtype == y.dtype for x, y in pairs)


def tell(old: dict, new: dict, before: Phase, phase: Phase) -> None:
    """Say which groups of weights begin and which end with a phase."""
    begun, ended = sorted(set(new) - set(old)), sorted(set(old) - set(new))
    logging.info(
        "phase %r: groups that are new: %s; groups that stay behind in phase %r: %s",
        phase.name,
        ", ".join(begun) or "none",
        before.name,
        ", ".join(ended) or "none",
    )


def kept(extra: Extra, parts: Parts, fresh: TrainState | None) -> Extra:
    """What the phase before left in `extra` where it fits the new phase, else the fresh value."""
    struct, values = parts.struct.extra, {}
    for name in struct:
        if name in ("stats", "monitor"):
            continue
        if name in extra and same_form(struct[name], extra[name]):
            values[name] = extra[name]
        else:
            fresh = start(parts) if fresh is None else fresh
            values[name] = fresh.extra[name]
    return values


def moments(state: TrainState, params: dict, parts: Parts, phase: Phase) -> PyTree:
    """Optimizer states at the beginning of a phase."""
    struct = parts.struct.opt
    going_on = phase.config.optimizer.schedule.span == "run"
    if going_on and same_form(struct, state.opt):
        return state.opt
    make = jax.jit(
        lambda p: {group: parts.optimizers[group].init(p[group]) for group in struct},
        out_shardings=jax.tree.map(lambda s: s.sharding, struct),
    )
    return make({group: params[group] for group in struct})


def check(before: Parts, parts: Parts, phase: Phase, name: str) -> None:
    """UserError where the weights of one phase cannot begin the next, found from shapes alone."""
    given = averages.averaged(before.struct.params, before.struct.extra)
    target = averages.averaged(parts.struct.params, parts.struct.extra)
    transfer.check(target, given, f"phase {name!r}", phase.config.init_partial)
    if phase.weights != "raw" and phase.weights not in before.struct.averages:
        raise UserError(
            f"phase {phase.name!r} starts from {phase.weights!r}, but phase {name!r} has raw, "
            f"{', '.join(before.struct.averages)}."
        )
