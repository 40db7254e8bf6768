"""What has to vanish: the residual of an equation at points, and of its conditions."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from jaxvol import pdes
from jaxvol.data import measured
from jaxvol.ops import laplacian, taylor
from jaxvol.types import Array, Batch, PyTree, UserError

# entry of params["net"] with the coefficients that are to be found
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Setup:
    """The equation of a run and the network that has to meet it."""

    config: Any  # config.task
    problem: pdes.Problem
    model: nn.Module
    terms: tuple[str, ...]  # "pde", then the conditions
    weights: tuple[float, ...]  # of the config, one per term


def make_setup(config: ConfigDict, model: nn.Module) -> Setup:
    """The record of a run.

    Raises UserError where hard constraints are asked for and the problem has none.
    """
    problem = measured.problem(config.data.problem)
    if config.task.constraints == "hard" and problem.lift is None:
        raise UserError(
            f"the problem {config.data.problem.name} has no hard constraints; use "
            "config.task.constraints='soft'"
        )
    hard = config.task.constraints == "hard"
    conditions = [c for c in problem.conditions if not hard or c.kind == "data"]
    problem = dataclasses.replace(problem, conditions=tuple(conditions))
    weights = (config.task.weights.pde, *(config.task.weights[c.kind] for c in conditions))
    return Setup(
        config.task,
        problem,
        model,
        ("pde", *(c.name for c in conditions)),
        tuple(map(float, weights)),
    )


def solution(setup: Setup, net: PyTree, x: Array | taylor.Taylor) -> Array | taylor.Taylor:
    """u at points [N, d]: the network, or with hard constraints lift + distance network."""
    u = setup.model.apply({"params": {name: v for name, v in net.items() if name != UNKNOWN}}, x)
    if setup.config.constraints == "soft":
        return u
    return u * taylor.through(setup.problem.distance, x) + taylor.through(setup.problem.lift, x)


def equation(setup: Setup, net: PyTree, x: Array) -> Array:
    """The residual of the equation at points [N, d], [N, equations]."""
    operator = laplacian.second_order(
        lambda p: solution(setup, net, p), setup.problem.weights, setup.config.laplacian
    )
    r = setup.problem.residual(x, *operator(x), net[UNKNOWN] if setup.problem.unknown else {})
    return r.reshape(len(x), -1)


def residuals(setup: Setup, net: PyTree, batch: Batch) -> dict[str, Array]:
    """What has to vanish: {"pde": [B, n, equations], condition: [B, n_c, k]}."""
    points = batch["points"]
    pde = equation(setup, net, points.reshape(-1, points.shape[-1]))
    conditions = {c.name: condition(setup, net, c, batch) for c in setup.problem.conditions}
    return {"pde": pde.reshape(*points.shape[:2], -1), **conditions}


def condition(setup: Setup, net: PyTree, c: pdes.Condition, batch: Batch) -> Array:
    """Measured minus given, [B, n_c, k]."""
    x, target = batch[c.name], batch[f"{c.name}_target"]
    flat, u = x.reshape(-1, x.shape[-1]), lambda p: solution(setup, net, p)
    if c.derivative is not None:
        axis = jnp.zeros_like(flat).at[:, c.derivative].set(1)
        measured = jax.jvp(u, (flat,), (axis,))[1]
    else:
        measured = u(flat) if c.transform is None else c.transform(u(flat))
    return measured.reshape(target.shape) - target


def squares(r: Array) -> Array:
    """[B, n, k] -> [B, n]: summed over equations or fields."""
    return jnp.sum(jnp.square(r), -1)


def causal(setup: Setup, points: Array, square: Array) -> Array:
    """mean_m w_m L_m over slices of time, w_m = exp(-epsilon sum_{j < m} L_j).

    What is late waits until earlier slices are solved (Wang et al. 2024, arXiv:2203.07404).
    """
    axis, bins = setup.problem.coordinates.index("t"), setup.config.causal.bins
    low, high = setup.problem.low[axis], setup.problem.high[axis]
    slot = jnp.clip(jnp.floor((points[..., axis] - low) / (high - low) * bins), 0, bins - 1)
    member = jax.nn.one_hot(slot.astype(jnp.int32).reshape(-1), bins, dtype=square.dtype)
    mean = square.reshape(-1) @ member / jnp.maximum(member.sum(0), 1)
    earlier = jnp.cumsum(mean) - mean
    return jnp.mean(jax.lax.stop_gradient(jnp.exp(-setup.config.causal.epsilon * earlier)) * mean)
