"""Crops drawn on the fly from one large box, or from several boxes of one shape.

Slabs (`split = "slabs"`).  The split axis, of N voxels, is cut into one slab per split, in the
order train, val, test, with `buffer` voxels between two slabs (and, in a periodic box, between the
last and the first); buffer >= crop[axis].  A crop has an inner part, `margin` voxels inside its
faces, whose targets count; the margin is context, its mask is 0.  The rule:

    the inner part of every crop lies inside its slab; the margin reaches at most `margin` voxels
    into the buffer.

As 2 * margin < crop <= buffer, no voxel of any training crop, input or target, margin included, is
in any validation or test crop.  Along the other axes a periodic box wraps; where the box does not
wrap, inner parts keep `margin` from its faces.
Evaluation crops tile the slab: their inner parts cover each of its voxels exactly once (where the
inner size does not divide the slab, the last tile is moved back and the voxels that it repeats are
masked).

Boxes (`split = "boxes"`).  Each box belongs to one split, whole.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxvol.data import layout, pipeline
from jaxvol.data.io import files
from jaxvol.data.layout import SPLITS
from jaxvol.data.pipeline import Source
from jaxvol.types import Dataset, Field, Spec, UserError

Triple = tuple[int, int, int]


def crop_fields() -> ConfigDict:
    """Fields of datasets that draw crops from a box; a crop's inner part lies in its slab, its
    margin may lie in the buffer.
    """
    config = pipeline.fields()
    config.augment = ("cube",)
    config.crop = (32, 32, 32)  # voxels (D, H, W), margin included
    config.margin = (0, 0, 0)  # voxels inside each face that are context only (mask 0)
    # slabs: one per split, along `axis` | boxes: each box in one split (three or more boxes)
    config.split = "slabs"
    config.axis = 0  # along which the slabs are cut
    # train, val, test; of what the buffers leave, or of the boxes
    config.fractions = (0.6, 0.2, 0.2)
    config.split_seed = 0  # of the division of boxes
    # voxels between slabs, at least a crop along `axis`; 0 = one crop
    config.buffer = 0
    config.crops_per_epoch = 256  # random training crops that count as one epoch
    config.periodic = (False, False, False)  # the box wraps along this axis
    config.unit = ""  # unit of lengths: "Mpc/h", "mm"
    return config


def fields() -> ConfigDict:
    """Random crops of one large box, or of a few (jaxvol/data/box.py)."""
    config = crop_fields()
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
    return config


@dataclasses.dataclass(frozen=True)
class Box:
    """One box: its name and, per leaf, a reader of the piece [d, h, w, C] at three slices inside
    the box.
    """

    name: str
    read: dict[str, Callable[[tuple[slice, slice, slice]], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Region:
    """Voxels lo <= i < hi of a box in which the inner parts of crops lie; along a `wrap` axis crops
    start anywhere.
    """

    box: int
    lo: Triple
    hi: Triple
    wrap: tuple[bool, bool, bool]


def make(config) -> Dataset:
    """Dataset of crops of the users' boxes; UserError when files, slabs or crops do not fit."""
    return pipeline.dataset(source(config), config)


def source(config) -> Source:
    """The boxes of config.data.input.path (a file or a glob), their targets and, if
    named, masks.
    """
    data = config.data
    layout.check_shape_fields(data)
    inputs = _paths(data.input.path, "data.input.path")
    targets = _paths(data.target.path, "data.target.path") if data.target.path else inputs
    masks = (
        _paths(data.mask.path, "data.mask.path")
        if data.mask.path
        else inputs
        if data.mask.key
        else []
    )
    if len(targets) != len(inputs) or masks and len(masks) != len(inputs):
        raise UserError(
            f"found {len(inputs)} input, {len(targets)} target and {len(masks)} mask files; "
            "expected as many of each "
            "(they are paired in sorted order)"
        )
    fields = {"input": layout.field(data.input), "target": layout.field(data.target)}
    boxes, shapes = [], {}
    for i, path in enumerate(inputs):
        leaves = {"input": (path, data.input.key), "target": (targets[i], data.target.key)}
        if masks:
            leaves["mask"] = masks[i], data.mask.key
        box = {}
        for leaf, (file, key) in leaves.items():
            channels = len(fields[leaf].channels) if leaf in fields else 1
            shapes[f"{leaf} {file}"], box[leaf] = _leaf(file, key, channels, data)
        boxes.append(Box(os.path.basename(path), box))
    if len(set(shapes.values())) > 1:
        raise UserError(
            "boxes and their leaves must have one shape; found "
            + "; ".join(f"{k}: {v}" for k, v in shapes.items())
        )
    shape = next(iter(shapes.values()))
    prints = tuple(files.fingerprint(path) for path in dict.fromkeys(inputs + targets + masks))
    keys = (data.input.key, data.target.key, data.mask.key, data.ndim, data.channel_axis)
    spacing = layout.spacing(data.spacing, inputs[0], data.input.key)
    return crops(boxes, shape, spacing, fields, data, layout.digest(prints, keys))


