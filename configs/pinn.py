"""Physics-informed Chebyshev KANs, one variant per problem.

    python -m jaxvol.main --config=configs/pinn.py:VARIANT

    variant                relative L2   seconds
    helmholtz                   2.4e-8        65    u'' + k^2 u = 0, k = 4 pi
    poisson3d                   1.9e-6        85    boundary values met exactly
    diffusion                   3.1e-5       105    initial and boundary values met exactly
    burgers                     7.9e-4       380    points follow the front
    diffusion-published         2.7e-2        80    Adam alone, float32, 10,000 updates

(On a grid; seed 0, processor time of one core.)  All of them, with MLPs, unscaled, more seeds:

    python launch/studies/pinn_table.py

One factor at a time, five seeds each; ablation-elliptic as well:

    python -m jaxvol.main --config=configs/pinn.py:ablation --mode=sweep

`<variant>-mlp` is the same problem with an MLP of as many parameters; --config.model.scaling=none
leaves the domain as it is.
"""

import math

from jaxvol import pdes
from jaxvol.config import base

PROBLEMS = (
    "helmholtz",
    "helmholtz2d",
    "helmholtz3d",
    "poisson1d",
    "poisson2d",
    "poisson3d",
    "diffusion",
    "diffusion-published",
    "ablation",
    "ablation-elliptic",
    "wave",
    "burgers",
    "allen-cahn",
    "reaction-diffusion",
    "inverse",
    "taylor-green",
    "quick",
)
VARIANTS = ("", *PROBLEMS, "quick-mlp")


def get_config(variant: str = ""):
    """The config of a variant: one of VARIANTS, or of PROBLEMS with "-mlp" behind it."""
    config, name = common(), variant.removesuffix("-mlp")
    problems = {
        "": helmholtz,
        "helmholtz": helmholtz,
        "helmholtz2d": lambda c: helmholtz(c, (1, 4), 1.0),
        "helmholtz3d": lambda c: helmholtz(c, (1, 1, 2), 1.0),
        "poisson1d": lambda c: poisson(c, 1),
        "poisson2d": lambda c: poisson(c, 2),
        "poisson3d": lambda c: poisson(c, 3),
        "diffusion": diffusion,
        "diffusion-published": published,
        "ablation": ablation,
        "ablation-elliptic": ablation_elliptic,
        "wave": wave,
        "burgers": burgers,
        "allen-cahn": allen_cahn,
        "reaction-diffusion": reaction_diffusion,
        "inverse": inverse,
        "taylor-green": taylor_green,
        "quick": quick,
    }
    base.choose(name, problems)(config)
    if variant.endswith("-mlp"):
        # 457 parameters against 528; 1,801 against 1,824
        widths = (19, 19) if name == "diffusion-published" else (40, 40)
        config.model = base.model("mlp")
        config.model.widths = widths
        config.model.scaling = "space" if name == "diffusion-published" else "affine"
    return config


def common():
    """What all problems share: Adam, then the self-scaled Broyden method, both in float64.

    One set of points; the last weights are scored.
    """
    config = base.common()
    config.model, config.task = base.model("cheb_kan"), base.task("physics")
    config.data = base.data("collocation")
    config.precision = "f64"
    config.batch_size = config.evaluate.batch_size = 1
    config.ema_decay = 0.0
    config.evaluate.checkpoint, config.evaluate.weights = "final", "raw"
    config.checkpoint.best_metric = "loss"
    config.optimizer.name, config.optimizer.learning_rate = "adam", 2e-3
    # Not the check `gradients`: one term outweighs the others at the start by nature, and Adam does
    # not mind a clip that scales everything.
    config.preflight.only = ("environment", "state", "schedule", "physics", "numerics", "lr_range")
    two_phases(config, 600, 1200)
    return config


