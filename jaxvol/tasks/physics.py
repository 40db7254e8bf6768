"""Physics-informed training: a network of coordinates that meets an equation and its conditions
(Raissi et al. 2019).

    L = w_pde mean |residual(u)|^2 + sum_c w_c mean |u - target_c|^2,        u = network(x), or
    lift(x) + distance(x) network(x)

The derivatives come from ops/laplacian.py, the equation from jaxvol/pdes/, the points from
jaxvol/data/collocation.py.  Points that are added where the residual is large, and weights that
change, are arrays in `extra`; weights that are learned against the network (self_adaptive) are the
group "weights", whose terms are the network's with the sign changed.  Coefficients that the problem
does not know are parameters of the network's group.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxvol import pdes
from jaxvol.data import measured
from jaxvol.ops import balance, laplacian, normalise, refine, taylor
from jaxvol.scores import entries
from jaxvol.tasks import scoring
from jaxvol.types import (
    Array,
    Batch,
    Extra,
    Fixed,
    Key,
    Metrics,
    Params,
    PyTree,
    Rows,
    Spec,
    Task,
    UserError,
)

BALANCES = ("fixed", "loss_ratio", "gradnorm", "ntk", "relobralo", "self_adaptive")
REFINEMENTS = ("none", "rar", "rad")
# entry of params["net"] with the coefficients that are to be found
UNKNOWN = "unknown"


def fields() -> ConfigDict:
    """Equation and conditions as a loss (jaxvol/tasks/physics.py)."""
    return ConfigDict(
        {
            "name": "physics",
            # auto | taylor | diagonal | jet | hessian | folx, see jaxvol/ops/laplacian.py
            "laplacian": "auto",
            # soft: conditions are terms of the loss | hard: the network is lift + distance *
            # network
            "constraints": "soft",
            "weights": ConfigDict(
                {  # of the mean squares; where the balance starts
                    "pde": 1.0,
                    "boundary": 10.0,
                    "initial": 10.0,
                    "data": 10.0,
                }
            ),
            "balance": ConfigDict(
                {  # how the weights change
                    # fixed | loss_ratio | gradnorm | ntk | relobralo | self_adaptive (group
                    # "weights")
                    "name": "fixed",
                    "loss_ratio": ConfigDict({"alpha": 1.5, "rate": 0.025}),
                    # every: updates between measurements
                    "gradnorm": ConfigDict({"alpha": 1.5, "rate": 0.025, "every": 10}),
                    "ntk": ConfigDict({"every": 100}),
                    "relobralo": ConfigDict({"temperature": 0.1, "decay": 0.999, "saccade": 0.999}),
                }
            ),
            "causal": ConfigDict(
                {  # slices of time wait until earlier ones are solved
                    "epsilon": 0.0,  # how strictly; 0 = off
                    "bins": 16,  # slices
                }
            ),
            "refine": ConfigDict(
                {  # points where the residual is large
                    "name": "none",  # none | rar (adds points) | rad (draws all of them anew)
                    "every": 500,  # updates between refinements
                    "cap": 200,  # rar: at most so many are added; rad: so many are drawn
                    "percentile": 75.0,  # rar: residuals above it
                    "ratio": 0.2,  # rar: points added, as a fraction of those there are
                    "candidates": 4000,  # rad: points that are drawn from
                    "power": 1.0,
                    "floor": 1.0,  # rad: density ~ |r|^power / mean |r|^power + floor
                }
            ),
            # names in jaxvol/scores/metrics.py, of the solution on the grid
            "metrics": ("relative_l2", "rmse", "mae"),
        }
    )


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the functions of this file share."""

    config: Any  # config.task
    problem: pdes.Problem
    model: nn.Module
    spec: Spec
    terms: tuple[str, ...]  # "pde", then the conditions
    weights: tuple[float, ...]  # of the config, one per term


