"""Physics-informed Chebyshev KANs.

    python -m jaxvol.main --config=configs/pinn.py:helmholtz
"""
import math

from configs import base, physics

VARIANTS = ("", "helmholtz")


def get_config(variant: str = ""):
    """The config of a variant, one of VARIANTS."""
    config = common()
    base.choose(variant, {"": helmholtz, "helmholtz": helmholtz})(config)
    return config


def common():
    """What all problems share: Adam, then L-BFGS in float64 on one set of points; scored at the end, as they are."""
    config = base.common()
    config.model, config.task, config.data = physics.cheb_kan(), physics.physics(), physics.collocation()
    config.precision = "f64"
    config.batch_size = config.evaluate.batch_size = 1
    config.ema_decay = 0.0
    config.evaluate.checkpoint, config.evaluate.weights = "final", "raw"
    config.checkpoint.best_metric = "loss"
    config.optimizer.name, config.optimizer.clip_norm = "adam", 1.0
    config.preflight.run = False
    two_phases(config, 2000, 2000)
    return config


def two_phases(config, adam: int, lbfgs: int) -> None:
    """So many updates of Adam, then of L-BFGS."""
    search = {"optimizer.name": "lbfgs", "optimizer.clip_norm": 0.0, "optimizer.schedule.name": "constant",
              "optimizer.schedule.warmup_steps": 0}
    config.phases = (("adam", adam, {}), ("lbfgs", lbfgs, search))
    config.total_steps = adam + lbfgs
    config.evaluate.every = config.checkpoint.every = max(config.total_steps // 8, 1)
    config.log_every = 50


def helmholtz(config) -> None:
    """u'' + k^2 u = 0 on [-1, 1], k = 4 pi."""
    config.data.problem = physics.helmholtz()
    config.task.weights.pde = 1 / (4 * math.pi) ** 4
    config.task.weights.boundary = 1.0
