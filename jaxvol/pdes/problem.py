"""What a boundary-value or inverse problem is, as a record of functions, and where its conditions
hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from jaxvol.types import Array

KINDS = ("boundary", "initial", "data")
Faces = tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Condition:
    """transform(u(x)) = target(x), or du/dx_derivative = target, on faces x_axis = bound.

    faces:  () means anywhere in the domain
    target: x [n, d] float64 -> [n, k], computed on the host; k = fields unless `transform` makes it
            another number
    noise:  standard deviation of measurement noise, as a fraction of the target's; drawn once per
            run
    places: [P, d], where it was measured, the pixels of images: a set of points draws among them;
            None: anywhere, once per run
    """

    name: str
    kind: str  # boundary | initial | data: how many points it gets
    faces: Faces
    target: Callable[[np.ndarray], np.ndarray]
    derivative: int | None = None
    transform: Callable[[Array], Array] | None = None
    noise: float = 0.0
    places: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """An equation on a box, its conditions, and what its solution is compared with.

    residual:       (x [N, d], u [N, m], first [d, N, m], second [Q, N, m], unknown)
                    -> [N, equations]; second as `weights` asks for, see ops/laplacian.py
    solution:       (x [.., d], numpy or jax.numpy) -> [.., m]; read by evaluation, boundary and
                    initial data only
    closed:         `solution` is a closed form that JAX can differentiate, and its residual is 0;
                    otherwise a numerical reference, numpy alone, or the residual is a penalty that
                    is only kept small
    lift, distance: (x [N, d]) -> [N, m], [N, 1]; u = lift + distance * network meets every
                    condition, whatever the network is
    unknown:        coefficients to be found, {name: value at the start}; truth: their true values
    estimates:      what other methods find on the grid, {name: [*grid, m]}, for tables
    known:          whether there is a `solution` to score against; measured without one, only the
                    loss tells how good it is
    remainder:      what `residual` is called in pictures
    fingerprint:    of measurements that come from elsewhere; then they, and not the settings of the
                    problem, identify the data
    """

    coordinates: tuple[str, ...]
    fields: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    residual: Callable[[Array, Array, Array, Array, dict[str, Array]], Array]
    conditions: tuple[Condition, ...]
    solution: Callable[[Any, ModuleType], Any]
    # points of the evaluation grid along each coordinate, both ends included
    grid: tuple[int, ...]
    closed: bool = True
    lift: Callable[[Array], Array] | None = None
    distance: Callable[[Array], Array] | None = None
    unknown: dict[str, float] = dataclasses.field(default_factory=dict)
    truth: dict[str, float] = dataclasses.field(default_factory=dict)
    estimates: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    known: bool = True
    remainder: str = "residual of the equation"
    fingerprint: str = ""

    @property
    def mesh(self) -> np.ndarray:
        """Coordinates of the evaluation grid, [*grid, d], float64."""
        axes = [np.linspace(a, b, n) for a, b, n in zip(self.low, self.high, self.grid)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def box(low: tuple[float, ...], high: tuple[float, ...], axes: tuple[int, ...]) -> Faces:
    """Both faces of the box along each of the axes."""
    return tuple((axis, bound) for axis in axes for bound in (low[axis], high[axis]))


def given(name: str, kind: str, faces: Faces, solution: Callable, **options) -> Condition:
    """The condition that u equals the solution."""
    return Condition(name, kind, faces, lambda x: solution(x, np), **options)
