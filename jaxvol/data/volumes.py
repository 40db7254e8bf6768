"""The users' own volumes, example by example, out of any container that jaxvol/data/io/files.py
reads.

layout "stacked": a file holds many examples, [N, D, H, W] with or without a channel axis; "single":
a file is one example. Files are found by globs, or named by a CSV manifest with one row per file
and columns for input, target, mask, group, split. Input and target lie in one file under two keys,
or in two files that are paired by what the wildcards of their globs matched.  A file, and a group,
lies in one split.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import logging
import os
import re

import numpy as np
from ml_collections import ConfigDict

from jaxvol.data import layout, pipeline
from jaxvol.data.io import files
from jaxvol.data.layout import SPLITS
from jaxvol.data.pipeline import Source
from jaxvol.types import Dataset, Spec, UserError

LISTED = 10  # faults that one message lists
WILD = re.compile(r"(\*\*/|\*|\?|\[[^\]]*\])")


def fields() -> ConfigDict:
    """The users' own files (jaxvol/data/volumes.py): HDF5, .npy, .npz, Zarr or NIfTI, found by
    globs or by a CSV manifest.
    """

    def files(channels: tuple) -> ConfigDict:
        return ConfigDict(
            {
                "files": "",  # glob for all splits, seen from root; divided by `split`
                # or a glob per split; all empty (target, mask): in the input's files
                "train": "",
                "val": "",
                "test": "",
                "key": "",  # dataset inside the file; "" = its only one
                "channels": channels,  # names, one per channel
                # scalar | vector (channels in threes: d, h, w) | line_of_sight=<axis 0..2>
                "kind": "scalar",
                "unit": "",  # physical unit of the values, for labels
            }
        )

    config = pipeline.fields()
    config.name = "volumes"
    config.augment = ("cube",)
    config.root = ""  # folder that the globs start from; "" = the current one
    # stacked: a file holds many examples [N, ...] | single: a file is one example
    config.layout = "stacked"
    config.ndim = 3  # spatial axes in the files: 3 | 2 (volumes of depth 1)
    # where there is a channel axis: -1 behind the spatial axes | 0 before them
    config.channel_axis = -1
    config.input = files(("input",))
    config.target = files(("target",))
    # > 0 = observed; no glob and no key = no mask
    config.mask = ConfigDict({"files": "", "train": "", "val": "", "test": "", "key": ""})
    config.manifest = ConfigDict(
        {
            # CSV with a header line and one row per file, instead of the globs
            "path": "",
            # its columns with files; target "" = in the input's file
            "input": "input",
            "target": "target",
            # columns with mask files; with the patient, box, ... that must not cross a split
            "mask": "",
            "group": "",
            "split": "",  # column with train, val or test; "" = by fractions
        }
    )
    config.split = ConfigDict(
        {
            "fractions": (
                0.8,
                0.1,
                0.1,
            ),  # train, val, test, where neither globs nor a column say it
            # groups (files where there are none) | examples (only if neighbours do not overlap)
            "over": "groups",
            "seed": 0,  # of the division
        }
    )
    config.spacing = ()  # voxel size (D, H, W); () = the files' own, else 1
    config.unit = ""  # unit of lengths: "Mpc/h", "mm"
    # a volume wraps along this axis (augment may then have "shift")
    config.periodic = (False, False, False)
    return config


@dataclasses.dataclass(frozen=True)
class Item:
    """The files of one example, or of one stack of examples."""

    name: str
    paths: dict[str, str]  # leaf -> file
    group: str  # what must not cross a split
    split: str  # "" = by fractions


@dataclasses.dataclass(frozen=True)
class Sound:
    """An item whose headers have been checked."""

    item: Item
    leaves: dict[str, tuple[str, str, layout.Axes]]  # leaf -> file, key, axes
    examples: int


def make(config) -> Dataset:
    """Dataset of the users' volumes; UserError naming every file, key or row that does not fit."""
    return pipeline.dataset(source(config), config)