def crops(
    boxes: Sequence[Box],
    shape: Triple,
    spacing: tuple[float, float, float],
    fields: dict[str, Field],
    data,
    identity: str,
) -> Source:
    """Source of crops out of boxes of one shape, under the fields crop, margin, split, axis, ... of
    config.data.

    identity: a digest of the boxes' content.  UserError when crops, margins or slabs do not fit.
    """
    crop, margin, periodic = (
        tuple(data.crop),
        tuple(data.margin),
        tuple(bool(p) for p in data.periodic),
    )
    _check(crop, margin, shape, data)
    inner = tuple(c - 2 * m for c, m in zip(crop, margin))
    regions = _regions(boxes, shape, crop, margin, periodic, data)
    tiles = {
        split: [
            (region, corner, fresh)
            for region in regions[split]
            for corner, fresh in tile(region.lo, region.hi, inner)
        ]
        for split in ("val", "test")
    }
    masked = (
        any(margin)
        or any(any(fresh) for split in tiles for _, _, fresh in tiles[split])
        or "mask" in boxes[0].read
    )

    def read(split: str, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        if split == "train":
            rng = np.random.default_rng(index) if rng is None else rng
            region = regions["train"][int(rng.integers(len(regions["train"])))]
            corner = tuple(
                int(rng.integers(lo, hi if wrap else hi - n + 1))
                for lo, hi, n, wrap in zip(region.lo, region.hi, inner, region.wrap)
            )
            fresh = (0, 0, 0)
        else:
            region, corner, fresh = tiles[split][index]
        start = tuple(c - m for c, m in zip(corner, margin))
        example = {
            leaf: read_wrapped(reader, shape, start, crop)
            for leaf, reader in boxes[region.box].read.items()
        }
        if masked:
            counted = np.zeros((*crop, 1), np.float32)
            counted[tuple(slice(m + f, c - m) for m, f, c in zip(margin, fresh, crop))] = 1
            example["mask"] = counted * (example["mask"] > 0) if "mask" in example else counted
        return example

    def names(split: str) -> list[str]:
        if split == "train":
            return [f"crop {i}" for i in range(data.crops_per_epoch)]
        return [
            f"{boxes[region.box].name} at {','.join(map(str, corner))}"
            for region, corner, _ in tiles[split]
        ]

    slabs = data.split == "slabs"
    whole = tuple(
        p and c == n and m == 0 and not (slabs and axis == data.axis)
        for axis, (p, c, n, m) in enumerate(zip(periodic, crop, shape, margin))
    )
    spec = Spec(
        fields=fields, shape=crop, spacing=spacing, unit=data.unit, periodic=whole, wrap=periodic
    )
    sizes = {"train": data.crops_per_epoch, "val": len(tiles["val"]), "test": len(tiles["test"])}
    described = layout.digest(identity, shape, spec, regions, margin, data.crops_per_epoch)
    return Source(spec=spec, sizes=sizes, read=read, names=names, hash=described)


def slabs(
    length: int, crop: int, margin: int, buffer: int, fractions: Sequence[float], periodic: bool
) -> dict[str, tuple[int, int]]:
    """split -> (start, stop) of its slab along an axis of `length` voxels; a split with fraction 0
    has none.

    Validation and test slabs are whole numbers of inner crop sizes, at least one; the training slab
    has the rest.
    """
    shares = {
        split: share for split, share in zip(SPLITS, layout.check_fractions(fractions)) if share > 0
    }
    buffer = buffer or crop
    if buffer < crop:
        raise UserError(
            f"data.buffer={buffer} is smaller than a crop along data.axis ({crop}); expected at "
            f"least {crop}, or 0"
        )
    inner = crop - 2 * margin
    gaps = 0 if len(shares) == 1 else len(shares) - (not periodic)
    free = length - gaps * buffer - (0 if periodic else 2 * margin)
    if free < len(shares) * inner:
        fits = next(
            (
                c
                for c in range(crop - 1, 2 * margin, -1)
                if len(shares) * (c - 2 * margin) + gaps * c + (0 if periodic else 2 * margin)
                <= length
            ),
            0,
        )
        fit = (
            f"the largest crop that fits along it is {fits}"
            if fits
            else "no crop with this margin fits"
        )
        raise UserError(
            f"data.axis has {length} voxels; {len(shares)} slabs of at least {inner} and {gaps} "
            f"buffers of {buffer} "
            f"do not fit: with buffers of one crop, {fit}. Use a smaller data.crop along "
            "data.axis, another axis, "
            "or a fraction of 0"
        )
    sizes = {
        split: max(1, int(free * share / inner + 1e-9)) * inner
        for split, share in shares.items()
        if split != "train"
    }
    while free - sum(sizes.values()) < inner:
        sizes[max(sizes, key=sizes.get)] -= inner
    sizes = {"train": free - sum(sizes.values())} | sizes
    start, found = 0 if periodic else margin, {}
    for split, size in sizes.items():
        found[split] = start, start + size
        start += size + buffer
    return found


def tile(lo: Triple, hi: Triple, inner: Triple) -> list[tuple[Triple, Triple]]:
    """(corner of the inner part, voxels along each axis that earlier tiles have covered) of the
    tiles of lo <= i < hi.
    """

    def along(start: int, stop: int, size: int) -> list[tuple[int, int]]:
        return [(min(i, stop - size), i - min(i, stop - size)) for i in range(start, stop, size)]

    return [
        tuple(zip(*place))
        for place in itertools.product(*(along(*axis) for axis in zip(lo, hi, inner)))
    ]


def read_wrapped(reader: Callable, shape: Triple, start: Triple, size: Triple) -> np.ndarray:
    """[d, h, w, C] at start <= i < start + size, taken modulo the box; size <= shape."""
    pieces = []
    for n, i, s in zip(shape, start, size):
        i %= n
        pieces.append([slice(i, min(i + s, n))] + ([slice(0, i + s - n)] if i + s > n else []))

    def assemble(axis: int, chosen: tuple[slice, ...]) -> np.ndarray:
        if axis == 3:
            return reader(chosen)
        parts = [assemble(axis + 1, (*chosen, piece)) for piece in pieces[axis]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)

    return assemble(0, ())


def _leaf(path: str, key: str, channels: int, data) -> tuple[Triple, Callable]:
    key, shape, _ = files.header(path, key)
    try:
        axes = layout.axes(shape, data.ndim, data.channel_axis, False)
    except ValueError as error:
        raise UserError(f"{path}, key '{key}': {error}") from None
    if axes.channels != channels:
        raise UserError(
            f"{path}, key '{key}': found shape {shape}, which is {axes.channels} channels with "
            "data.channel_axis="
            f"{data.channel_axis}; expected {channels}, as many as its `channels` has names"
        )
    return axes.shape, lambda piece: axes.arrange(files.read(path, key, axes.index(0, piece)))


def _paths(pattern: str, name: str) -> list[str]:
    found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True), key=layout.natural)
    if not found:
        raise UserError(
            f"{name}='{pattern}' matches no file; expected a file or a glob, seen from "
            f"{os.getcwd()}"
        )
    return found


