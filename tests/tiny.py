"""A run of seconds for tests that need the real command line: 8^3 boxes, a four-channel FNO.
`:slow` leaves time to be killed.
"""

from jaxvol.config import base


def get_config(variant: str = ""):
    config = base.common()
    config.model, config.task, config.data = (
        base.model("fno"),
        base.task("regression"),
        base.data("cosmology"),
    )
    config.model.width, config.model.layers, config.model.modes = 4, 2, (2, 2, 2)
    config.task.metrics, config.task.spectra = ("vrmse", "pearson"), False
    config.data.grid, config.data.box_size = 8, 64.0
    config.data.boxes.train, config.data.boxes.val, config.data.boxes.test = 8, 2, 2
    config.data.fit_examples = 4
    config.total_steps, config.log_every, config.evaluate.every, config.checkpoint.every = (
        6,
        1,
        2,
        2,
    )
    config.evaluate.batch_size = 2
    config.ema_decay = 0.5
    config.preflight.run = False
    config.evaluate.figures = False
    if variant == "slow":
        config.total_steps, config.evaluate.every, config.checkpoint.every = 60, 10, 3
    return config