def source(config) -> Source:
    """Find the files, check every header once, divide them among the splits."""
    data = config.data
    layout.check_shape_fields(data)
    layout.check_fractions(data.split.fractions)
    if (
        data.layout not in ("stacked", "single")
        or data.split.over not in ("groups", "examples")
        or data.split.seed < 0
    ):
        raise UserError(
            f"data.layout='{data.layout}', data.split.over='{data.split.over}', "
            f"data.split.seed={data.split.seed}; "
            "expected 'stacked' or 'single', 'groups' or 'examples', and a seed from 0 on"
        )
    fields = {"input": layout.field(data.input), "target": layout.field(data.target)}
    items = from_manifest(data) if data.manifest.path else from_globs(data)
    channels = {leaf: len(field.channels) for leaf, field in fields.items()} | {"mask": 1}
    try:
        sound = check_items(items, data, channels)
        rows = divide_rows(sound, data)
    except UserError as error:
        if not data.manifest.path:
            raise
        # a cell of it may name a file elsewhere
        raise UserError(f"{data.manifest.path}: {error}") from None
    first = sound[0].leaves["input"]
    stacked = data.layout == "stacked"

    def read(split: str, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        entry, example = rows[split][index]
        found = {}
        for leaf, (path, key, axes) in sound[entry].leaves.items():
            piece = axes.index(example, (slice(None),) * 3)
            found[leaf] = axes.arrange(
                files.read(path, key, piece if stacked else None)[() if stacked else piece]
            )
        if "mask" in found:
            found["mask"] = (found["mask"] > 0).astype(np.float32)
        return found

    def names(split: str) -> list[str]:
        return [
            sound[entry].item.name + (f"[{example}]" if stacked else "")
            for entry, example in rows[split]
        ]

    periodic = tuple(bool(p) for p in data.periodic)
    spec = Spec(
        fields=fields,
        shape=first[2].shape,
        spacing=layout.spacing(data.spacing, first[0], first[1]),
        unit=data.unit,
        periodic=periodic,
        wrap=periodic,
    )
    prints = [
        (entry.item.name, leaf, key, files.fingerprint(path))
        for entry in sound
        for leaf, (path, key, _) in sorted(entry.leaves.items())
    ]
    identity = layout.digest(prints, spec, rows, data.layout, data.ndim, data.channel_axis)
    return Source(
        spec=spec,
        sizes={split: len(rows[split]) for split in SPLITS},
        read=read,
        names=names,
        hash=identity,
    )


def from_globs(data) -> list[Item]:
    """Items of the globs in data.input, data.target and data.mask, each `files` for all splits or
    one glob per split.
    """
    items = []
    patterns = _patterns(data.input, "data.input", data.root)
    if not patterns:
        raise UserError(
            "data.input names no files; expected a glob in data.input.files, globs in "
            "data.input.train, val and "
            "test, or a manifest in data.manifest.path"
        )
    others = {
        "target": _patterns(data.target, "data.target", data.root),
        "mask": _patterns(data.mask, "data.mask", data.root),
    }
    for split, pattern in patterns.items():
        found = {"input": _matches(pattern, "data.input")}
        for leaf, given in others.items():
            if given and set(given) != set(patterns):
                raise UserError(
                    f"data.{leaf} has globs for {', '.join(given)} and data.input for "
                    f"{', '.join(patterns)}; "
                    "expected the same, or none where they lie in the input's files"
                )
            if given:
                found[leaf] = _matches(given[split], f"data.{leaf}")
            elif leaf == "target" or data.mask.key:
                found[leaf] = found["input"]
        for leaf, paths in found.items():
            alone = (
                sorted(set(found["input"]) - set(paths)),
                sorted(set(paths) - set(found["input"])),
            )
            if any(alone):
                lines = [
                    f"{len(names)} {one} files have no {other}: "
                    f"{_some(repr(name) for name in names)}"
                    for names, one, other in zip(alone, ("input", leaf), (leaf, "input"))
                    if names
                ]
                raise UserError(
                    "; ".join(lines)
                    + f" (data.input and data.{leaf} are paired by what the wildcards of their "
                    "globs match)"
                )
        for match in sorted(found["input"], key=layout.natural):
            paths = {leaf: by_match[match] for leaf, by_match in found.items()}
            name = os.path.relpath(paths["input"], os.path.expanduser(data.root) or ".")
            items.append(Item(name, paths, paths["input"], "" if split == "files" else split))
    return items


def from_manifest(data) -> list[Item]:
    """Items of a CSV file; its relative paths are relative to its folder.

    UserError for a column or cell that is missing, an unknown split, or a group with rows in two
    splits.
    """
    path = os.path.expanduser(data.manifest.path)
    columns = {
        role: data.manifest[role]
        for role in ("input", "target", "mask", "group", "split")
        if data.manifest[role]
    }
    if any(
        _patterns(settings, name, "")
        for settings, name in ((data.input, "data.input"), (data.target, "data.target"))
    ):
        raise UserError(
            "files are named by globs and by data.manifest.path; expected one of the two"
        )
    if "input" not in columns:
        raise UserError(
            "data.manifest.input is empty; expected the name of the column with the input files"
        )
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            lines, header = list(table), [name for name in table.fieldnames or () if name]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV manifest: {error}") from None
    if missing := [f"'{name}' ({role})" for role, name in columns.items() if name not in header]:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; columns found: {', '.join(header) or 'none'}"
        )
    items, faults = [], []
    for number, line in enumerate(lines, 2):
        cells = {role: (line[name] or "").strip() for role, name in columns.items()}
        if empty := [columns[role] for role, cell in cells.items() if not cell]:
            faults.append(f"line {number} has nothing under {', '.join(empty)}")
        elif cells.get("split", "train") not in SPLITS:
            faults.append(
                f"line {number} has split '{cells['split']}', expected train, val or test"
            )
        else:
            paths = {
                leaf: os.path.join(os.path.dirname(path), os.path.expanduser(cells[leaf]))
                for leaf in ("input", "target", "mask")
                if leaf in cells
            }
            same = ("input", "target", "mask") if data.mask.key else ("input", "target")
            paths = dict.fromkeys(same, paths["input"]) | paths
            items.append(
                Item(
                    cells["input"],
                    paths,
                    cells["group"] if "group" in cells else paths["input"],
                    cells["split"] if "split" in cells else "",
                )
            )
    if faults or not items:
        raise UserError(f"{path}: {_some(faults) or 'no rows; expected one row per file'}")
    return items


