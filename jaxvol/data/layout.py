"""Where the axes lie in an array of the users' files, and what its channels are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxvol.data.io import files
from jaxvol.types import Field, UserError


class Axes(NamedTuple):
    """Where the example, channel and spatial axes of one stored array lie:
    [N if stacked, 1..., C?, D, H, W, C?].
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
    stacked:      the first axis counts examples

    Leading axes of length 1 beyond those (as in (1, 1, 128, 128, 128)) are dropped.  ValueError
    when the shape does not fit.
    """
    lead = len(shape) - ndim - stacked
    dropped = max(0, lead - 1)
    if lead < 0 or any(n != 1 for n in shape[stacked : stacked + dropped]):
        raise ValueError(
            f"found shape {shape}; expected {'an example axis, ' if stacked else ''}{ndim} spatial "
            f"axes (data.ndim) and at most one channel axis (data.channel_axis={channel_axis})"
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
        if lead == 0:
            values = values[..., None]
        elif channel_axis == 0:
            values = np.moveaxis(values, 0, -1)
        values = values[None] if ndim == 2 else values
        dtype = np.float64 if values.dtype == np.float64 else np.float32
        return np.ascontiguousarray(values, dtype)

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
            "3 and channel_axis 0 (before) or -1 (behind the spatial axes)"
        )


def spacing(configured: Sequence[float], path: str, key: str) -> tuple[float, float, float]:
    """The voxel size (D, H, W) of the config, else the one stored in the file, else 1."""
    if configured and (len(configured) != 3 or min(configured) <= 0):
        raise UserError(
            f"data.spacing={tuple(configured)}; expected three positive numbers (D, H, W), or () "
            "to take the file's"
        )
    sizes = configured or files.metadata(path, key)["spacing"] or (1.0, 1.0, 1.0)
    return tuple(float(size) for size in sizes)
