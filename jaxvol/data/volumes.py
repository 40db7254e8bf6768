"""The users' own volumes, example by example, out of any container that jaxvol/data/io/files.py
reads.

layout "stacked": a file holds many examples, [N, D, H, W] with or without a channel axis
layout "single":  a file is one example

Files are found by globs, or named by a CSV manifest with one row per file and columns for input,
target, mask, group and split (jaxvol/data/manifest.py).  A file, and a group, lies in one split
(jaxvol/data/splits.py).  Every header is read once, before anything is trained.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from jaxvol.data import layout, manifest, pipeline, splits
from jaxvol.data.io import files
from jaxvol.data.manifest import Item, listed
from jaxvol.data.source import SPLITS, Source, digest
from jaxvol.types import Dataset, Spec, UserError


def fields() -> ConfigDict:
    """The users' own files (jaxvol/data/volumes.py): HDF5, .npy, .npz, Zarr or NIfTI, found by
    globs or by a CSV manifest.
    """
    config = pipeline.fields()
    config.name = "volumes"
    config.augment = ("cube",)
    config.root = ""  # folder that the globs start from; "" = the current one
    # stacked: a file holds many examples [N, ...] | single: a file is one example
    config.layout = "stacked"
    config.ndim = 3  # spatial axes in the files: 3 | 2 (volumes of depth 1)
    # where there is a channel axis: -1 behind the spatial axes | 0 before them
    config.channel_axis = -1
    config.input = _leaf_fields("input")
    config.target = _leaf_fields("target")
    # > 0 = observed; no glob and no key = no mask
    config.mask = ConfigDict({"files": "", "train": "", "val": "", "test": "", "key": ""})
    config.manifest = ConfigDict(
        {
            # CSV with a header line and one row per file, instead of the globs
            "path": "",
            # its columns with files; target "" = in the input's file, mask "" = no mask
            "input": "input",
            "target": "target",
            "mask": "",
            "group": "",  # column with the patient, box, ... that must not cross a split
            "split": "",  # column with train, val or test; "" = by fractions
        }
    )
    config.split = ConfigDict(
        {
            # train, val, test, where neither globs nor a column say it
            "fractions": (0.8, 0.1, 0.1),
            # groups (files where there are none) | examples (only if neighbours do not overlap)
            "over": "groups",
            "seed": 0,  # of the division
        }
    )
    config.spacing = ()  # voxel size (D, H, W); () = the files' own, else 1
    config.unit = ""  # unit of lengths: "Mpc/h", "mm"
    # a volume wraps along this axis (augment may then have "shift")
    config.periodic = (False, False, False)
    # chunks that are missing in HDF5 or Zarr files read as the fill value: warn | error
    config.missing_chunks = "warn"
    return config


def _leaf_fields(channel: str) -> ConfigDict:
    return ConfigDict(
        {
            "files": "",  # glob for all splits, seen from root; divided by `split`
            # or a glob per split; all empty (target, mask): in the input's files
            "train": "",
            "val": "",
            "test": "",
            "key": "",  # dataset inside the file; "" = its only one
            "channels": (channel,),  # names, one per channel
            # scalar | vector (channels in threes: d, h, w) | line_of_sight=<axis 0..2>
            "kind": "scalar",
            "unit": "",  # physical unit of the values, for labels
        }
    )


@dataclasses.dataclass(frozen=True)
class Checked:
    """An item whose headers have been read and fit."""

    item: Item
    leaves: dict[str, tuple[str, str, layout.Axes]]  # leaf -> file, key, axes
    examples: int


def make(config) -> Dataset:
    """Dataset of the users' volumes; UserError naming every file, key or row that does not fit."""
    return pipeline.dataset(source(config), config)