def rules(config: ConfigDict) -> list[str]:
    """Violated rules of `config.task`, for jaxvol/config/validate.py."""
    task, problems = config.task, scoring.wrong_metrics(config)
    for field, value, known in (
        ("laplacian", task.laplacian, laplacian.METHODS),
        ("constraints", task.constraints, ("soft", "hard")),
        ("balance.name", task.balance.name, BALANCES),
        ("refine.name", task.refine.name, REFINEMENTS),
    ):
        if value not in known:
            problems.append(f"task.{field} is {value!r}; it has to be one of {', '.join(known)}.")
    if config.data.name != "collocation":
        problems.append(
            f"task.name='physics' needs data.name='collocation', not {config.data.name!r}."
        )
    if config.micro_batches > 1 and (
        task.refine.name != "none" or task.causal.epsilon > 0 or task.balance.name != "fixed"
    ):
        problems.append(
            "micro_batches > 1 needs task.refine.name='none', causal.epsilon=0 and "
            "balance.name='fixed': the others look at "
            "all points at once."
        )
    if task.refine.name != "none" and (task.refine.every < 1 or task.refine.cap < 1):
        problems.append(
            f"task.refine has every={task.refine.every} and cap={task.refine.cap}; both have to be "
            "at least 1."
        )
    return problems


def make(config: ConfigDict, spec: Spec, model: nn.Module) -> Task:
    """The task of solving `config.data.problem` with `model` (group "net").

    Rows: one per metric (solution on the grid, where it is known), loss and loss_<term> (weights of
          the config, points of their own), and
    <coefficient>_error (relative) of an inverse problem.  Metrics of a step: net/weight_<term>,
    net/<coefficient>; with refinement net/points and net/residual_p{75,95,99} of the points before
    the last refinement.  Raises UserError where the problem has no hard constraints and they are
    asked for.
    """
    own = setup(config, spec, model)
    scores = entries.metric_functions(config.task.metrics, spec)

    def init(rng: Key, batch: Batch) -> tuple[Params, Extra]:
        dtype = jnp.float64 if config.precision == "f64" else jnp.float32
        variables = dict(model.init({"params": rng}, jnp.zeros((1, len(own.problem.low)), dtype)))
        net = variables.pop("params")
        if own.problem.unknown:
            net = {
                **net,
                UNKNOWN: {name: jnp.asarray(v, dtype) for name, v in own.problem.unknown.items()},
            }
        params, extra, initial = (
            {"net": net},
            {"stats": {"net": variables}},
            jnp.asarray(own.weights, dtype),
        )
        if own.config.balance.name == "self_adaptive":
            params["weights"] = jnp.log(jnp.maximum(initial, balance.EPS))
            extra["stats"]["weights"] = {}
        elif own.config.balance.name != "fixed":
            extra["balance"] = balance.start(initial)
        if own.config.refine.name != "none":
            extra["refined"] = {
                "points": jnp.broadcast_to(
                    jnp.asarray(own.problem.low, dtype),
                    (own.config.refine.cap, len(own.problem.low)),
                ),
                "count": jnp.int32(0),
                "percentiles": jnp.zeros(len(refine.PERCENTILES), dtype),
            }
        return params, extra

    def loss(
        params: Params, fixed: Fixed, batch: Batch, rng: Key
    ) -> tuple[dict, tuple[Metrics, Extra]]:
        return train_loss(own, params, fixed, batch, rng)

    def evaluate(params: Params, extra: Extra, batch: Batch, rng: Key) -> Rows:
        pred = predict(params, extra, batch)
        rows = {
            name: score(pred, batch["target"], None)
            for name, score in scores.items()
            if own.problem.known
        }
        for name, weight, r in zip(
            own.terms, own.weights, residuals(own, params["net"], batch).values()
        ):
            rows[f"loss_{name}"] = weight * jnp.mean(squares(r), -1)
        rows["loss"] = sum(rows[f"loss_{name}"] for name in own.terms)
        for name, true in own.problem.truth.items():
            error = jnp.abs(params["net"][UNKNOWN][name] / true - 1)
            rows[f"{name}_error"] = jnp.broadcast_to(error, rows["loss"].shape)
        return rows

    def summarize(rows: dict[str, np.ndarray]) -> Metrics:
        return {name: float(np.mean(values, dtype=np.float64)) for name, values in rows.items()}

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        x = normalise.inverse(spec.fields["input"].normaliser, batch["input"])
        u = solution(own, params["net"], x.reshape(-1, x.shape[-1]))
        return u.reshape(*x.shape[:-1], u.shape[-1])

    return Task(init, loss, evaluate, summarize, predict)


