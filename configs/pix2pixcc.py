"""Pix2PixCC on volumes: a generator trained against a multi-scale patch discriminator.

The data are those of configs/fno.py.  Times: 2 CPU cores.  VRMSE on unseen boxes; the Wiener filter
has 0.906.

    python -m jaxvol.main --config=configs/pix2pixcc.py        1000 updates, about 17 minutes (at
                                                               the measured 0.97 a second); not run
    python -m jaxvol.main --config=configs/pix2pixcc.py:quick  300 updates, about 5 minutes and 4:45
                                                               of pre-flight; VRMSE 0.789

The published generator normalises each example (instance norm), which makes it blind to the
amplitude of its input, and has no voxel loss, which leaves its own amplitude open.  Here the norms
have a scale and an offset, over groups of channels, and the decoder adds the encoder's features;
the voxel loss holds the large scales in place, and the discriminator, bounded by spectral norm so
that it sees amplitudes too, asks for the power at small scales that a mean square error takes away.
"""

from jaxvol.config import base, experiments

fno = experiments.load("fno")

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    """The config of a variant, one of VARIANTS."""
    config = base.common()
    config.model, config.task = base.model("pix2pixcc"), base.task("adversarial")
    base.choose(variant, {"": full, "quick": quick})(config)
    return config


def full(config) -> None:
    """The data of configs/fno.py: evolved dark-matter density -> the linear field it grew from."""
    reference = fno.get_config()
    for field in ("data", "total_steps", "batch_size", "ema_decay"):
        config[field] = reference[field]
    # 1.06 million parameters.  One step down instead of the published two: 0.42 million at 16^3
    # learn more in 100 steps than 1.06 million at 8^3 (VRMSE 0.863 against 0.880).  Without a norm
    # 2e-3 ends in a constant.
    config.model.width, config.model.downs, config.model.blocks = 24, 1, 7
    config.model.norm = "group"
    config.optimizer.learning_rate = 1e-3  # VRMSE 0.907 after 25 steps; 2e-3: 0.964
    config.optimizer.schedule.warmup_steps = 20
    config.optimizer.groups = {"disc": {"learning_rate": 2e-4}}
    config.task.losses = (("mse", 1.0),)
    config.task.weights.adversarial, config.task.weights.feature_matching = 0.1, 0.1
    # first the scales that can be predicted
    config.task.ramp.start, config.task.ramp.steps = 300, 200
    discriminator = config.task.discriminator
    discriminator.width, discriminator.max_width = 16, 128
    discriminator.strides, discriminator.pad_width = (2, 2, 1, 1), 2
    discriminator.norm, discriminator.spectral_norm = "none", True


def quick(config) -> None:
    """The same task in fewer steps."""
    full(config)
    config.total_steps = 300
    config.task.ramp.start, config.task.ramp.steps = 90, 60
    config.ema_decay = 0.98
    config.evaluate.batch_size = 2
    config.preflight.steps = 24  # as few as the checks need: an update takes a second
