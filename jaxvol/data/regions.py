"""Which part of a large box, or which of several boxes, each split may cut its crops from.

A crop has an inner part, `margin` voxels inside its faces, whose targets count; the margin is
context, its mask is 0.

Slabs (`split = "slabs"`).  The split axis, of N voxels, is cut into one slab per split, in the
order train, val, test, with `buffer` voxels between two slabs (and, in a periodic box, between the
last and the first); buffer >= crop[axis].  The rule:

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
import itertools
from collections.abc import Sequence

from jaxvol.data import splits
from jaxvol.data.source import SPLITS
from jaxvol.types import UserError

Triple = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Region:
    """Voxels lo <= i < hi of a box in which the inner parts of crops lie; along a `wrap` axis crops
    start anywhere.
    """

    box: int
    lo: Triple
    hi: Triple
    wrap: tuple[bool, bool, bool]


def by_split(names: Sequence[str], shape: Triple, data) -> dict[str, list[Region]]:
    """split -> its regions of the boxes `names`, all of one shape, under the fields crop, margin,
    periodic, split, axis, fractions, split_seed and buffer of config.data.

    Raises UserError: slabs that do not fit, too few boxes, or two boxes of one name.
    """
    periodic = tuple(bool(p) for p in data.periodic)
    lo = tuple(0 if wraps else margin for wraps, margin in zip(periodic, data.margin))
    hi = tuple(n - start for n, start in zip(shape, lo))
    if data.split == "slabs":
        axis = data.axis
        wrap = tuple(wraps and a != axis for a, wraps in enumerate(periodic))
        cuts = slabs(
            shape[axis],
            data.crop[axis],
            data.margin[axis],
            data.buffer,
            data.fractions,
            periodic[axis],
        )
        ends = {
            split: (_put(lo, axis, start), _put(hi, axis, stop))
            for split, (start, stop) in cuts.items()
        }
        return {
            split: [Region(i, *ends[split], wrap) for i in range(len(names)) if split in ends]
            for split in SPLITS
        }
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise UserError(
            f"boxes share a file name ({', '.join(twice)}); expected a name of its own for each"
        )
    groups = splits.divide(names, data.fractions, data.split_seed, "boxes")
    return {
        split: [Region(names.index(name), lo, hi, periodic) for name in groups[split]]
        for split in SPLITS
    }


def slabs(
    length: int, crop: int, margin: int, buffer: int, fractions: Sequence[float], periodic: bool
) -> dict[str, tuple[int, int]]:
    """split -> (start, stop) of its slab along an axis of `length` voxels; a split with fraction 0
    has none.

    Validation and test slabs are whole numbers of inner crop sizes, at least one; the training slab
    has the rest.  UserError when they do not fit, with the largest crop that would.
    """
    shares = {
        split: share for split, share in zip(SPLITS, splits.check_fractions(fractions)) if share > 0
    }
    buffer = buffer or crop
    if buffer < crop:
        raise UserError(
            f"data.buffer={buffer} is smaller than a crop along data.axis ({crop}); expected at "
            f"least {crop}, or 0"
        )
    inner = crop - 2 * margin
    gaps = 0 if len(shares) == 1 else len(shares) - (not periodic)
    faces = 0 if periodic else 2 * margin
    free = length - gaps * buffer - faces
    if free < len(shares) * inner:
        fitting = (
            size
            for size in range(crop - 1, 2 * margin, -1)
            if len(shares) * (size - 2 * margin) + gaps * size + faces <= length
        )
        largest = next(fitting, 0)
        fits = (
            f"the largest crop that fits along it is {largest}"
            if largest
            else "no crop with this margin fits"
        )
        raise UserError(
            f"data.axis has {length} voxels; {len(shares)} slabs of at least {inner} and {gaps} "
            f"buffers of {buffer} do not fit: with buffers of one crop, {fits}. Use a smaller "
            "data.crop along data.axis, another axis, or a fraction of 0"
        )
    sizes = _slab_sizes(shares, free, inner)
    start, cuts = 0 if periodic else margin, {}
    for split, size in sizes.items():
        cuts[split] = start, start + size
        start += size + buffer
    return cuts


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


def _slab_sizes(shares: dict[str, float], free: int, inner: int) -> dict[str, int]:
    """split -> voxels of its slab, of `free` voxels in all, train first."""
    sizes = {
        # the small number keeps an exact product from being rounded down to one less
        split: max(1, int(free * share / inner + 1e-9)) * inner
        for split, share in shares.items()
        if split != "train"
    }
    while free - sum(sizes.values()) < inner:
        sizes[max(sizes, key=sizes.get)] -= inner
    return {"train": free - sum(sizes.values())} | sizes


def _put(values: Triple, axis: int, value: int) -> Triple:
    return (*values[:axis], value, *values[axis + 1 :])