def check_items(items: list[Item], data, channels: dict[str, int]) -> list[Sound]:
    """The items whose headers are sound: all of them, or with data.on_error = "skip" all but at
    most data.max_skips.

    Sound: every key is there, input, target and mask have the same examples and volume, that of the
           first sound item, and as
    many channels as they have names.  Otherwise one UserError lists what is not.
    """
    sound, faults, shape = [], [], None
    for item in items:
        try:
            entry = _check_item(item, data, channels)
            found = entry.leaves["input"][2].shape
            if shape not in (None, found):
                raise UserError(
                    f"{item.paths['input']}: found volumes {found}; expected {shape}, as in "
                    f"{sound[0].item.paths['input']}"
                )
        except UserError as fault:
            faults.append(str(fault))
            continue
        shape = found
        sound.append(entry)
    if faults and (data.on_error == "stop" or not sound or len(faults) > data.max_skips):
        mend = (
            "data.on_error='skip' leaves them out"
            if data.on_error == "stop"
            else f"data.max_skips={data.max_skips} would allow fewer"
        )
        raise UserError(
            f"{len(faults)} of {len(items)} files or pairs cannot be used: {_some(faults)}. Mend "
            "or remove them; "
            f"{mend}"
        )
    if faults:
        logging.warning("skipped %d of %d files: %s", len(faults), len(items), _some(faults))
    return sound


def _check_item(item: Item, data, channels: dict[str, int]) -> Sound:
    stacked, leaves = data.layout == "stacked", {}
    for leaf, path in item.paths.items():
        key, shape, _ = files.header(path, data[leaf].key)
        try:
            axes = layout.axes(shape, data.ndim, data.channel_axis, stacked)
        except ValueError as error:
            raise UserError(
                f"{path}, key '{key}': {error}, for data.layout='{data.layout}'"
            ) from None
        if axes.channels != channels[leaf]:
            raise UserError(
                f"{path}, key '{key}': found shape {shape}, which has {axes.channels} channels "
                "(data.channel_axis="
                f"{data.channel_axis}); expected {channels[leaf]}, as data.{leaf} names"
            )
        leaves[leaf] = path, key, axes
    first = leaves["input"]
    for leaf, (path, key, axes) in leaves.items():
        if (axes.examples, axes.shape) != (first[2].examples, first[2].shape):
            raise UserError(
                f"{path}, key '{key}': the {leaf} has {axes.examples} examples of {axes.shape}; "
                "expected "
                f"{first[2].examples} of {first[2].shape}, as the input in {first[0]}, key "
                f"'{first[1]}'"
            )
    return Sound(item, leaves, first[2].examples)