def _check(crop: Triple, margin: Triple, shape: Triple, data) -> None:
    if not len(crop) == len(margin) == len(data.periodic) == 3:
        raise UserError(
            f"data.crop={crop}, data.margin={margin}, data.periodic={tuple(data.periodic)}; "
            "expected three values "
            "(D, H, W) each"
        )
    if any(c < 1 or c > n for c, n in zip(crop, shape)):
        raise UserError(
            f"data.crop={crop} does not fit in the box {shape}; expected 1 to the box's size along "
            "every axis"
        )
    if any(m < 0 or 2 * m >= c for c, m in zip(crop, margin)):
        raise UserError(
            f"data.margin={margin} leaves nothing of data.crop={crop}; expected 0 <= 2 * margin < "
            "crop on every axis"
        )
    if min(data.buffer, data.split_seed) < 0:
        raise UserError(
            f"data.buffer={data.buffer}, data.split_seed={data.split_seed}; expected numbers from "
            "0 on"
        )
    if (
        data.axis not in (0, 1, 2)
        or data.split not in ("slabs", "boxes")
        or data.crops_per_epoch < 1
    ):
        raise UserError(
            f"data.axis={data.axis}, data.split='{data.split}', "
            f"data.crops_per_epoch={data.crops_per_epoch}; "
            "expected an axis 0, 1 or 2, a split 'slabs' or 'boxes', and at least one crop"
        )


def _regions(
    boxes: Sequence[Box], shape: Triple, crop: Triple, margin: Triple, periodic: tuple, data
) -> dict[str, list[Region]]:
    lo = tuple(0 if p else m for p, m in zip(periodic, margin))
    hi = tuple(n - start for n, start in zip(shape, lo))
    if data.split == "slabs":
        axis = data.axis
        cuts = slabs(
            shape[axis], crop[axis], margin[axis], data.buffer, data.fractions, periodic[axis]
        )
        wrap = tuple(p and a != axis for a, p in enumerate(periodic))
        found = {
            split: (_put(lo, axis, start), _put(hi, axis, stop))
            for split, (start, stop) in cuts.items()
        }
        return {
            split: [Region(i, *found[split], wrap) for i in range(len(boxes)) if split in found]
            for split in SPLITS
        }
    names = [box.name for box in boxes]
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise UserError(
            f"boxes share a file name ({', '.join(twice)}); expected a name of its own for each"
        )
    groups = layout.divide(names, data.fractions, data.split_seed, "boxes")
    return {
        split: [Region(names.index(name), lo, hi, periodic) for name in groups[split]]
        for split in SPLITS
    }


def _put(values: Triple, axis: int, value: int) -> Triple:
    return (*values[:axis], value, *values[axis + 1 :])
