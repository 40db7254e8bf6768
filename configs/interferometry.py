"""Height of a surface from fringe images."""
from configs import base, physics

VARIANTS = ("broyden", "pinn", "pinn-published", "unet", "unet-published", "quick")
LONG = ((1, -2, 1, 0), (0, 1, -2, 1))                               # beats of beats: 302 and 333 um
BEATS = ((1, -1, 0, 0), (0, 1, -1, 0), (0, 0, 1, -1))               # 27.5, 30.3 and 33.3 um
SHORT = ((1, 0, -1, 0), (0, 1, 0, -1), (1, 0, 0, -1))               # 14.4, 15.8 and 10.1 um


def get_config(variant: str = ""):
    """The config of a variant, one of VARIANTS."""
    config = base.common()
    base.choose(variant, {"pinn": pinn, "broyden": broyden, "pinn-published": lambda c: published(c), "unet": unet, "unet-published": unet_published, "quick": quick})(config)
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


def unet(config) -> None:
    config.model, config.task, config.data = base.unet(), physics.fringes(), physics.fringe_images()
    config.data.optics.size = 64
    config.batch_size, config.evaluate.batch_size = 4, 4
    config.ema_decay = 0.99
    config.checkpoint.best_metric = "loss"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule.warmup_steps = 20
    config.total_steps = 600
    config.evaluate.every = config.checkpoint.every = 100


def unet_published(config) -> None:
    unet(config)
    config.task.start, config.task.scale, config.task.weights.smooth = "constant", 15.0, 1e-8


def quick(config) -> None:
    unet(config)
    config.data.optics.size, config.total_steps = 32, 60


def broyden(config) -> None:
    pinn(config)
    config.precision = "f64"
    search = {"optimizer.name": "broyden", "optimizer.clip_norm": 0.0, "optimizer.schedule.name": "constant",
              "optimizer.schedule.warmup_steps": 0, "data.resample": 0, "data.points.data": 1024}
    config.ema_decay, config.evaluate.weights = 0.0, "raw"
    config.phases = (*config.phases[:3], ("images", 400, {"optimizer.learning_rate": 1e-3}), ("fixed", 600, search))
    config.total_steps = 2400
