"""Physics-informed training: a network of coordinates that meets an equation and its conditions
(Raissi et al. 2019).

    L = w_pde mean |residual(u)|^2 + sum_c w_c mean |u - target_c|^2
    u = network(x), or lift(x) + distance(x) network(x)

The derivatives come from ops/laplacian.py, the equation from jaxvol/pdes/, the points from
jaxvol/data/collocation.py.  Points that are added where the residual is large (refining.py), and
weights that change (balancing.py), are arrays in `extra`; weights that are learned against the
network (self_adaptive) are the group "weights", whose terms are the network's with the sign
changed.  Coefficients that the problem does not know are parameters of the network's group.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxvol.data import measured
from jaxvol.ops import balance, laplacian, normalise
from jaxvol.scores import entries
from jaxvol.tasks import balancing, equations, refining, scoring
from jaxvol.tasks.equations import UNKNOWN, Setup
from jaxvol.types import Array, Batch, Extra, Fixed, Key, Metrics, Params, Rows, Spec, Task

BALANCES = ("fixed", "loss_ratio", "gradnorm", "ntk", "relobralo", "self_adaptive")
REFINEMENTS = ("none", "rar", "rad")


def fields() -> ConfigDict:
    """Equation and conditions as a loss (jaxvol/tasks/physics.py)."""
    return ConfigDict(
        {
            "name": "physics",
            # auto | taylor | diagonal | jet | hessian | folx, see jaxvol/ops/laplacian.py
            "laplacian": "auto",
            # soft: conditions are terms of the loss | hard: lift + distance * network meets them
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
                    # fixed | loss_ratio | gradnorm | ntk | relobralo | self_adaptive
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
            # of the solution on the grid: names in jaxvol/scores/metrics.py, (name, {argument:
            # value}), or paths of functions of yours
            "metrics": ("relative_l2", "rmse", "mae"),
        }
    )


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
            "balance.name='fixed': the others look at all points at once."
        )
    if task.refine.name != "none" and (task.refine.every < 1 or task.refine.cap < 1):
        problems.append(
            f"task.refine has every={task.refine.every} and cap={task.refine.cap}; both have to be "
            "at least 1."
        )
    return problems


def make(config: ConfigDict, spec: Spec, model: nn.Module) -> Task:
    """The task of solving `config.data.problem` with `model` (group "net").

    Rows:
        <metric>                      of the solution on the grid, where it is known
        loss, loss_<term>             weights of the config, points of their own
        <coefficient>_error           relative, of an inverse problem
    Metrics of a step:
        net/weight_<term>, net/<coefficient>
        net/points                    with refinement
        net/residual_p{75,95,99}      of the points before the last refinement

    Raises UserError where hard constraints are asked for and the problem has none.
    """
    setup = equations.make_setup(config, model)
    scores = entries.metric_functions(config.task.metrics, spec)

    def init(rng: Key, batch: Batch) -> tuple[Params, Extra]:
        return start(setup, rng, jnp.float64 if config.precision == "f64" else jnp.float32)

    def loss(
        params: Params, fixed: Fixed, batch: Batch, rng: Key
    ) -> tuple[dict, tuple[Metrics, Extra]]:
        return train_loss(setup, params, fixed, batch, rng)

    def evaluate(params: Params, extra: Extra, batch: Batch, rng: Key) -> Rows:
        pred = predict(params, extra, batch)
        rows = {
            name: score(pred, batch["target"], None)
            for name, score in scores.items()
            if setup.problem.known
        }
        residuals = equations.residuals(setup, params["net"], batch)
        for name, weight in zip(setup.terms, setup.weights, strict=True):
            rows[f"loss_{name}"] = weight * jnp.mean(equations.squares(residuals[name]), -1)
        rows["loss"] = sum(rows[f"loss_{name}"] for name in setup.terms)
        for name, true in setup.problem.truth.items():
            error = jnp.abs(params["net"][UNKNOWN][name] / true - 1)
            rows[f"{name}_error"] = jnp.broadcast_to(error, rows["loss"].shape)
        return rows

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        x = normalise.inverse(spec.fields["input"].normaliser, batch["input"])
        u = equations.solution(setup, params["net"], x.reshape(-1, x.shape[-1]))
        return u.reshape(*x.shape[:-1], u.shape[-1])

    provides = frozenset(("paired", "physics"))
    return Task(init, loss, evaluate, summarize, predict, provides=provides)


def start(setup: Setup, rng: Key, dtype: jnp.dtype) -> tuple[Params, Extra]:
    """Parameters of the network, of unknown coefficients and learned weights; and what changes from
    step to step without being learned.
    """
    point = jnp.zeros((1, len(setup.problem.low)), dtype)
    variables = dict(setup.model.init({"params": rng}, point))
    net, initial = variables.pop("params"), jnp.asarray(setup.weights, dtype)
    if setup.problem.unknown:
        coefficients = {k: jnp.asarray(v, dtype) for k, v in setup.problem.unknown.items()}
        net = {**net, UNKNOWN: coefficients}
    params, extra = {"net": net}, {"stats": {"net": variables}}
    if setup.config.balance.name == "self_adaptive":
        params["weights"] = jnp.log(jnp.maximum(initial, balance.EPS))
        extra["stats"]["weights"] = {}
    elif setup.config.balance.name != "fixed":
        extra["balance"] = balance.start(initial)
    if setup.config.refine.name != "none":
        extra["refined"] = refining.start(setup, dtype)
    return params, extra


def train_loss(
    setup: Setup, params: Params, fixed: Fixed, batch: Batch, rng: Key
) -> tuple[dict, tuple[Metrics, Extra]]:
    """The weighted terms of one step, and the arrays of `extra` for the next."""
    residuals = equations.residuals(setup, params["net"], batch)
    raw = {name: jnp.mean(equations.squares(r)) for name, r in residuals.items()}
    coefficients = params["net"][UNKNOWN] if setup.problem.unknown else {}
    changed, readings = {}, {f"net/{name}": value for name, value in coefficients.items()}
    if setup.config.refine.name != "none":
        raw["pde"], changed["refined"], of_points = refining.refined(
            setup, params["net"], residuals["pde"], fixed, batch, rng
        )
        readings |= of_points
    elif setup.config.causal.epsilon > 0:
        square = equations.squares(residuals["pde"])
        raw["pde"] = equations.causal(setup, batch["points"], square)
    values = jnp.stack([raw[name] for name in setup.terms])
    name = setup.config.balance.name
    if name == "self_adaptive":
        weights = jnp.exp(params["weights"])
    elif name == "fixed":
        weights = jnp.asarray(setup.weights, values.dtype)
    else:
        weights = fixed.extra["balance"]["weights"]
        changed["balance"] = balancing.balanced(
            setup, params["net"], fixed, batch, jax.lax.stop_gradient(values), rng
        )
    terms = {"net": {term: weights[i] * raw[term] for i, term in enumerate(setup.terms)}}
    if name == "self_adaptive":
        terms["weights"] = {f"against_{term}": -value for term, value in terms["net"].items()}
    if name != "fixed":
        readings |= {f"net/weight_{term}": weights[i] for i, term in enumerate(setup.terms)}
    return terms, (readings, changed)


def baselines(
    config: ConfigDict, spec: Spec, train_batches: Iterable[dict[str, np.ndarray]]
) -> dict[str, tuple[Task, Params, Extra]]:
    """{"mean", "zero": (task, params, extra)}: the solution's mean on the grid, and u = 0, which
    many equations admit.

    Where the problem has estimates of other methods, they are baselines as well.  None where there
    is no solution to score against.
    """
    problem = measured.problem(config.data.problem)
    if not problem.known:
        return {}
    grid = np.asarray(next(iter(train_batches))["target"])[:1]
    mean = grid.mean((0, 1, 2, 3))
    values = {"mean": mean, "zero": np.zeros_like(mean)}
    values |= {
        name: estimate.reshape(grid.shape).astype(grid.dtype)
        for name, estimate in problem.estimates.items()
    }
    return {name: constant(config, spec, jnp.asarray(u)) for name, u in values.items()}


def constant(config: ConfigDict, spec: Spec, u: Array) -> tuple[Task, Params, Extra]:
    """(task, params, extra) of the prediction u, [m] or [1, *grid, m], whatever the input."""
    scores = entries.metric_functions(config.task.metrics, spec)
    start = {"net": u}, {"stats": {"net": {}}}

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        target = batch["target"]
        return jnp.broadcast_to(params["net"], target.shape).astype(target.dtype)

    def evaluate(params: Params, extra: Extra, batch: Batch, rng: Key) -> Rows:
        pred = predict(params, extra, batch)
        return {name: score(pred, batch["target"], None) for name, score in scores.items()}

    def loss(params: Params, fixed: Fixed, batch: Batch, rng: Key):
        raise ValueError("a baseline has nothing to train")

    return Task(lambda rng, batch: start, loss, evaluate, summarize, predict), *start


def summarize(rows: dict[str, np.ndarray]) -> Metrics:
    """Means over examples."""
    return {name: float(np.mean(values, dtype=np.float64)) for name, values in rows.items()}
