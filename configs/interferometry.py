"""Height of a surface from fringe images."""
from configs import base, physics

VARIANTS = ("pinn", "pinn-published")
LONG = ((1, -2, 1, 0), (0, 1, -2, 1))                               # beats of beats: 302 and 333 um
BEATS = ((1, -1, 0, 0), (0, 1, -1, 0), (0, 0, 1, -1))               # 27.5, 30.3 and 33.3 um
SHORT = ((1, 0, -1, 0), (0, 1, 0, -1), (1, 0, 0, -1))               # 14.4, 15.8 and 10.1 um


def get_config(variant: str = ""):
    """The config of a variant, one of VARIANTS."""
    config = base.common()
    base.choose(variant, {"pinn": pinn, "pinn-published": lambda c: published(c)})(config)
    return config


def pinn(config) -> None:
    config.model, config.task, config.data = physics.cheb_kan(), physics.physics(), physics.collocation()
    config.data.problem = physics.interferometry()
    config.data.points.interior, config.data.points.data, config.data.resample = 64, 256, 1
    config.batch_size, config.evaluate.batch_size = 4, 1
    config.task.constraints = "hard"
    config.task.weights.pde, config.task.weights.data = 1e-11, 1e-4
    config.task.metrics = ("relative_l2", "rmse", "mae", "mape")
    config.ema_decay = 0.99
    config.evaluate.checkpoint, config.checkpoint.best_metric = "final", "loss"
    config.optimizer.name, config.optimizer.learning_rate = "adam", 5e-3
    config.preflight.only = ("environment", "physics")
    config.optimizer.schedule.warmup_steps = 50
    config.phases = (("long", 400, {"data.problem.match": LONG}), ("beats", 400, {"data.problem.match": BEATS}),
                     ("short", 600, {"data.problem.match": SHORT, "optimizer.learning_rate": 2e-3}),
                     ("images", 2200, {"optimizer.learning_rate": 1e-3}))
    config.total_steps = 3600
    config.evaluate.every = config.checkpoint.every = 400
    config.log_every = 100


def published(config) -> None:
    pinn(config)
    config.phases = ()
