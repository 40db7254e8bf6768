"""Who goes to train, val and test: by the user's own word, or by fractions; never into two."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np

from jaxvol.data.manifest import Item, listed, natural
from jaxvol.data.source import SPLITS
from jaxvol.types import UserError


def rows_by_split(
    items: Sequence[Item], examples: Sequence[int], settings
) -> dict[str, list[tuple[int, int]]]:
    """split -> (item, example) pairs in order, by number.

    The items' own splits count where they have some; else `settings` (fractions, over, seed)
    divide groups, or examples.

    examples: how many each item has

    Raises UserError: a group or a file lies in two splits (one that validation and test alone
    share is allowed, with a warning), or there is too little to divide.
    """
    rows = [(i, example) for i, count in enumerate(examples) for example in range(count)]
    if items[0].split:
        _check_apart(items)
        return {split: [row for row in rows if items[row[0]].split == split] for split in SPLITS}
    if settings.over == "examples":
        numbers = [f"{number}" for number in range(len(rows))]
        parts = divide(numbers, settings.fractions, settings.seed, "examples")
        return {split: [rows[int(number)] for number in part] for split, part in parts.items()}
    groups = list(dict.fromkeys(item.group for item in items))
    parts = divide(groups, settings.fractions, settings.seed, "files or groups")
    home = {group: split for split, part in parts.items() for group in part}
    return {split: [row for row in rows if home[items[row[0]].group] == split] for split in SPLITS}


def divide(
    names: Sequence[str], fractions: Sequence[float], seed: int, what: str
) -> dict[str, list[str]]:
    """Each name in one split, by a permutation of the sorted names that depends on the seed only.

    Every split with a positive fraction gets at least one name; a split with fraction 0 stays
    empty.

    what: what the names are, for the UserError of too few names
    """
    fractions = check_fractions(fractions)
    filled = [split for split, fraction in zip(SPLITS, fractions) if fraction > 0]
    if len(names) < len(filled):
        raise UserError(
            f"found {len(names)} {what} for the {len(filled)} splits {', '.join(filled)}; expected "
            "at least one each: add data, set a fraction to 0, or divide by something smaller"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    counts = {split: int(fraction > 0) for split, fraction in zip(SPLITS, fractions)}
    shares = dict(zip(SPLITS, fractions))
    while sum(counts.values()) < len(names):  # the split that lacks most gets the next one
        counts[max(filled, key=lambda split: shares[split] * len(names) - counts[split])] += 1
    ordered, start, parts = sorted(names, key=natural), 0, {}
    for split in SPLITS:
        parts[split] = [ordered[i] for i in sorted(order[start : start + counts[split]])]
        start += counts[split]
    return parts


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Fractions for train, val and test, scaled to sum to 1; UserError unless they are three
    numbers from 0 on, the first positive.
    """
    if (
        len(fractions) != 3
        or min(fractions) < 0
        or fractions[0] <= 0
        or not np.isfinite(sum(fractions))
    ):
        raise UserError(
            f"fractions {tuple(fractions)}; expected three numbers for train, val and test, none "
            "negative, train positive"
        )
    return tuple(float(f) / sum(fractions) for f in fractions)


def _check_apart(items: Sequence[Item]) -> None:
    """UserError where a group or a file of the items lies in training and in another split, or a
    group in any two.
    """
    homes: dict[str, set[str]] = {}  # group or file -> its splits
    inputs = {item.paths["input"] for item in items}
    real = {path: os.path.realpath(path) for path in inputs}
    for item in items:
        homes.setdefault(real[item.paths["input"]], set()).add(item.split)
        homes.setdefault(item.group, set()).add(item.split)
    crossing = {name: splits for name, splits in homes.items() if len(splits) > 1}
    files = inputs | set(real.values())
    leaks = [
        name for name, splits in sorted(crossing.items()) if "train" in splits or name not in files
    ]
    if leaks:
        raise UserError(
            "a group or file lies in one split only; found in several: "
            + listed(
                f"'{name}' in {', '.join(s for s in SPLITS if s in homes[name])}" for name in leaks
            )
        )
    if crossing:
        logging.warning(
            "validation and test share files: what is selected on the one is not tested by the "
            "other"
        )
