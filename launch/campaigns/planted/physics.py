"""Faults of physics-informed runs, two or more for every metric of the check `physics`."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol import pdes
from jaxvol.data import collocation
from jaxvol.models import cheb_kan
from jaxvol.tasks import equations
from launch.campaigns.planted import Fault, replaced
from launch.campaigns.planted.later import sign


def problem(change) -> list:
    """Data, task and check see another problem; change: Problem -> its fields that differ."""
    return {}, [
        replaced(
            pdes,
            "make",
            lambda make: lambda block: dataclasses.replace(p := make(block), **change(p)),
        )
    ]


def coefficient(factor: float):
    """The equation has another coefficient of its second derivatives than the solution."""
    return problem(
        lambda p: {"weights": tuple(tuple(factor * w for w in row) for row in p.weights)}
    )


def turned(part: str):
    """A term of the equation has the wrong sign."""

    def change(p):
        flip = {"first": (-1, 1), "second": (1, -1)}[part]
        return {
            "residual": lambda x, u, first, second, unknown: p.residual(
                x, u, flip[0] * first, flip[1] * second, unknown
            )
        }

    return problem(change)


def stretched(factor: float):
    """Derivatives are taken in scaled coordinates and not scaled back, along the first axis."""

    def change(p):
        def residual(x, u, first, second, unknown):
            return p.residual(
                x, u, jnp.concatenate([first[:1] * factor, first[1:]]), second * factor**2, unknown
            )

        return {"residual": residual}

    return problem(change)


def first_faces(count: int):
    """Points on the first faces of a condition only, as in the published example."""
    return {}, [
        replaced(
            collocation,
            "on_faces",
            lambda old: lambda rng, n, p, faces, sampler: old(rng, n, p, faces[:count], sampler),
        )
    ]


def inside(share: float):
    """Points of a face lie a little inside of the domain."""

    def make(old):
        def faulty(rng, n, p, faces, sampler):
            points, middle = (
                old(rng, n, p, faces, sampler),
                (np.array(p.low) + np.array(p.high)) / 2,
            )
            return middle + (1 - share) * (points - middle)

        return faulty

    return {}, [replaced(collocation, "on_faces", make)]


def detached(name: str):
    """No gradient comes from a condition."""

    def make(old):
        return lambda setup, net, c, batch: old(
            setup, jax.lax.stop_gradient(net) if c.name == name else net, c, batch
        )

    return {}, [replaced(equations, "condition", make)]


def itself(name: str):
    """A condition is compared with the network's own values."""

    def make(old):
        def faulty(setup, net, c, batch):
            r = old(setup, net, c, batch)
            return r - jax.lax.stop_gradient(r) if c.name == name else r

        return faulty

    return {}, [replaced(equations, "condition", make)]


def bounds(factor: float):
    """The model scales its coordinates by the bounds of a smaller domain."""

    def make(old):
        def faulty(p):
            middle, half = (
                (np.array(p.low) + np.array(p.high)) / 2,
                (np.array(p.high) - np.array(p.low)) / 2 / factor,
            )
            return old(dataclasses.replace(p, low=tuple(middle - half), high=tuple(middle + half)))

        return faulty

    return {}, [replaced(collocation, "specify", make)]


def equal(spread: float, first):
    """Coefficients start with the value of some of them, first(all of them), up to a spread."""

    def make(old):
        def faulty(name):
            def draw(key, shape, dtype):
                value = old(name)(key, shape, dtype)
                return first(value) + spread * (value - first(value))

            return draw

        return faulty

    return {}, [replaced(cheb_kan, "initialiser", make)]


def alike(spread: float):
    """Neurons of a layer start alike, up to a spread."""
    return equal(spread, lambda value: value[..., :1])


def constant(spread: float):
    """All coefficients of one degree start with one value, up to a spread: neurons can never
    differ.
    """
    return equal(spread, lambda value: value[:, :1, :1])


def no_start(amplitude: float):
    """The values at the first time are lost."""

    def change(p):
        lost = lambda c: dataclasses.replace(c, target=lambda x: amplitude * c.target(x))
        return {"conditions": tuple(lost(c) if c.kind == "initial" else c for c in p.conditions)}

    return problem(change)


def no_lift(amplitude: float):
    """Exact conditions whose lift is lost: every solution with zero values is admitted."""
    return problem(lambda p: {"lift": lambda x: amplitude * p.lift(x)})


HARD = {"task.constraints": "hard"}
FAULTS = (
    Fault("coefficient of another equation", "pinn", "physics", (1.0001, 1.1), coefficient),
    Fault("sign of a term", "pinn", "physics", ("first", "second"), turned),
    Fault("derivatives not scaled back", "pinn", "physics", (1.01, 6.0), stretched),
    Fault("one of two boundaries", "pinn", "physics", (1,), first_faces),
    Fault("boundary points inside", "pinn", "physics", (1e-4, 1e-2), inside),
    Fault("condition without gradient", "pinn", "physics", ("boundary", "initial"), detached),
    Fault("condition compared with itself", "pinn", "physics", ("boundary", "initial"), itself),
    Fault(
        "condition of weight 0",
        "pinn",
        "physics",
        ("boundary", "initial"),
        lambda s: ({f"task.weights.{s}": 0.0}, []),
    ),
    Fault("domain not scaled", "pinn", "physics", ("none",), lambda s: ({"model.scaling": s}, [])),
    Fault("bounds of another domain", "pinn", "physics", (1.5, 3.0), bounds),
    Fault("neurons that start alike", "pinn", "physics", (1e-2, 0.0), alike),
    Fault("coefficients that start equal", "pinn", "physics", (1e-2, 0.0), constant),
    Fault("initial values lost", "pinn", "physics", (1e-3, 0.0), no_start),
    Fault(
        "lift of exact conditions lost",
        "pinn",
        "physics",
        (1e-3, 0.0),
        lambda s: (HARD, no_lift(s)[1]),
    ),
    Fault(
        "learning rate far too high for an equation",
        "pinn",
        "physics",
        (0.3, 3.0),
        lambda s: ({"optimizer.learning_rate": s}, []),
    ),
    Fault("uphill on the equation", "pinn", "physics", (-1.0,), sign, ("schedule",)),
)
