"""What the datasets that read the users' files share: where the axes lie in an array, what its
channels are, who goes where.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxvol.data.io import files
from jaxvol.types import Field, UserError

SPLITS = ("train", "val", "test")


class Axes(NamedTuple):
    """Where the example, channel and spatial axes of one stored array lie: [N if stacked, 1..., C?,
    D, H, W, C?].
    """

    examples: int  # N, or 1 where the array is one example
    shape: tuple[int, int, int]
    channels: int
    # (example, spatial slices) -> index into the array
    index: Callable[[int, tuple[slice, slice, slice]], tuple]
    # the indexed piece -> [d, h, w, C], at least float32
    arrange: Callable[[np.ndarray], np.ndarray]


def axes(shape: tuple[int, ...], ndim: int, channel_axis: int, stacked: bool) -> Axes:
    """Axes of an array of this shape.

    ndim:         spatial axes stored, 3 or 2 (a 2D field becomes D = 1)
    channel_axis: 0 = before, -1 = behind the spatial axes; without a channel axis there is one
                  channel
    Leading axes of length 1 beyond those (as in (1, 1, 128, 128, 128)) are dropped.  ValueError
    when the shape does not fit.
    """
    lead = len(shape) - ndim - stacked
    dropped = max(0, lead - 1)
    if lead < 0 or any(n != 1 for n in shape[stacked : stacked + dropped]):
        raise ValueError(
            f"found shape {shape}; expected {'an example axis, ' if stacked else ''}{ndim} spatial "
            "axes "
            f"(data.ndim) and at most one channel axis (data.channel_axis={channel_axis})"
        )
    inner = shape[stacked + dropped :]
    channels = 1 if lead == 0 else inner[channel_axis]
    spatial = inner if lead == 0 else inner[1:] if channel_axis == 0 else inner[:-1]

    def index(example: int, piece: tuple[slice, slice, slice]) -> tuple:
        free = () if lead == 0 else (slice(None),)
        place = piece[3 - ndim :]
        return (
            (example,) * stacked
            + (0,) * dropped
            + (free + place if channel_axis == 0 else place + free)
        )

    def arrange(values: np.ndarray) -> np.ndarray:
        values = (
            values[..., None]
            if lead == 0
            else np.moveaxis(values, 0, -1)
            if channel_axis == 0
            else values
        )
        values = values[None] if ndim == 2 else values
        return np.ascontiguousarray(
            values, np.float64 if values.dtype == np.float64 else np.float32
        )

    return Axes(
        shape[0] if stacked else 1,
        (1, *spatial) if ndim == 2 else tuple(spatial),
        channels,
        index,
        arrange,
    )


def field(settings) -> Field:
    """The field that `settings` (channels, kind, unit) describe."""
    return Field(channels=tuple(settings.channels), kind=settings.kind, unit=settings.unit)


def check_shape_fields(data) -> None:
    """UserError unless data.ndim and data.channel_axis are among their choices."""
    if data.ndim not in (2, 3) or data.channel_axis not in (0, -1):
        raise UserError(
            f"data.ndim={data.ndim} and data.channel_axis={data.channel_axis}; expected ndim 2 or "
            "3 and channel_axis "
            "0 (before) or -1 (behind the spatial axes)"
        )


def spacing(asked: Sequence[float], path: str, key: str) -> tuple[float, float, float]:
    """The voxel size asked for, else the one stored in the file, else 1."""
    if asked and (len(asked) != 3 or min(asked) <= 0):
        raise UserError(
            f"data.spacing={tuple(asked)}; expected three positive numbers (D, H, W), or () to "
            "take the file's"
        )
    return tuple(float(s) for s in asked or files.metadata(path, key)["spacing"] or (1.0, 1.0, 1.0))


def divide(
    names: Sequence[str], fractions: Sequence[float], seed: int, what: str
) -> dict[str, list[str]]:
    """Each name in one split, by a permutation of the sorted names that depends on the seed only.

    Every split with a positive fraction gets at least one name; a split with fraction 0 stays
    empty.
    """
    fractions = check_fractions(fractions)
    wanted = [split for split, fraction in zip(SPLITS, fractions) if fraction > 0]
    if len(names) < len(wanted):
        raise UserError(
            f"found {len(names)} {what} for the {len(wanted)} splits {', '.join(wanted)}; expected "
            "at least one "
            "each: add data, set a fraction to 0, or divide by something smaller"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    counts = {split: int(fraction > 0) for split, fraction in zip(SPLITS, fractions)}
    shares = dict(zip(SPLITS, fractions))
    while sum(counts.values()) < len(names):  # the split that lacks most gets the next one
        counts[max(wanted, key=lambda split: shares[split] * len(names) - counts[split])] += 1
    ordered, start, result = sorted(names, key=natural), 0, {}
    for split in SPLITS:
        result[split] = [ordered[i] for i in sorted(order[start : start + counts[split]])]
        start += counts[split]
    return result


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Fractions for train, val and test, scaled to sum to 1."""
    if (
        len(fractions) != 3
        or min(fractions) < 0
        or fractions[0] <= 0
        or not np.isfinite(sum(fractions))
    ):
        raise UserError(
            f"fractions {tuple(fractions)}; expected three numbers for train, val and test, none "
            "negative, train "
            "positive"
        )
    return tuple(float(f) / sum(fractions) for f in fractions)


def natural(text: str) -> list:
    """Sorting key by which "box_10" comes behind "box_9"."""
    return [
        (0, int(part), "") if part[0] in "0123456789" else (1, 0, part)
        for part in re.findall(r"[0-9]+|[^0-9]+", text)
    ]


def digest(*items) -> str:
    """Hexadecimal digest of the items' texts."""
    return hashlib.blake2b(repr(items).encode(), digest_size=16).hexdigest()
