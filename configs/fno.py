"""FNO: evolved dark-matter density at z = 0 -> the linear density field it grew from.

    python -m jaxvol.main --config=configs/fno.py
"""
from configs import base


def get_config(variant: str = ""):
    config = base.common()
    config.model = base.fno()
    config.task = base.regression()
    config.data = base.cosmology()
    config.total_steps = 600
    config.batch_size = 2
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule.warmup_steps = 30
    config.ema_decay = 0.99
    if variant == "quick":
        config.total_steps = 300
    return config


def sweep():
    """Points of a small study."""
    return [{"optimizer.learning_rate": lr} for lr in (1e-3, 2e-3, 4e-3)]
