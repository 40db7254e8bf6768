"""Weights of the terms of a physics-informed loss that change from step to step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxvol.ops import balance
from jaxvol.tasks import equations
from jaxvol.tasks.equations import Setup
from jaxvol.types import Array, Batch, Fixed, Key, PyTree


def balanced(
    setup: Setup, net: PyTree, fixed: Fixed, batch: Batch, values: Array, rng: Key
) -> PyTree:
    """The state of the loss balance after this step."""
    state, rule, net = fixed.extra["balance"], setup.config.balance, jax.lax.stop_gradient(net)
    if rule.name == "loss_ratio":
        return balance.loss_ratio(state, values, rule.loss_ratio.alpha, rule.loss_ratio.rate)
    if rule.name == "relobralo":
        r = rule.relobralo
        return balance.relobralo(
            state, values, jax.random.fold_in(rng, 1), r.temperature, r.decay, r.saccade
        )

    def means(net: PyTree) -> dict[str, Array]:
        rows = equations.residuals(setup, net, batch)
        return {name: jnp.mean(equations.squares(r)) for name, r in rows.items()}

    def traces(net: PyTree) -> dict[str, Array]:
        return signed(equations.residuals(setup, net, batch), rng)

    def measured(now: PyTree) -> PyTree:
        if rule.name == "gradnorm":
            norms = jnp.sqrt(pulled(means, net, setup.terms))
            return balance.gradnorm(now, values, norms, rule.gradnorm.alpha, rule.gradnorm.rate)
        return balance.ntk(now, values, pulled(traces, net, setup.terms))

    every = rule.gradnorm.every if rule.name == "gradnorm" else rule.ntk.every
    return jax.lax.cond(fixed.step % every == 0, measured, lambda now: now, state)


def signed(residuals: dict[str, Array], rng: Key) -> dict[str, Array]:
    """sum_n s_n r_n / sqrt(n) with random signs s_n, for every term.

    Its squared gradient has the expectation tr K / n (Hutchinson's estimator).
    """
    return {
        name: jnp.sum(r * jax.random.rademacher(jax.random.fold_in(rng, i), r.shape, r.dtype))
        / jnp.sqrt(r[..., 0].size)
        for i, (name, r) in enumerate(residuals.items())
    }


def pulled(f: Callable[[PyTree], dict[str, Array]], net: PyTree, terms: tuple[str, ...]) -> Array:
    """|grad f_i|^2 of every entry of f(net), from one evaluation of f."""
    values, pullback = jax.vjp(f, net)
    gradient = lambda term: pullback(
        {name: jnp.full_like(v, name == term) for name, v in values.items()}
    )[0]
    return jnp.stack(
        [sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient(term))) for term in terms]
    )
