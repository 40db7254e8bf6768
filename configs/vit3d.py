"""ViT3D on volumes, on the data of configs/fno.py.

Times: 2 CPU cores.  VRMSE on unseen boxes; the Wiener filter has 0.906.

    python -m jaxvol.main --config=configs/vit3d.py          1000 updates, about 10 minutes
                                                             VRMSE not measured
    python -m jaxvol.main --config=configs/vit3d.py:quick    300 updates, about 3 minutes and the
                                                             pre-flight; VRMSE 0.801
"""

from jaxvol.config import base, experiments

fno = experiments.load("fno")

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    """The config of a variant, one of VARIANTS."""
    config = base.common()
    config.model, config.task = base.model("vit3d"), base.task("regression")
    base.choose(variant, {"": full, "quick": quick})(config)
    return config


def full(config) -> None:
    """The data of configs/fno.py: evolved dark-matter density -> the linear field it grew from."""
    reference = fno.get_config()
    for field in ("data", "total_steps", "batch_size", "ema_decay"):
        config[field] = reference[field]
    config.model.width, config.model.layers = 160, 5  # 1.10 million parameters
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule.warmup_steps = 20


def quick(config) -> None:
    """The same task in fewer steps."""
    full(config)
    config.total_steps = 300
    config.ema_decay = 0.98
