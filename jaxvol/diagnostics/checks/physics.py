"""Physics-informed training: the equation agrees with the solution, all conditions count, and u = 0
is no way out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol import pdes
from jaxvol.data import measured
from jaxvol.diagnostics import probe
from jaxvol.diagnostics.records import Context
from jaxvol.ops import laplacian, normalise
from jaxvol.plots import figures
from jaxvol.training import averages
from jaxvol.types import Fixed, Params, Result

RANK = 41
NEEDS = ("physics",)
POINTS = 64
MEANING = {
    "solution_residual": (
        "largest residual of the known solution in float64, relative to the terms of the equation",
        "equation and solution in jaxvol/pdes/ are not of the same problem: sign, coefficient or "
        "domain",
    ),
    "uncovered": (
        "faces of a condition on which the batch has no point",
        "every boundary and initial face needs points: data.points",
    ),
    "silent": (
        "terms of the loss that are zero, or send no gradient, at the start",
        "a condition is not enforced, or its weight is 0",
    ),
    "reach": (
        "largest coordinate that the network sees; it is made for [-1, 1]",
        "set model.scaling='affine'",
    ),
    "rank": (
        "effective rank of the weakest layer's coefficients after the short run, as a fraction of "
        "the full one",
        "layers have collapsed: another init, a lower learning rate, or fewer neurons",
    ),
    "zero_loss": (
        "loss of a network that is 0 everywhere, relative to the loss at the start",
        "u = 0 solves the problem: the equation is homogeneous and no condition refuses it",
    ),
    "progress": (
        "loss after the short run over that of a network that is 0 everywhere",
        "the short run is worse than u = 0, or stuck at it: change the learning rate, or give it "
        "more updates (preflight.steps)",
    ),
}
LIMITS = {
    "solution_residual": ("<", 1e-9, 1e-6),  # relative
    "uncovered": ("<", 0.0, 0.0),  # faces
    "silent": ("<", 0.0, 0.0),  # terms
    "reach": ("<", 1.001, 2.5),  # half widths of the domain
    "rank": (">", 0.5, 0.25),  # of the full rank
    "zero_loss": (">", 1e-3, 1e-8),  # of the loss at the start
    "progress": ("<", 1.0, 10.0),  # of the loss of u = 0
}


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """The solution is read here and in evaluation, never in training."""
    problem, batch = measured.problem(ctx.config.data.problem), jax.device_get(ctx.batch(0))
    fixed = Fixed(ctx.state.step, ctx.state.step, ctx.state.extra, ctx.state.averages)
    loss = jax.jit(
        lambda p: ctx.task.loss(p, fixed, ctx.batch(0), jax.random.key(0))[0]["net"],
        compiler_options=probe.quick(),
    )
    state, history = probe.short_run(ctx)
    start = sum(map(float, loss(ctx.state.params).values()))
    zero = sum(map(float, loss(silenced(ctx.state.params)).values()))
    table = shares(ctx, fixed)
    metrics = {
        "uncovered": float(uncovered(problem, batch, ctx.config.task.constraints == "hard")),
        "silent": float(sum(not row["gradient"] > 0 for row in table)),
        "reach": reach(ctx, batch["points"]),
        "zero_loss": zero / max(start, 1e-300),
        "progress": history[-1]["net/loss"] / max(zero, 1e-300),
    }
    ranks = [
        effective_rank(v) for name, v in state.params["net"].items() if name.startswith("layer_")
    ]
    if ranks:
        metrics["rank"] = min(ranks)
    if problem.closed:
        metrics["solution_residual"] = solution_residual(problem)
    bands = spectrum(ctx, state) if problem.known else []
    tables, pictures = {"terms at the start": table}, {}
    if bands:
        tables["error by frequency after the short run"] = bands
        pictures["error by frequency"] = draw(bands)
    return Result(metrics, tables, pictures)


def solution_residual(problem: pdes.Problem) -> float:
    """max |residual| at random inner points, relative to the largest value, first derivative or
    second derivative there.
    """
    with jax.enable_x64(True):
        low, high = np.array(problem.low), np.array(problem.high)
        x = jnp.asarray(
            low + np.random.default_rng(0).uniform(0.02, 0.98, (POINTS, len(low))) * (high - low)
        )
        # u, its first and its second derivatives
        u = laplacian.second_order(lambda p: problem.solution(p, jnp), problem.weights, "diagonal")(
            x
        )
        r = problem.residual(x, *u, problem.truth)
        return float(jnp.abs(r).max() / max(float(jnp.abs(v).max()) for v in u))


def uncovered(problem: pdes.Problem, batch: dict, hard: bool) -> int:
    """Faces of soft conditions without a point; hard ones need none."""
    faces = [(c.name, face) for c in problem.conditions for face in c.faces if not hard]
    return sum(
        name not in batch or not np.isclose(batch[name][..., axis], bound, atol=1e-5).any()
        for name, (axis, bound) in faces
    )


def shares(ctx: Context, fixed: Fixed) -> list[dict]:
    """Value and norm of the gradient of every term at the start."""

    def terms(params):
        return ctx.task.loss(params, fixed, ctx.batch(0), jax.random.key(0))[0]["net"]

    jacobian = jax.device_get(
        jax.jit(jax.jacrev(terms), compiler_options=probe.quick())(ctx.state.params)
    )
    values = jax.device_get(jax.jit(terms, compiler_options=probe.quick())(ctx.state.params))
    return [
        {
            "term": name,
            "weighted": float(values[name]),
            "gradient": float(
                np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(jacobian[name]["net"])))
            ),
        }
        for name in values
    ]


def reach(ctx: Context, points: np.ndarray) -> float:
    """Largest |coordinate| after the scaling that the model has."""
    field, scaling = ctx.spec.fields["input"], ctx.config.model.scaling
    scaled = np.abs(np.asarray(normalise.forward(field.normaliser, points)))
    inside = [scaling == "affine" or scaling == "space" and name != "t" for name in field.channels]
    return float(np.where(inside, scaled, np.abs(points)).max())


def silenced(params: Params) -> Params:
    """The parameters of the same network with its last layer 0."""
    net = dict(params["net"])
    last = max(int(name.split("_")[1]) for name in net if name.startswith("layer_"))
    for name in (f"layer_{last}", f"bias_{last}"):
        if name in net:
            net[name] = jnp.zeros_like(net[name])
    return {**params, "net": net}


def effective_rank(c: np.ndarray) -> float:
    """exp(entropy of the normalised singular values) of coefficients [.., m, n] as a matrix
    [.. m, n], over its smaller side (Roy and Vetterli 2007).
    """
    matrix = np.asarray(c, np.float64).reshape(-1, c.shape[-1])
    s = np.linalg.svd(matrix, compute_uv=False)
    p = s / max(s.sum(), 1e-300)
    return float(np.exp(-np.sum(p * np.log(np.maximum(p, 1e-300)))) / min(matrix.shape))


def spectrum(ctx: Context, state) -> list[dict]:
    """Power of the solution and relative error of the network on the evaluation grid, by the number
    of waves along its longest side, along which it is tapered.
    """
    batch = next(iter(ctx.batches("val", 1)))
    pred = probe.prediction(ctx, averages.weights_of(state, "raw"), ctx.put(batch))[0]
    target = np.asarray(batch["target"], np.float64)[0]
    axis = int(np.argmax(target.shape[:3]))
    window = np.hanning(target.shape[axis]).reshape([-1 if a == axis else 1 for a in range(4)])
    power = [
        (np.abs(np.fft.rfft(window * v, axis=axis)) ** 2).sum(
            tuple(a for a in range(4) if a != axis)
        )
        for v in (target, pred - target)
    ]
    edges = [0, 1, 2, 4, 8, 16, 32, 64]
    return [
        {
            "waves from": a,
            "to": b,
            "solution": float(power[0][a:b].sum()),
            "relative error": float(
                np.sqrt(power[1][a:b].sum() / max(power[0][a:b].sum(), 1e-12 * power[0].sum()))
            ),
        }
        for a, b in zip(edges, edges[1:])
        if a < len(power[0])
    ]


def draw(bands: list[dict]):
    """Relative error against the number of waves, where the solution has power."""
    figure = figures.canvas(5.2, 3.2)
    panel = figure.subplots()
    total = sum(row["solution"] for row in bands)
    rows = [row for row in bands if row["solution"] > 1e-9 * total]
    panel.plot(
        [row["waves from"] + 0.5 for row in rows],
        [row["relative error"] for row in rows],
        "o-",
        color=figures.COLOURS[0],
    )
    panel.axhline(1.0, color=figures.TRUTH, linewidth=0.8, linestyle="--", label="u = 0")
    panel.set(
        xlabel="waves along the longest side of the grid",
        ylabel="relative error of the band",
        yscale="log",
    )
    panel.legend()
    return figure
