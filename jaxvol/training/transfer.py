"""Weights of one run or phase into another: by path and shape, and never half in silence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from absl import logging

from jaxvol.types import PyTree, UserError


def rename_groups(
    target: PyTree, given: PyTree, source: str, groups: tuple[tuple[str, str], ...]
) -> PyTree:
    """`given` ({"params" | "stats": {group: tree}}) with its groups called as in `target`; groups:
    ((target name, its name), ...).

    A group that is not named keeps its name.  Raises UserError for a name that does not exist.
    """
    if not groups:
        return given
    for name, theirs in groups:
        if name not in target["params"] or theirs not in given["params"]:
            raise UserError(
                f"config.init_groups has {(name, theirs)!r}, but this run has the groups "
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


def transfer(
    target: PyTree, given: PyTree, source: str, groups: tuple[tuple[str, str], ...] = ()
) -> PyTree:
    """`target` with the leaves of another run's weights where path and shape agree; tells what did
    not.  UserError if none does.

    Both are {"params": {group: tree}, "stats": {group: tree}}; `groups` (config.init_groups) pairs
    groups of different names.
    """
    given = rename_groups(target, given, source, groups)
    offered = dict(jax.tree_util.tree_leaves_with_path(given))
    untouched: list[str] = []

    def take(path, old: jax.Array) -> jax.Array:
        if path in offered and offered[path].shape == old.shape:
            # the step donates it: no alias
            return jax.device_put(jnp.copy(offered[path].astype(old.dtype)), old.sharding)
        untouched.append(jax.tree_util.keystr(path))
        return old

    merged = jax.tree_util.tree_map_with_path(take, target)
    total = len(jax.tree.leaves(target))
    used = total - len(untouched)
    if not used:
        raise UserError(
            f"config.init_from={source!r}: none of its {len(offered)} weights fits the {total} of "
            "this model."
        )
    logging.info(
        "init_from %s: %d of %d weights taken, %d new (%s), %d of the source unused",
        source,
        used,
        total,
        len(untouched),
        ", ".join(untouched[:5]) or "none",
        len(offered) - used,
    )
    return merged
