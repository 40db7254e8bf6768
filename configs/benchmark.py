"""Four models at equal size and equal budget: the same boxes, loss, examples and metrics.

`launch/studies/benchmark.sh` runs them; scores in docs/benchmark.md.

    python -m jaxvol.main --config=configs/benchmark.py:vnet-small   4 to 15 minutes, 2 CPU cores
    python -m jaxvol.main --config=configs/benchmark.py:fno-base     for a GPU

A variant is <model>-<size>.  small: 1.07 million parameters, base: 4.3, large: 17, each within 5
per cent (Pix2PixCC: its generator).  Pix2PixCC has the same voxel loss and a discriminator's
opinion besides.
"""

from jaxvol.config import base, experiments

fno = experiments.load("fno")
pix2pixcc = experiments.load("pix2pixcc")

SIZES = ("small", "base", "large")
MODELS = ("fno", "vnet", "vit3d", "pix2pixcc")
VARIANTS = tuple(f"{model}-{size}" for model in MODELS for size in SIZES)
FIELDS = {  # of config.model, and the rate that suits it
    "fno": {
        "small": {"width": 24, "rank": 0.0133},
        "base": {"width": 32, "rank": 0.03},
        "large": {"width": 46, "rank": 0.06},
    },
    "vnet": {
        "small": {"widths": (16, 32, 64, 88)},
        "base": {"widths": (32, 64, 128, 176)},
        "large": {"widths": (64, 128, 256, 352)},
    },
    "vit3d": {
        "small": {"width": 160, "layers": 5},
        "base": {"width": 256, "layers": 8, "heads": 8},
        "large": {"width": 416, "layers": 12, "heads": 13},
    },
    "pix2pixcc": {"small": {"width": 24}, "base": {"width": 48}, "large": {"width": 96}},
}
RATES = {"fno": 1e-2, "vnet": 1e-3, "vit3d": 1e-3, "pix2pixcc": 1e-3}


def get_config(variant: str = "fno-small"):
    """The config of a variant, one of VARIANTS."""
    model, size = base.choose(variant, {name: name.split("-") for name in VARIANTS})
    config = base.common()
    config.task = base.task("regression")
    if model == "fno":
        config.model = base.model("fno")
        config.model.modes, config.model.factorization = (16, 16, 16), "tucker"
    elif model == "pix2pixcc":
        config = pix2pixcc.get_config("quick")
    else:
        config.model = base.model(model)
    for name, value in FIELDS[model][size].items():
        config.model[name] = value
    config.data = fno.get_config().data
    config.total_steps, config.batch_size = {
        "small": (300, 2),
        "base": (5000, 8),
        "large": (20000, 16),
    }[size]
    config.ema_decay = {"small": 0.98, "base": 0.999, "large": 0.999}[size]
    config.optimizer.learning_rate = RATES[model]
    config.optimizer.schedule.warmup_steps = {"small": 20, "base": 200, "large": 1000}[size]
    if model == "pix2pixcc":
        config.task.ramp.start = config.total_steps * 3 // 10
        config.task.ramp.steps = config.total_steps // 5
    config.evaluate.every = config.checkpoint.every = config.total_steps // 6
    return config
