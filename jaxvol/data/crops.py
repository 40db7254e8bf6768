"""Crops of fixed shape drawn from large boxes: at random for training, as tiles for evaluation.

A crop has an inner part, `margin` voxels inside its faces, whose targets count; the margin is
context, its mask is 0.  Where the inner parts of a split may lie is said by jaxvol/data/regions.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxvol.data import pipeline, regions
from jaxvol.data.regions import Region, Triple
from jaxvol.data.source import Source, digest
from jaxvol.types import Field, Spec, UserError


def fields() -> ConfigDict:
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


@dataclasses.dataclass(frozen=True)
class Box:
    """One box: its name and, per leaf, a reader of the piece [d, h, w, C] at three slices inside
    the box.
    """

    name: str
    read: dict[str, Callable[[tuple[slice, slice, slice]], np.ndarray]]


class Place(NamedTuple):
    """Where a crop is cut."""

    box: int
    corner: Triple  # first voxel of the inner part
    covered: Triple  # voxels along each axis that earlier tiles have covered; their mask is 0


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

    identity: a digest of the boxes' content

    Raises UserError when crops, margins or slabs do not fit.
    """
    check(shape, data)
    crop, margin, periodic = tuple(data.crop), tuple(data.margin), tuple(map(bool, data.periodic))
    inner = tuple(c - 2 * m for c, m in zip(crop, margin))
    areas = regions.by_split([box.name for box in boxes], shape, data)
    tiles = {split: tiles_of(areas[split], inner) for split in ("val", "test")}
    repeated = any(any(place.covered) for split in tiles for place in tiles[split])
    masked = any(margin) or repeated or "mask" in boxes[0].read

    def read(split: str, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        if split == "train":
            rng = np.random.default_rng(index) if rng is None else rng
            place = random_place(areas["train"], inner, rng)
        else:
            place = tiles[split][index]
        return cut(boxes[place.box], shape, place, crop, margin, masked)

    def names(split: str) -> list[str]:
        if split == "train":
            return [f"crop {i}" for i in range(data.crops_per_epoch)]
        return [
            f"{boxes[place.box].name} at {','.join(map(str, place.corner))}"
            for place in tiles[split]
        ]

    slabs = data.split == "slabs"
    # a crop that spans a periodic axis wraps along it, unless slabs are cut along it
    whole = tuple(
        p and c == n and m == 0 and not (slabs and axis == data.axis)
        for axis, (p, c, n, m) in enumerate(zip(periodic, crop, shape, margin))
    )
    spec = Spec(
        fields=fields, shape=crop, spacing=spacing, unit=data.unit, periodic=whole, wrap=periodic
    )
    sizes = {"train": data.crops_per_epoch, "val": len(tiles["val"]), "test": len(tiles["test"])}
    described = digest(identity, shape, spec, areas, margin, data.crops_per_epoch)
    return Source(spec=spec, sizes=sizes, read=read, names=names, hash=described)


def random_place(areas: Sequence[Region], inner: Triple, rng: np.random.Generator) -> Place:
    """A place drawn at random: first one of the regions, then one of its corners, all as likely."""
    region = areas[int(rng.integers(len(areas)))]
    corner = tuple(
        int(rng.integers(lo, hi if wrap else hi - n + 1))
        for lo, hi, n, wrap in zip(region.lo, region.hi, inner, region.wrap)
    )
    return Place(region.box, corner, (0, 0, 0))


def tiles_of(areas: Sequence[Region], inner: Triple) -> list[Place]:
    """Places whose inner parts cover each voxel of the regions once, in order."""
    return [
        Place(region.box, corner, covered)
        for region in areas
        for corner, covered in regions.tile(region.lo, region.hi, inner)
    ]


def cut(
    box: Box, shape: Triple, place: Place, crop: Triple, margin: Triple, masked: bool
) -> dict[str, np.ndarray]:
    """The leaves [D, H, W, C] of the crop at `place` of a box of that shape.

    masked: with a mask, which is 1 where the target counts: inside the margin, not in an earlier
            tile, and observed in the box's own mask if it has one
    """
    start = tuple(c - m for c, m in zip(place.corner, margin))
    example = {leaf: read_wrapped(reader, shape, start, crop) for leaf, reader in box.read.items()}
    if masked:
        counted = np.zeros((*crop, 1), np.float32)
        counted[tuple(slice(m + n, c - m) for m, n, c in zip(margin, place.covered, crop))] = 1
        example["mask"] = counted * (example["mask"] > 0) if "mask" in example else counted
    return example


def read_wrapped(reader: Callable, shape: Triple, start: Triple, size: Triple) -> np.ndarray:
    """[d, h, w, C] at start <= i < start + size, taken modulo the box; size <= shape.

    reader: (three slices inside the box) -> [d, h, w, C]
    """
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


def check(shape: Triple, data) -> None:
    """UserError unless the fields of crops make sense for boxes of this shape."""
    crop, margin = tuple(data.crop), tuple(data.margin)
    if not len(crop) == len(margin) == len(data.periodic) == 3:
        raise UserError(
            f"data.crop={crop}, data.margin={margin}, data.periodic={tuple(data.periodic)}; "
            "expected three values (D, H, W) each"
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
            f"data.crops_per_epoch={data.crops_per_epoch}; expected an axis 0, 1 or 2, a split "
            "'slabs' or 'boxes', and at least one crop"
        )