def source(config) -> Source:
    """Find the files, check every header once, divide them among the splits.

    Raises UserError: settings that are none of their choices, and what `manifest`, `check_items`
    and `splits` refuse.
    """
    data = config.data
    _check_settings(data)
    fields = {"input": layout.field(data.input), "target": layout.field(data.target)}
    items = manifest.from_manifest(data) if data.manifest.path else manifest.from_globs(data)
    channels = {leaf: len(field.channels) for leaf, field in fields.items()} | {"mask": 1}
    try:
        entries = check_items(items, data, channels)
        rows = splits.rows_by_split(
            [entry.item for entry in entries], [entry.examples for entry in entries], data.split
        )
    except UserError as error:
        if not data.manifest.path:
            raise
        # a cell of it may name a file elsewhere
        raise UserError(f"{data.manifest.path}: {error}") from None
    stacked = data.layout == "stacked"

    def read(split: str, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        entry, example = rows[split][index]
        return read_example(entries[entry], example, stacked)

    def names(split: str) -> list[str]:
        return [
            entries[entry].item.name + (f"[{example}]" if stacked else "")
            for entry, example in rows[split]
        ]

    path, key, axes = entries[0].leaves["input"]
    periodic = tuple(bool(p) for p in data.periodic)
    spec = Spec(
        fields=fields,
        shape=axes.shape,
        spacing=layout.spacing(data.spacing, path, key),
        unit=data.unit,
        periodic=periodic,
        wrap=periodic,
    )
    return Source(
        spec=spec,
        sizes={split: len(rows[split]) for split in SPLITS},
        read=read,
        names=names,
        hash=digest(_prints(entries), spec, rows, data.layout, data.ndim, data.channel_axis),
    )


def read_example(entry: Checked, example: int, stacked: bool) -> dict[str, np.ndarray]:
    """The leaves [D, H, W, C] of one example of an item; the mask is 1 where the file's is > 0."""
    leaves = {}
    for leaf, (path, key, axes) in entry.leaves.items():
        place = axes.index(example, (slice(None),) * 3)
        # out of a stack only its example is read; another file is read whole, and then indexed
        values = files.read(path, key, place) if stacked else files.read(path, key, None)[place]
        leaves[leaf] = axes.arrange(values)
    if "mask" in leaves:
        leaves["mask"] = (leaves["mask"] > 0).astype(np.float32)
    return leaves


def check_items(items: list[Item], data, channels: dict[str, int]) -> list[Checked]:
    """The items whose headers fit: all of them, or with data.on_error = "skip" all but at most
    data.max_skips.

    A header fits when every key is there, input, target and mask have the same examples and
    volume, which is that of the first item that fits, and as many channels as they have names.
    Otherwise one UserError lists what does not.
    """
    entries, faults, shape = [], [], None
    check = _once(data, channels)
    for item in items:
        try:
            entry = check(item)
            volume = entry.leaves["input"][2].shape
            if shape not in (None, volume):
                raise UserError(
                    f"{item.paths['input']}: found volumes {volume}; expected {shape}, as in "
                    f"{entries[0].item.paths['input']}"
                )
        except UserError as fault:
            faults.append(str(fault))
            continue
        shape = volume
        entries.append(entry)
    if faults and (data.on_error == "stop" or not entries or len(faults) > data.max_skips):
        remedy = (
            "data.on_error='skip' leaves them out"
            if data.on_error == "stop"
            else f"data.max_skips={data.max_skips} would allow fewer"
        )
        raise UserError(
            f"{len(faults)} of {len(items)} files or pairs cannot be used: {listed(faults)}. Mend "
            f"or remove them; {remedy}"
        )
    if faults:
        logging.warning("skipped %d of %d files: %s", len(faults), len(items), listed(faults))
    return entries


def _once(data, channels: dict[str, int]) -> Callable[[Item], Checked]:
    """`_check_item` that looks at the same files once, also where they do not fit: thousands of
    rows may name them.
    """
    outcomes: dict[tuple, Checked | UserError] = {}

    def check(item: Item) -> Checked:
        paths = tuple(item.paths.values())
        if paths not in outcomes:
            try:
                outcomes[paths] = _check_item(item, data, channels)
            except UserError as error:
                outcomes[paths] = error
        outcome = outcomes[paths]
        if isinstance(outcome, UserError):
            raise outcome.with_traceback(None)
        return Checked(item, outcome.leaves, outcome.examples)

    return check


def _check_item(item: Item, data, channels: dict[str, int]) -> Checked:
    stacked, leaves = data.layout == "stacked", {}
    for leaf, path in item.paths.items():
        key, shape, _ = files.header(path, data[leaf].key, missing_chunks=data.missing_chunks)
        try:
            axes = layout.axes(shape, data.ndim, data.channel_axis, stacked)
        except ValueError as error:
            raise UserError(
                f"{path}, key '{key}': {error}, for data.layout='{data.layout}'"
            ) from None
        if axes.channels != channels[leaf]:
            raise UserError(
                f"{path}, key '{key}': found shape {shape}, which has {axes.channels} channels "
                f"(data.channel_axis={data.channel_axis}); expected {channels[leaf]}, as "
                f"data.{leaf} names"
            )
        leaves[leaf] = path, key, axes
    first_path, first_key, first = leaves["input"]
    for leaf, (path, key, axes) in leaves.items():
        if (axes.examples, axes.shape) != (first.examples, first.shape):
            raise UserError(
                f"{path}, key '{key}': the {leaf} has {axes.examples} examples of {axes.shape}; "
                f"expected {first.examples} of {first.shape}, as the input in {first_path}, key "
                f"'{first_key}'"
            )
    return Checked(item, leaves, first.examples)


def _check_settings(data) -> None:
    layout.check_shape_fields(data)
    splits.check_fractions(data.split.fractions)
    if (
        data.layout not in ("stacked", "single")
        or data.split.over not in ("groups", "examples")
        or data.split.seed < 0
    ):
        raise UserError(
            f"data.layout='{data.layout}', data.split.over='{data.split.over}', "
            f"data.split.seed={data.split.seed}; expected 'stacked' or 'single', 'groups' or "
            "'examples', and a seed from 0 on"
        )


def _prints(entries: list[Checked]) -> list[tuple[str, str, str, str]]:
    """What the files hold, for the hash: (item, leaf, key, fingerprint) each."""
    fingerprint = functools.cache(files.fingerprint)
    return [
        (entry.item.name, leaf, key, fingerprint(path))
        for entry in entries
        for leaf, (path, key, _) in sorted(entry.leaves.items())
    ]
