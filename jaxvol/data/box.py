"""The users' large box, or a few boxes of one shape, out of files: crops of them are examples.

How crops are drawn and which voxels belong to which split is said by crops.py and regions.py.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable

from ml_collections import ConfigDict

from jaxvol.data import crops, layout, pipeline
from jaxvol.data.crops import Box
from jaxvol.data.io import files
from jaxvol.data.manifest import natural
from jaxvol.data.regions import Triple
from jaxvol.data.source import Source, digest
from jaxvol.types import Dataset, UserError


def fields() -> ConfigDict:
    """Random crops of one large box, or of a few (jaxvol/data/box.py)."""
    config = crops.fields()
    config.name = "box"
    for leaf in ("input", "target"):
        config[leaf] = ConfigDict(
            {
                "path": "",  # file, or glob for several boxes; target "" = the input's
                "key": "",  # dataset inside the file; "" = its only one
                "channels": (leaf,),  # names, one per channel
                # scalar | vector (channels in threes: d, h, w) | line_of_sight=<axis 0..2>
                "kind": "scalar",
                "unit": "",  # physical unit of the values, for labels
            }
        )
    config.mask = ConfigDict({"path": "", "key": ""})  # > 0 = observed; both "" = no mask
    # spatial axes in the files: 3 | 2 (a box of depth 1: axis 1 or 2)
    config.ndim = 3
    # where there is a channel axis: -1 behind the spatial axes | 0 before them
    config.channel_axis = -1
    config.spacing = ()  # voxel size (D, H, W); () = the file's own, else 1
    # chunks that are missing in HDF5 or Zarr files read as the fill value: warn | error
    config.missing_chunks = "warn"
    return config


def make(config) -> Dataset:
    """Dataset of crops of the users' boxes; UserError when files, slabs or crops do not fit."""
    return pipeline.dataset(source(config), config)


def source(config) -> Source:
    """Crops of the boxes of config.data.input.path (a file or a glob), their targets and, if named,
    masks.

    Raises UserError: files that are missing, do not pair or differ in shape, and what `crops`
    refuses.
    """
    data = config.data
    layout.check_shape_fields(data)
    paths = _paths_by_leaf(data)
    fields = {"input": layout.field(data.input), "target": layout.field(data.target)}
    boxes, shapes = [], {}
    for i, path in enumerate(paths["input"]):
        readers = {}
        for leaf, leaf_paths in paths.items():
            channels = len(fields[leaf].channels) if leaf in fields else 1
            file = leaf_paths[i]
            shapes[f"{leaf} {file}"], readers[leaf] = _leaf(file, data[leaf].key, channels, data)
        boxes.append(Box(os.path.basename(path), readers))
    if len(set(shapes.values())) > 1:
        raise UserError(
            "boxes and their leaves must have one shape; found "
            + "; ".join(f"{leaf}: {shape}" for leaf, shape in shapes.items())
        )
    shape = next(iter(shapes.values()))
    every = [path for leaf_paths in paths.values() for path in leaf_paths]
    prints = tuple(files.fingerprint(path) for path in dict.fromkeys(every))
    keys = (data.input.key, data.target.key, data.mask.key, data.ndim, data.channel_axis)
    spacing = layout.spacing(data.spacing, paths["input"][0], data.input.key)
    return crops.crops(boxes, shape, spacing, fields, data, digest(prints, keys))


def _paths_by_leaf(data) -> dict[str, list[str]]:
    """leaf -> its files, one per box; UserError unless there are as many of each."""
    inputs = _paths(data.input.path, "data.input.path")
    targets = _paths(data.target.path, "data.target.path") if data.target.path else inputs
    masks = []
    if data.mask.path:
        masks = _paths(data.mask.path, "data.mask.path")
    elif data.mask.key:
        masks = inputs
    if len(targets) != len(inputs) or masks and len(masks) != len(inputs):
        raise UserError(
            f"found {len(inputs)} input, {len(targets)} target and {len(masks)} mask files; "
            "expected as many of each (they are paired in sorted order)"
        )
    paths = {"input": inputs, "target": targets}
    return paths | {"mask": masks} if masks else paths


def _paths(pattern: str, name: str) -> list[str]:
    paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True), key=natural)
    if not paths:
        raise UserError(
            f"{name}='{pattern}' matches no file; expected a file or a glob, seen from "
            f"{os.getcwd()}"
        )
    return paths


def _leaf(path: str, key: str, channels: int, data) -> tuple[Triple, Callable]:
    """(shape of the box, reader of its pieces) of one array in a file."""
    key, shape, _ = files.header(path, key, missing_chunks=data.missing_chunks)
    try:
        axes = layout.axes(shape, data.ndim, data.channel_axis, False)
    except ValueError as error:
        raise UserError(f"{path}, key '{key}': {error}") from None
    if axes.channels != channels:
        raise UserError(
            f"{path}, key '{key}': found shape {shape}, which is {axes.channels} channels with "
            f"data.channel_axis={data.channel_axis}; expected {channels}, as many as its "
            "`channels` has names"
        )
    return axes.shape, lambda piece: axes.arrange(files.read(path, key, axes.index(0, piece)))
