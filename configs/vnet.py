"""V-Net on volumes, on the data of configs/fno.py.

Times: 2 CPU cores.  VRMSE on unseen boxes; the Wiener filter has 0.906.

    python -m jaxvol.main --config=configs/vnet.py           1000 updates, about 10 minutes
                                                             VRMSE not measured
    python -m jaxvol.main --config=configs/vnet.py:quick     300 updates, about 3 minutes and the
                                                             pre-flight; VRMSE 0.773
    python -m jaxvol.main --config=configs/vnet.py:original  the published 3D U-Net (batch norm,
                                                             one convolution per level)
"""

from jaxvol.config import base, experiments

fno = experiments.load("fno")

VARIANTS = ("", "quick", "original")


def get_config(variant: str = ""):
    """The config of a variant, one of VARIANTS."""
    config = base.common()
    config.model, config.task = base.model("vnet"), base.task("regression")
    base.choose(variant, {"": full, "quick": quick, "original": original})(config)
    return config


def full(config) -> None:
    """The data of configs/fno.py: evolved dark-matter density -> the linear field it grew from."""
    reference = fno.get_config()
    for field in ("data", "total_steps", "batch_size", "ema_decay"):
        config[field] = reference[field]
    config.model.widths = (16, 32, 64, 88)  # 1.07 million parameters
    # 2e-3 loses one seed in three to gradients a hundred times too large
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule.warmup_steps = 20


def quick(config) -> None:
    """The same task in fewer steps."""
    full(config)
    config.total_steps = 300
    config.ema_decay = 0.98


def original(config) -> None:
    """The layout of the published code, with a linear head.

    Its own head ends in norm and ReLU and can give no density below the mean.
    """
    quick(config)
    config.model.layout, config.model.norm, config.model.fit = "original", "batch", "crop"
    config.model.bias_before_norm, config.model.padding = True, "replicate"