def divide_rows(sound: list[Sound], data) -> dict[str, list[tuple[int, int]]]:
    """split -> (item, example) pairs in order; by the items' own splits, else by fractions over
    groups or over examples.

    UserError when a group or a file lies in two splits (a file shared by val and test only is
    allowed, with a warning).
    """
    every = [(i, example) for i, entry in enumerate(sound) for example in range(entry.examples)]
    if sound[0].item.split:
        homes: dict[str, set[str]] = {}
        for entry in sound:
            homes.setdefault(os.path.realpath(entry.item.paths["input"]), set()).add(
                entry.item.split
            )
            homes.setdefault(entry.item.group, set()).add(entry.item.split)
        crossing = {name: home for name, home in homes.items() if len(home) > 1}
        own_files = {
            name
            for entry in sound
            for name in (os.path.realpath(entry.item.paths["input"]), entry.item.paths["input"])
        }
        if leaks := [
            name
            for name, home in sorted(crossing.items())
            if "train" in home or name not in own_files
        ]:
            raise UserError(
                "a group or file lies in one split only; found in several: "
                + _some(
                    f"'{name}' in {', '.join(s for s in SPLITS if s in homes[name])}"
                    for name in leaks
                )
            )
        if crossing:
            logging.warning(
                "validation and test share files: what is selected on the one is not tested by the "
                "other"
            )
        return {
            split: [pair for pair in every if sound[pair[0]].item.split == split]
            for split in SPLITS
        }
    if data.split.over == "examples":
        parts = layout.divide(
            [f"{k}" for k in range(len(every))], data.split.fractions, data.split.seed, "examples"
        )
        return {split: [every[int(k)] for k in part] for split, part in parts.items()}
    groups = list(dict.fromkeys(entry.item.group for entry in sound))
    parts = layout.divide(groups, data.split.fractions, data.split.seed, "files or groups")
    home = {group: split for split, part in parts.items() for group in part}
    return {
        split: [pair for pair in every if home[sound[pair[0]].item.group] == split]
        for split in SPLITS
    }


def _patterns(settings, name: str, root: str) -> dict[str, str]:
    """split, or "files" for all of them, -> glob; UserError when both are given."""
    given = {split: settings[split] for split in ("files", *SPLITS) if settings[split]}
    if "files" in given and len(given) > 1:
        raise UserError(
            f"{name}.files is given together with {', '.join(s for s in given if s != 'files')}; "
            "expected one glob "
            "for all splits, or one per split"
        )
    return {
        split: os.path.join(os.path.expanduser(root), pattern) for split, pattern in given.items()
    }


def _matches(pattern: str, name: str) -> dict[str, str]:
    """What the wildcards matched -> file; UserError when the glob matches nothing."""
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise UserError(f"{name}: the glob '{pattern}' matches no file, seen from {os.getcwd()}")
    as_regex = {"**/": "((?:.*/)?)", "*": "([^/]*)", "?": "([^/])"}

    def regex(part: str) -> str:
        if part.startswith("[") and WILD.fullmatch(part):
            return f"([{'^' + part[2:-1] if part[1] == '!' else part[1:-1]}])"
        return as_regex[part] if part in as_regex else re.escape(part)

    wanted = re.compile("".join(map(regex, WILD.split(pattern))))
    matched = {path: wanted.fullmatch(path) for path in found}
    return {" ".join(match.groups()) if match else path: path for path, match in matched.items()}


def _some(texts) -> str:
    texts = list(texts)
    return "; ".join(texts[:LISTED]) + (
        f"; and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    )
