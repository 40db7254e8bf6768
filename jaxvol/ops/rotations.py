"""The 48 rotations and reflections of the cube, acting on volumes [..., D, H, W, C].

An element sends the voxel at q to p = M q about the centre of the volume, where the signed
permutation M has the entry M[i, axes[i]] = -1 if flips[i] else +1.  A scalar field moves,
f'(p) = f(q); a vector field also turns, v'(p) = M v(q).  Elements are static tuples: under
`jax.jit` pass them as static arguments.  Everything works on numpy and jax arrays.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from jaxvol.types import UserError

LINE_OF_SIGHT = "line_of_sight="
# where a point lies in the domain of an equation: nothing that could be turned
COORDINATES = "coordinates"


class Element(NamedTuple):
    """New axis i is old axis `axes[i]`, run backwards if `flips[i]`."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]


ELEMENTS = tuple(
    Element(axes, flips)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
)
IDENTITY = ELEMENTS[0]


def matrix(element: Element) -> np.ndarray:
    """The signed permutation M [3, 3] of the element."""
    m = np.zeros((3, 3), int)
    m[range(3), element.axes] = np.where(element.flips, -1, 1)
    return m


def inverse(element: Element) -> Element:
    """The element that undoes this one."""
    axes = tuple(element.axes.index(i) for i in range(3))
    return Element(axes, tuple(element.flips[a] for a in axes))


def apply(element: Element, x, kind: str = "scalar"):
    """The volume x [..., D, H, W, C] moved by the element.

    kind: "scalar", "label"        each voxel keeps its value
          "vector"                 channels in threes, the components along d, h, w
          "line_of_sight=<axis>"   moves like a scalar; for elements that `allowed` returned for it
          "coordinates"            stay where they are
    Raises UserError: unknown kind; a vector whose channels do not come in threes; coordinates with
    another element than the identity.
    """
    if kind == COORDINATES and element != IDENTITY:
        raise UserError(
            "a field of coordinates is neither turned nor mirrored: its values say where they are"
        )
    line_of_sight(kind)  # refuses an unknown kind
    lead = x.ndim - 4
    x = x.transpose(*range(lead), *(lead + a for a in element.axes), lead + 3)
    if any(element.flips):
        x = x[
            (..., *(slice(None, None, -1 if flip else None) for flip in element.flips), slice(None))
        ]
    if kind != "vector" or element == IDENTITY:
        return x
    if x.shape[-1] % 3:
        raise UserError(
            f"a vector field has {x.shape[-1]} channels: expected a multiple of 3 (components "
            "along d, h, w)"
        )
    turned = x.reshape(*x.shape[:-1], -1, 3)[..., list(element.axes)]
    sign = np.where(element.flips, -1, 1).astype(x.dtype)
    return (turned * sign).reshape(x.shape)


def allowed(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    kinds: tuple[str, ...] = ("scalar",),
    periodic: tuple[bool, bool, bool] = (False, False, False),
) -> tuple[Element, ...]:
    """The subgroup that maps volumes of this shape and spacing onto volumes like them.

    kinds: of their fields.  Axes of different size, spacing or periodicity do not swap; an axis of
    size 1 neither swaps nor flips; a line of sight stays on its axis and may flip (redshift-space
    distortions are symmetric under a change of sign of the velocity axis).  Coordinates leave the
    identity alone, as the equation that is solved on them need not have the symmetry of its grid.
    The identity comes first.
    """
    if COORDINATES in kinds:
        return (IDENTITY,)
    fixed = {line_of_sight(kind) for kind in kinds}
    flat = {i for i in range(3) if shape[i] == 1}
    alike = [(shape[i], round(spacing[i] / max(spacing), 9), periodic[i]) for i in range(3)]

    def keeps(element: Element) -> bool:
        return (
            all(alike[i] == alike[a] for i, a in enumerate(element.axes))
            and all(element.axes[i] == i for i in fixed | flat if i is not None)
            and not any(element.flips[i] for i in flat)
        )

    return tuple(filter(keeps, ELEMENTS))


def line_of_sight(kind: str) -> int | None:
    """The axis of a field of kind "line_of_sight=<axis>", None for the others.

    Raises UserError for an unknown kind.
    """
    if kind in ("scalar", "vector", "label", COORDINATES):
        return None
    if kind in tuple(f"{LINE_OF_SIGHT}{axis}" for axis in range(3)):
        return int(kind[len(LINE_OF_SIGHT) :])
    raise UserError(
        f"found the field kind {kind!r}: expected scalar, vector, label or "
        "line_of_sight=<0, 1 or 2>"
    )