def two_phases(config, adam: int, second: int) -> None:
    """So many updates of Adam, then of the self-scaled Broyden method."""
    search = {
        "optimizer.name": "broyden",
        "optimizer.clip_norm": 0.0,
        "optimizer.schedule.name": "constant",
        "optimizer.schedule.warmup_steps": 0,
    }
    config.phases = (("adam", adam, {}), ("broyden", second, search))
    config.total_steps = adam + second
    config.evaluate.every = config.checkpoint.every = max(config.total_steps // 8, 1)
    config.log_every = 100


def weights(config, pde: float, others: float) -> None:
    """Of the mean squares of the equation, and of the conditions."""
    w = config.task.weights
    w.pde, w.boundary, w.initial, w.data = pde, others, others, others


def helmholtz(config, frequencies=(4,), wavenumber=4 * math.pi) -> None:
    """lap u + k^2 u = q on [-1, 1]^d."""
    config.data.problem = pdes.fields("helmholtz")
    config.data.problem.frequencies, config.data.problem.wavenumber = frequencies, wavenumber
    config.data.points.interior = 512 if len(frequencies) == 1 else 1500
    config.task.constraints = "soft" if len(frequencies) == 1 else "hard"
    weights(config, 1e-3, 10.0)
    if len(frequencies) > 1:
        two_phases(config, 600, 3000 if len(frequencies) == 2 else 5000)


def poisson(config, dimension: int) -> None:
    """lap u + f = 0 on [0, 1]^d, u = 0 on the boundary, which is met exactly."""
    config.data.problem = pdes.fields("poisson")
    config.data.problem.dimension = dimension
    config.data.points.interior = (256, 1000, 1500)[dimension - 1]
    config.task.constraints = "hard"
    weights(config, 1e-2, 1.0)
    two_phases(config, 500, 700)


def diffusion(config) -> None:
    """u_t = alpha u_xx on [-6, 6] x [0, 1]: six periods of the initial sine.

    Initial and boundary values are met exactly.
    """
    config.data.problem = pdes.fields("diffusion")
    config.data.points.interior = 1500
    config.task.constraints = "hard"
    weights(config, 1.0, 1.0)


def published(config) -> None:
    """Settings of the published code.

    528 parameters, 2,000 + 400 + 2 x 200 random points, weights 0.01, 1 and 1, Adam 1e-3.
    """
    config.data.problem = pdes.fields("diffusion")
    points = config.data.points
    points.interior, points.initial, points.boundary = 2000, 400, 200
    config.data.sampler = "uniform"
    config.model.widths, config.model.scaling = (8, 8), "space"
    weights(config, 0.01, 1.0)
    config.precision, config.phases, config.total_steps = "f32", (), 10000
    config.optimizer.learning_rate, config.optimizer.clip_norm = 1e-3, 0.0
    config.optimizer.schedule.name = "constant"
    config.evaluate.every = config.checkpoint.every = 2500


def ablation(config) -> None:
    """The same with 3,000 updates, where sweep() starts from."""
    published(config)
    config.total_steps = config.evaluate.every = config.checkpoint.every = 3000


def ablation_elliptic(config) -> None:
    """The same training on another kind of equation: Poisson 3D with soft boundary values."""
    ablation(config)
    config.data.problem = pdes.fields("poisson")
    config.data.points.interior, config.data.points.boundary = 1500, 200
    weights(config, 1e-2, 1.0)


def wave(config) -> None:
    """u_tt = 4 u_xx on the unit square, initial and boundary values met exactly."""
    config.data.problem = pdes.fields("wave")
    config.task.constraints = "hard"
    weights(config, 1e-3, 1.0)
    two_phases(config, 600, 4000)


def burgers(config) -> None:
    """u_t + u u_x = 0.01 / pi u_xx: a front forms, and points are drawn where it is.

    Initial and boundary values are met exactly.
    """
    config.data.problem = pdes.fields("burgers")
    config.data.points.interior = 1000
    config.task.constraints, config.task.refine.name = "hard", "rad"
    config.task.refine.cap, config.task.refine.candidates = 2500, 20000
    weights(config, 0.1, 1.0)
    two_phases(config, 600, 4000)


def allen_cahn(config) -> None:
    """u_t = 0.001 u_xx + 5 (u - u^3), initial and boundary values met exactly."""
    config.data.problem = pdes.fields("allen_cahn")
    config.data.points.interior = 2000
    config.task.constraints = "hard"
    config.task.weights.pde = 1.0
    two_phases(config, 600, 4000)


def reaction_diffusion(config) -> None:
    """The travelling wave of Fisher's equation."""
    config.data.problem = pdes.fields("reaction_diffusion")
    weights(config, 1.0, 10.0)


def inverse(config) -> None:
    """The same, the rate of reaction unknown, 200 values with 1 % noise."""
    reaction_diffusion(config)
    config.data.problem.inverse = True


def taylor_green(config) -> None:
    """Navier-Stokes equations in the plane."""
    config.data.problem = pdes.fields("taylor_green")
    config.data.points.interior, config.data.points.initial = 1500, 400
    weights(config, 1.0, 10.0)
    two_phases(config, 600, 3000)


def quick(config) -> None:
    """3D Poisson equation in less than a minute: Adam alone, in float32, soft boundary values.

    The initialisation is the one from which such runs end lowest.
    """
    poisson(config, 3)
    config.model.init = "small"
    config.data.points.interior, config.task.constraints = 512, "soft"
    config.precision, config.phases, config.total_steps = "f32", (), 600
    config.evaluate.every = config.checkpoint.every = 300


def sweep() -> list[dict]:
    """Ablations of `ablation` and `ablation-elliptic`: one factor at a time, five seeds each.

    Weightings of the loss, adaptive points (four refinements), clipping, precision, schedules,
    initialisations; equal updates.
    """
    balances = ("fixed", "loss_ratio", "gradnorm", "ntk", "relobralo", "self_adaptive")
    factors = [{"task.balance.name": b} for b in balances]
    factors += [
        {"task.refine.name": r, "task.refine.every": 600, "task.refine.cap": 2000}
        for r in ("rar", "rad")
    ]
    factors += [{"optimizer.clip_norm": c} for c in (0.5, 1.0, 2.0)] + [
        {"precision": p} for p in ("bf16", "f64")
    ]
    factors += [{"optimizer.schedule.name": s} for s in ("cosine", "exponential")]
    factors += [{"model.init": i} for i in ("kaiming", "orthogonal", "small")]
    return [{**factor, "seed": seed} for seed in range(5) for factor in factors]