def setup(config: ConfigDict, spec: Spec, model: nn.Module) -> Setup:
    """The record of this run; UserError where hard constraints are asked for and the problem has
    none.
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
        spec,
        ("pde", *(c.name for c in conditions)),
        tuple(map(float, weights)),
    )


def solution(own: Setup, net: PyTree, x: Array | taylor.Taylor) -> Array | taylor.Taylor:
    """u at points [N, d]: the network, or with hard constraints lift + distance network."""
    u = own.model.apply({"params": {name: v for name, v in net.items() if name != UNKNOWN}}, x)
    if own.config.constraints == "soft":
        return u
    return u * taylor.through(own.problem.distance, x) + taylor.through(own.problem.lift, x)


def equation(own: Setup, net: PyTree, x: Array) -> Array:
    """The residual of the equation at points [N, d], [N, equations]."""
    operator = laplacian.second_order(
        lambda p: solution(own, net, p), own.problem.weights, own.config.laplacian
    )
    r = own.problem.residual(x, *operator(x), net[UNKNOWN] if own.problem.unknown else {})
    return r.reshape(len(x), -1)


def residuals(own: Setup, net: PyTree, batch: Batch) -> dict[str, Array]:
    """What has to vanish: {"pde": [B, n, equations], condition: [B, n_c, k]}."""
    points = batch["points"]
    found = {
        "pde": equation(own, net, points.reshape(-1, points.shape[-1])).reshape(
            *points.shape[:2], -1
        )
    }
    return found | {c.name: condition(own, net, c, batch) for c in own.problem.conditions}


def condition(own: Setup, net: PyTree, c: pdes.Condition, batch: Batch) -> Array:
    """Measured minus given, [B, n_c, k]."""
    x, target = batch[c.name], batch[f"{c.name}_target"]
    flat, u = x.reshape(-1, x.shape[-1]), lambda p: solution(own, net, p)
    if c.derivative is not None:
        axis = jnp.zeros_like(flat).at[:, c.derivative].set(1)
        measured = jax.jvp(u, (flat,), (axis,))[1]
    else:
        measured = u(flat) if c.transform is None else c.transform(u(flat))
    return measured.reshape(target.shape) - target


def squares(r: Array) -> Array:
    """[B, n, k] -> [B, n]: summed over equations or fields."""
    return jnp.sum(jnp.square(r), -1)


def train_loss(
    own: Setup, params: Params, fixed: Fixed, batch: Batch, rng: Key
) -> tuple[dict, tuple[Metrics, Extra]]:
    """The weighted terms of one step, and the arrays of `extra` for the next."""
    found = residuals(own, params["net"], batch)
    raw = {name: jnp.mean(squares(r)) for name, r in found.items()}
    changed, readings = (
        {},
        {
            f"net/{name}": value
            for name, value in (params["net"][UNKNOWN] if own.problem.unknown else {}).items()
        },
    )
    if own.config.refine.name != "none":
        raw["pde"], changed["refined"], seen = refined(
            own, params["net"], found["pde"], fixed, batch, rng
        )
        readings |= seen
    elif own.config.causal.epsilon > 0:
        raw["pde"] = causal(own, batch["points"], squares(found["pde"]))
    values = jnp.stack([raw[name] for name in own.terms])
    name = own.config.balance.name
    if name == "self_adaptive":
        weights = jnp.exp(params["weights"])
    elif name == "fixed":
        weights = jnp.asarray(own.weights, values.dtype)
    else:
        weights = fixed.extra["balance"]["weights"]
        changed["balance"] = balanced(
            own, params["net"], fixed, batch, jax.lax.stop_gradient(values), rng
        )
    terms = {"net": {term: weights[i] * raw[term] for i, term in enumerate(own.terms)}}
    if name == "self_adaptive":
        terms["weights"] = {f"against_{term}": -value for term, value in terms["net"].items()}
    if name != "fixed":
        readings |= {f"net/weight_{term}": weights[i] for i, term in enumerate(own.terms)}
    return terms, (readings, changed)


def causal(own: Setup, points: Array, square: Array) -> Array:
    """mean_m w_m L_m over slices of time, w_m = exp(-epsilon sum_{j < m} L_j): what is late waits
    (Wang et al. 2024, arXiv:2203.07404).
    """
    axis, bins = own.problem.coordinates.index("t"), own.config.causal.bins
    low, high = own.problem.low[axis], own.problem.high[axis]
    slot = jnp.clip(jnp.floor((points[..., axis] - low) / (high - low) * bins), 0, bins - 1).astype(
        jnp.int32
    )
    member = jax.nn.one_hot(slot.reshape(-1), bins, dtype=square.dtype)
    mean = square.reshape(-1) @ member / jnp.maximum(member.sum(0), 1)
    earlier = jnp.cumsum(mean) - mean
    return jnp.mean(jax.lax.stop_gradient(jnp.exp(-own.config.causal.epsilon * earlier)) * mean)


def refined(
    own: Setup, net: PyTree, base: Array, fixed: Fixed, batch: Batch, rng: Key
) -> tuple[Array, PyTree, Metrics]:
    """(loss over the points of the batch and the added ones, the buffer of the next step,
    readings).
    """
    asked, state = own.config.refine, fixed.extra["refined"]
    points = batch["points"].reshape(-1, batch["points"].shape[-1])
    added = jax.lax.stop_gradient(state["points"])
    square = jnp.concatenate([squares(base).reshape(-1), squares(equation(own, net, added))])
    use_base = jnp.where((state["count"] > 0) & (asked.name == "rad"), 0.0, 1.0)
    used = jnp.concatenate(
        [
            jnp.full(len(points), use_base, square.dtype),
            (jnp.arange(len(added)) < state["count"]).astype(square.dtype),
        ]
    )
    value = jnp.sum(used * square) / jnp.sum(used)
    frozen, low, high = (
        jax.lax.stop_gradient(net),
        jnp.asarray(own.problem.low, points.dtype),
        jnp.asarray(own.problem.high, points.dtype),
    )
    size = jnp.sqrt(jax.lax.stop_gradient(square))

    def search(now: PyTree) -> PyTree:
        levels = jnp.nanpercentile(
            jnp.where(used > 0, size, jnp.nan), jnp.asarray(refine.PERCENTILES, size.dtype)
        )
        if asked.name == "rar":
            buffer, count = refine.rar(
                rng,
                jnp.concatenate([points, added]),
                size,
                used,
                now["points"],
                now["count"],
                low,
                high,
                asked.percentile,
                asked.ratio,
            )
        else:
            where, choice = jax.random.split(rng)
            candidates = jax.random.uniform(
                where, (asked.candidates, len(low)), points.dtype, low, high
            )
            large = jnp.sqrt(squares(equation(own, frozen, candidates)))
            buffer = refine.rad(choice, candidates, large, asked.cap, asked.power, asked.floor)
            count = jnp.int32(asked.cap)
        return {
            "points": buffer,
            "count": count,
            "percentiles": levels.astype(now["percentiles"].dtype),
        }

    new = jax.lax.cond((fixed.step + 1) % asked.every == 0, search, lambda now: now, state)
    readings = {
        "net/points": jnp.sum(used),
        **{f"net/residual_p{p}": state["percentiles"][i] for i, p in enumerate(refine.PERCENTILES)},
    }
    return value, new, readings


def balanced(
    own: Setup, net: PyTree, fixed: Fixed, batch: Batch, values: Array, rng: Key
) -> PyTree:
    """The state of the loss balance after this step."""
    state, rule, net = fixed.extra["balance"], own.config.balance, jax.lax.stop_gradient(net)
    if rule.name == "loss_ratio":
        return balance.loss_ratio(state, values, rule.loss_ratio.alpha, rule.loss_ratio.rate)
    if rule.name == "relobralo":
        r = rule.relobralo
        return balance.relobralo(
            state, values, jax.random.fold_in(rng, 1), r.temperature, r.decay, r.saccade
        )

    def measured(now: PyTree) -> PyTree:
        if rule.name == "gradnorm":
            norms = jnp.sqrt(
                pulled(
                    lambda n: {
                        name: jnp.mean(squares(r)) for name, r in residuals(own, n, batch).items()
                    },
                    net,
                    own.terms,
                )
            )
            return balance.gradnorm(now, values, norms, rule.gradnorm.alpha, rule.gradnorm.rate)
        return balance.ntk(
            now, values, pulled(lambda n: signed(residuals(own, n, batch), rng), net, own.terms)
        )

    every = rule.gradnorm.every if rule.name == "gradnorm" else rule.ntk.every
    return jax.lax.cond(fixed.step % every == 0, measured, lambda now: now, state)


def signed(found: dict[str, Array], rng: Key) -> dict[str, Array]:
    """sum_n s_n r_n / sqrt(n) with random signs: its squared gradient has the expectation tr K / n
    (Hutchinson's estimator).
    """
    return {
        name: jnp.sum(r * jax.random.rademacher(jax.random.fold_in(rng, i), r.shape, r.dtype))
        / jnp.sqrt(r[..., 0].size)
        for i, (name, r) in enumerate(found.items())
    }


def pulled(f, net: PyTree, terms: tuple[str, ...]) -> Array:
    """|grad f_i|^2 of every entry of f(net), from one evaluation of f."""
    values, pullback = jax.vjp(f, net)
    gradient = lambda term: pullback(
        {name: jnp.full_like(v, name == term) for name, v in values.items()}
    )[0]
    return jnp.stack(
        [sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient(term))) for term in terms]
    )


def baselines(
    config: ConfigDict, spec: Spec, train_batches
) -> dict[str, tuple[Task, Params, Extra]]:
    """{"mean", "zero": (task, params, extra)}: the mean of the solution on the grid, and u = 0,
    which many equations admit.

    Where the problem has estimates of other methods, they are baselines as well.  None where there
    is no solution to score against.
    """
    problem = measured.problem(config.data.problem)
    if not problem.known:
        return {}
    scores = entries.metric_functions(config.task.metrics, spec)
    first = next(iter(train_batches))
    grid = np.asarray(first["target"])[:1]

    def constant(value: np.ndarray) -> tuple[Task, Params, Extra]:
        def predict(params: Params, extra: Extra, batch: Batch) -> Array:
            return jnp.broadcast_to(params["net"], batch["target"].shape).astype(
                batch["target"].dtype
            )

        def evaluate(params: Params, extra: Extra, batch: Batch, rng: Key) -> Rows:
            return {
                name: score(predict(params, extra, batch), batch["target"], None)
                for name, score in scores.items()
            }

        def loss(params: Params, fixed: Fixed, batch: Batch, rng: Key):
            raise ValueError("a baseline has nothing to train")

        summarize = lambda rows: {
            name: float(np.mean(v, dtype=np.float64)) for name, v in rows.items()
        }
        params, extra = {"net": jnp.asarray(value)}, {"stats": {"net": {}}}
        return (
            Task(lambda rng, batch: (params, extra), loss, evaluate, summarize, predict),
            params,
            extra,
        )

    mean = grid.mean((0, 1, 2, 3))
    others = {
        name: constant(values.reshape(grid.shape).astype(grid.dtype))
        for name, values in problem.estimates.items()
    }
    return {"mean": constant(mean), "zero": constant(np.zeros_like(mean)), **others}
