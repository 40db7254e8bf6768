"""Test-time augmentation: the mean of a network's predictions over transformed inputs, each turned
back.

    f_tta(x) = sum_g w_g g^-1 f(g x) / sum_g w_g

Over a group (`cube`, `flips`) f_tta commutes with it whatever the network is: f_tta(h x) = h
f_tta(x).  The group is that of `ops/rotations.py`, reduced to what sizes, voxel spacing,
periodicity, lines of sight and vectors allow.  `rotations` adds to the flips a turn by +-ANGLE
about each axis across which nothing forbids it: equal spacing, no periodic axis (a turned box does
not wrap), no line of sight that would tilt.  Where a prediction that is turned back comes from
outside of the volume, w_g = 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.config.base import TRANSFORMS
from jaxvol.ops import rotations, warp
from jaxvol.types import Array, PyTree, Spec, UserError

ANGLE = 5.0  # degrees of a small rotation


class Transform(NamedTuple):
    """g and its inverse on volumes [B, D, H, W, C] of one size; both take the kind of the field."""

    forward: Callable[[Array, str], Array]
    backward: Callable[[Array, str], Array]
    # () -> [D, H, W, 1], 1 where the turned-back prediction counts; None: everywhere
    weight: Callable[[], Array] | None


@dataclasses.dataclass(frozen=True)
class Averaged:
    """A network that is called as a linen module is, `apply(variables, x, train=False)`, and
    averages over transforms.
    """

    module: Any
    name: str
    spec: Spec

    def init(self, *args: Any, **kwargs: Any) -> PyTree:
        """The variables of the network itself."""
        return self.module.init(*args, **kwargs)

    def apply(self, variables: PyTree, x: Array, train: bool = False) -> Array:
        """[B, D, H, W, C] -> [B, D, H, W, K] in the network's type.  The network is compiled once,
        however many transforms.
        """
        if train:
            raise ValueError(
                "test-time augmentation is for prediction: train the network without it"
            )
        chosen = transforms(self.name, self.spec, x.shape[1:4])
        kinds = [self.spec.fields[name].kind for name in ("input", "target")]

        answer = jax.eval_shape(lambda v: self.module.apply(variables, v, train=False), x)
        whole = all(g.weight is None for g in chosen)
        ones = jnp.ones(() if whole else (*answer.shape[1:4], 1), answer.dtype)

        def one(total: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
            moved = jax.lax.switch(
                index, [lambda v, g=g: g.forward(v, kinds[0]) for g in chosen], x
            )
            y = self.module.apply(variables, moved, train=False)
            y = jax.lax.switch(index, [lambda v, g=g: g.backward(v, kinds[1]) for g in chosen], y)
            if whole:
                return (total[0] + y, total[1] + ones), None
            weight = jax.lax.switch(
                index,
                [lambda g=g: g.weight().astype(y.dtype) if g.weight else ones for g in chosen],
            )
            return (total[0] + weight * y, total[1] + weight), None

        start = jnp.zeros(answer.shape, answer.dtype), jnp.zeros_like(ones)
        (total, count), _ = jax.lax.scan(one, start, jnp.arange(len(chosen)))
        return total / count


def wrap(module: Any, spec: Spec, name: str) -> Any:
    """The module itself for "none", else its average over the named transforms.

    UserError: unknown name; coordinates, which have no symmetry; a vector whose normaliser treats
               its components differently, as normalised values do not turn then.
    """
    if name not in TRANSFORMS:
        raise UserError(f"evaluate.tta is {name!r}; it has to be one of {', '.join(TRANSFORMS)}.")
    if name == "none":
        return module
    for leaf, field in spec.fields.items():
        if field.kind == rotations.COORDINATES:
            raise UserError(
                f"evaluate.tta is {name!r}, but the field {leaf!r} holds coordinates, which are "
                "neither turned nor mirrored; use tta 'none'."
            )
        steps = [step["name"] for step in field.normaliser if not _turns(step)]
        if field.kind == "vector" and steps:
            raise UserError(
                f"evaluate.tta is {name!r}, but the vector field {leaf!r} is normalised by "
                f"{', '.join(steps)}, which does not commute with rotations; use the normaliser "
                "standardise, or tta 'none'."
            )
    return Averaged(module, name, spec)


def transforms(name: str, spec: Spec, shape: tuple[int, int, int]) -> tuple[Transform, ...]:
    """What is averaged over for volumes of `shape`; the identity comes first."""
    kinds = tuple(field.kind for field in spec.fields.values())
    elements = rotations.allowed(shape, spec.spacing, kinds, spec.periodic)
    if name != "cube":
        elements = tuple(g for g in elements if g.axes == rotations.IDENTITY.axes)
    moves = tuple(_exact(g) for g in elements)
    if name == "rotations":
        moves += tuple(
            _turn(axis, sign * ANGLE, shape)
            for axis in turning_axes(spec, shape)
            for sign in (1, -1)
        )
    return moves


def turning_axes(spec: Spec, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Axes about which volumes of `shape` may be turned by any angle."""
    kinds = {field.kind for field in spec.fields.values()}
    if rotations.COORDINATES in kinds:
        return ()
    sights = {rotations.line_of_sight(kind) for kind in kinds} - {None}

    def fits(axis: int) -> bool:
        i, j = (axis + 1) % 3, (axis + 2) % 3
        alike = abs(spec.spacing[i] - spec.spacing[j]) <= 1e-9 * max(spec.spacing)
        return (
            alike
            and min(shape[i], shape[j]) > 1
            and not (spec.periodic[i] or spec.periodic[j])
            and sights <= {axis}
        )

    return tuple(axis for axis in range(3) if fits(axis))


def _turns(step: dict) -> bool:
    """Whether a fitted normaliser step commutes with rotations of a vector: one factor for its
    three components.
    """
    if step["name"] != "standardise":
        return False
    scale = np.reshape(step["std"], (-1, 3)) if np.size(step["std"]) % 3 == 0 else np.zeros((1, 2))
    return not np.any(step["mean"]) and scale.shape[1] == 3 and bool(np.all(scale == scale[:, :1]))


def _exact(g: rotations.Element) -> Transform:
    back = rotations.inverse(g)
    return Transform(
        lambda x, kind: rotations.apply(g, x, kind),
        lambda y, kind: rotations.apply(back, y, kind),
        None,
    )


def _turn(axis: int, degrees: float, shape: tuple[int, int, int]) -> Transform:
    ahead, back = warp.rotation(axis, degrees), warp.rotation(axis, -degrees)
    return Transform(
        lambda x, kind: warp.rotate(x, ahead, kind == "vector"),
        lambda y, kind: warp.rotate(y, back, kind == "vector"),
        lambda: warp.inside(shape, back)[..., None],
    )
