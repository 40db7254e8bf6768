"""Weights of the terms of a loss that change while it is minimised.

Losses and weights are [n], one entry per term.  A rule has `start(initial) -> state` and
`update(state, losses, ...) -> state`; `state["weights"]` weigh the terms of the NEXT step.  With
r_i = L_i / L_i(0):

    loss_ratio  log w_i += rate ((r_i / mean r)^alpha - 1),  then sum w = n
                (DynamicWeightedLoss of StreoCalibration/Scaled-cPIKANs, there called GradNorm; no
                gradient enters)
    gradnorm    G_i = w_i |grad L_i|,  w_i -= rate d/dw_i |G_i - mean G (r_i / mean r)^alpha|,
                then sum w = n  (Chen et al. 2018, arXiv:1711.02257; step relative to mean G)
    ntk         w_i = sum_j tr K_j / tr K_i,  tr K_i = mean squared gradient of the residuals of
                term i  (Wang et al. 2022, arXiv:2007.14527)
    relobralo   w = a (b w + (1 - b) s(L / L(0))) + (1 - a) s(L / L(previous)),
                s(z) = n softmax(z / temperature),  b ~ Bernoulli
                (Bischof and Kraus 2021, arXiv:2110.09813)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvol.types import Array, Key

EPS = 1e-8
State = dict[str, Array]


def start(initial: Array) -> State:
    """The state before the first step: these weights, and no losses seen."""
    return {
        "weights": initial,
        "first": jnp.zeros_like(initial),
        "last": jnp.zeros_like(initial),
        "seen": jnp.int32(0),
    }


def seen(state: State, losses: Array) -> State:
    """`state` with the first losses set, if these are the first."""
    return {
        **state,
        "first": jnp.where(state["seen"] == 0, losses, state["first"]),
        "last": jnp.where(state["seen"] == 0, losses, state["last"]),
        "seen": state["seen"] + 1,
    }


def normalised(weights: Array) -> Array:
    """The same ratios, with the sum n."""
    return weights * len(weights) / jnp.sum(weights)


def loss_ratio(state: State, losses: Array, alpha: float, rate: float) -> State:
    """Terms that fell less than the mean gain weight."""
    state = seen(state, losses)
    ratio = losses / (state["first"] + EPS)
    target = (ratio / jnp.mean(ratio)) ** alpha
    return {
        **state,
        "last": losses,
        "weights": normalised(state["weights"] * jnp.exp(rate * (target - 1))),
    }


def gradnorm(state: State, losses: Array, norms: Array, alpha: float, rate: float) -> State:
    """Terms whose weighted gradient is small for how little they fell gain weight.

    norms: |grad L_i|, unweighted
    """
    state = seen(state, losses)
    ratio, weighted = losses / (state["first"] + EPS), state["weights"] * norms
    target = jnp.mean(weighted) * (ratio / jnp.mean(ratio)) ** alpha
    moved = (
        state["weights"]
        - rate * jnp.sign(weighted - target) * norms / (jnp.mean(weighted) + EPS) * state["weights"]
    )
    return {
        **state,
        "last": losses,
        "weights": normalised(jnp.maximum(moved, 1e-3 * state["weights"])),
    }


def ntk(state: State, losses: Array, traces: Array) -> State:
    """Every term gets the same rate of convergence at the start of the flow; traces: tr K_i."""
    return {
        **seen(state, losses),
        "last": losses,
        "weights": jnp.sum(traces) / jnp.maximum(traces, EPS * jnp.sum(traces)),
    }


def relobralo(
    state: State, losses: Array, key: Key, temperature: float, decay: float, saccade: float
) -> State:
    """Relative loss balancing with random lookback; b is 1 with probability `saccade`."""
    state = seen(state, losses)

    def against(before: Array) -> Array:
        return len(losses) * jax.nn.softmax(losses / (temperature * before + EPS))

    back = jax.random.bernoulli(key, saccade).astype(losses.dtype)
    held = back * state["weights"] + (1 - back) * against(state["first"])
    return {**state, "weights": decay * held + (1 - decay) * against(state["last"]), "last": losses}
