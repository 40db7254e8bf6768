"""Random symmetries of training examples, the same for input, target and mask."""

from __future__ import annotations

import functools

import numpy as np

from jaxvol.ops import rotations
from jaxvol.types import Spec, UserError

KNOWN = ("cube", "transpose", "shift")


def check_augmentations(spec: Spec, names: tuple[str, ...]) -> None:
    """UserError when a name or a field's kind is unknown, the kind is not one of volumes, or
    `shift` is named where no axis is periodic.
    """
    if unknown := [name for name in names if name not in KNOWN]:
        raise UserError(
            f"data.augment has {', '.join(map(repr, unknown))}: expected names out of "
            f"{', '.join(KNOWN)}"
        )
    if "shift" in names and not _periodic_axes(spec):
        raise UserError(
            f"data.augment has 'shift', but no axis of the volumes {spec.shape} is periodic: "
            "expected a periodic dataset; remove 'shift' from data.augment"
        )
    for name, field in spec.fields.items():
        if field.kind == "points" and names:
            raise UserError(
                f"the field {name!r} holds points, which data.augment does not move: set "
                "data.augment=(), and let the task draw prompts from what it is shown"
            )
        if not field.on_grid:
            continue
        rotations.line_of_sight(field.kind)
        if field.kind == rotations.COORDINATES:
            raise UserError(
                f"the field {name!r} has the kind 'coordinates', which is for points of equations "
                "(data.name='collocation'): expected scalar, vector or line_of_sight=<0, 1 or 2>"
            )
        if field.kind == "vector" and len(field.channels) % 3:
            raise UserError(
                f"the field {name!r} is a vector with {len(field.channels)} channels "
                f"{field.channels}: expected a multiple of 3 (components along d, h, w)"
            )


def augment(
    example: dict[str, np.ndarray], spec: Spec, rng: np.random.Generator, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """One random element of the allowed cube group ("cube"), then one random periodic shift
    ("shift"), for all leaves.

    "transpose" takes the exchanges of axes alone: samples at 0, h, 2h, ... of an interval have no
    mirror image on the grid.  Only periodic axes shift, by whole voxels.

    example: leaves [D, H, W, C] in physical units (a vector must not have been normalised per
             component).  A leaf that is no field of the spec, such as the mask, moves like a
             scalar.
    """
    if "cube" in names or "transpose" in names:
        kinds = tuple(field.kind for field in spec.fields.values() if field.on_grid)
        shapes = {field.shape or spec.shape for field in spec.fields.values() if field.on_grid}
        groups = [_group(shape, spec.spacing, kinds, spec.periodic) for shape in sorted(shapes)]
        group = [element for element in groups[0] if all(element in other for other in groups)]
        if "cube" not in names:
            group = [element for element in group if not any(element.flips)]
        element = group[rng.integers(len(group))]
        kind_of = lambda name: spec.fields[name].kind if name in spec.fields else "scalar"
        example = {
            name: rotations.apply(element, x, kind_of(name)) if x.ndim == 4 else x
            for name, x in example.items()
        }
    if "shift" in names:
        axes = _periodic_axes(spec)
        shifts = tuple(int(rng.integers(spec.shape[axis])) for axis in axes)
        example = {
            name: np.roll(x, shifts, axes) if x.ndim == 4 else x for name, x in example.items()
        }
    return example


def _periodic_axes(spec: Spec) -> tuple[int, ...]:
    return tuple(axis for axis in range(3) if spec.periodic[axis] and spec.shape[axis] > 1)


_group = functools.lru_cache(maxsize=None)(rotations.allowed)
