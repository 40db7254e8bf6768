"""Weights of one run or phase into another: by path and shape, and never half in silence."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from jaxvol.types import PyTree, UserError

LISTED = 6  # leaves that one message lists


class Source(NamedTuple):
    """Weights that a run or a phase begins with."""

    label: str  # in words, for messages
    pair: PyTree  # {"params": {group: tree}, "stats": {group: tree}}
    groups: tuple[tuple[str, str], ...] = ()  # (group of this run, group of that one)


def rename_groups(
    target: PyTree, given: PyTree, source: str, groups: tuple[tuple[str, str], ...]
) -> PyTree:
    """`given` ({"params" | "stats": {group: tree}}) with its groups called as in `target`; groups:
    ((target's name, its name), ...).

    A group that is not named keeps its name.  Raises UserError for a name that does not exist.
    """
    if not groups:
        return given
    for name, theirs in groups:
        if name not in target["params"] or theirs not in given["params"]:
            raise UserError(
                f"The groups of weights {(name, theirs)!r} cannot be paired: this run has "
                f"{', '.join(sorted(target['params']))} and {source} has "
                f"{', '.join(sorted(given['params']))}; expected "
                "pairs (group of this run, group of that run)."
            )
    moved = {theirs for _, theirs in groups}
    return {
        part: {name: tree for name, tree in trees.items() if name not in moved}
        | {name: trees[theirs] for name, theirs in groups if theirs in trees}
        for part, trees in given.items()
    }


def shared_groups(target: PyTree, given: PyTree) -> list[str]:
    """Groups of parameters that both have, in the target's order."""
    return [group for group in target["params"] if group in given["params"]]


def differences(target: PyTree, given: PyTree) -> list[str]:
    """Leaves of the shared groups that do not fit, as readable lines: absent or of another shape.

    Both are {"params": {group: tree}, "stats": {group: tree}} of arrays or ShapeDtypeStructs.
    """
    groups, offered = shared_groups(target, given), shapes(given)
    lines = []
    for path, shape in shapes(target).items():
        if path[1] not in groups:
            continue
        where = "/".join(path)
        if path not in offered:
            lines.append(f"{where} {list(shape)} is not in it")
        elif offered[path] != shape:
            lines.append(f"{where} has {list(offered[path])}, expected {list(shape)}")
    return lines


def shapes(pair: PyTree) -> dict[tuple[str, ...], tuple[int, ...]]:
    """{("params", group, module, ..., leaf): shape} of a pair of parameters and statistics."""
    return {names(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(pair)}


def names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys of a path in a tree as words."""
    return tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def check(target: PyTree, given: PyTree, source: str, partial: bool) -> None:
    """UserError where a transfer would take nothing, or less than it was asked for."""
    if not shared_groups(target, given):
        raise UserError(
            f"{source} has the groups of weights {', '.join(sorted(given['params']))}, none of "
            f"which is in {', '.join(sorted(target['params']))}; pair them with "
            "config.init_groups=((group of this run, group of that run), ...)."
        )
    lines = differences(target, given)
    if lines and not partial:
        raise UserError(
            f"{source} does not fit: {len(lines)} weights differ:\n  - "
            + "\n  - ".join(lines[:LISTED])
            + (f"\n  - and {len(lines) - LISTED} more" if len(lines) > LISTED else "")
            + "\nUse the same model, or take what fits with --config.init_partial=True."
        )


def transfer(
    target: PyTree,
    given: PyTree,
    source: str,
    groups: tuple[tuple[str, str], ...] = (),
    partial: bool = False,
) -> PyTree:
    """`target` with the leaves of other weights in the groups that both have; says what was new.

    Both are {"params": {group: tree}, "stats": {group: tree}}; `groups` pairs groups of different
    names.  Raises UserError when fewer leaves fit than the shared groups have, unless `partial`;
    always when none fits.
    """
    given = rename_groups(target, given, source, groups)
    check(target, given, source, partial)
    offered = dict(jax.tree_util.tree_leaves_with_path(given))
    fresh: list[str] = []

    def take(path, old: jax.Array) -> jax.Array:
        if path in offered and offered[path].shape == old.shape:
            # the step donates it: no alias
            return jax.device_put(jnp.copy(offered[path].astype(old.dtype)), old.sharding)
        fresh.append(jax.tree_util.keystr(path))
        return old

    merged = jax.tree_util.tree_map_with_path(take, target)
    total = len(jax.tree.leaves(target))
    used = total - len(fresh)
    if not used:
        raise UserError(
            f"{source}: none of its {len(offered)} weights fits the {total} of this model."
        )
    logging.info(
        "%s: %d of %d weights taken, %d new (%s), %d of the source unused",
        source,
        used,
        total,
        len(fresh),
        ", ".join(fresh[:5]) or "none",
        len(offered) - used,
    )
    return merged
