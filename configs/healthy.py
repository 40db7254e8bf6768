"""Small healthy runs on boxes of 16^3: what the pre-flight has to pass.

Faults are planted into them (launch/campaigns/planted/__init__.py).

    python -m jaxvol.main --config=configs/healthy.py:fno --mode=preflight   half a minute, 2 cores
"""

from jaxvol.config import base, experiments

pinn = experiments.load("pinn")

VARIANTS = (
    "fno",
    "vnet",
    "vit3d",
    "pix2pixcc",
    "vnet-batch",
    "fno-dense",
    "vit3d-linear",
    "fno-bf16",
    "vit3d-bf16",
    "pinn",
)
FIELDS = {
    "fno": {"width": 8, "layers": 2, "modes": (6, 6, 6), "factorization": "tucker", "rank": 0.1},
    "fno-dense": {"width": 8, "layers": 2, "modes": (4, 4, 4)},
    "vnet": {"widths": (8, 16)},
    "vnet-batch": {"layout": "original", "widths": (8, 16), "norm": "batch"},
    "vit3d": {"width": 48, "layers": 2, "heads": 3, "head_features": 16, "stem_width": 8},
    "vit3d-linear": {
        "width": 48,
        "layers": 2,
        "heads": 3,
        "head_features": 16,
        "embed": "linear",
        "head": "linear",
        "position": "learned",
    },
    "pix2pixcc": {"width": 8, "downs": 1, "blocks": 2, "norm": "group"},
}
FIELDS |= {f"{name}-bf16": FIELDS[name] for name in ("fno", "vit3d")}
RATES = {"fno": 1e-2, "vnet": 2e-3, "vit3d": 2e-3, "pix2pixcc": 2e-3}


def get_config(variant: str = "fno"):
    """The config of a variant, one of VARIANTS."""
    if variant == "pinn":
        return physics_informed()
    fields = base.choose(variant, FIELDS)
    name, *kind = variant.split("-")
    config = base.common()
    config.precision = "bf16" if kind == ["bf16"] else "f32"
    config.model, config.task = base.model(name), base.task("regression")
    config.data = base.data("cosmology")
    for field, value in fields.items():
        config.model[field] = value
    if name == "pix2pixcc":
        config.task = base.task("adversarial")
        config.task.losses = (("mse", 1.0),)
        config.task.weights.adversarial, config.task.weights.feature_matching = 0.1, 0.1
        critic = config.task.discriminator
        critic.width, critic.max_width, critic.strides, critic.pad_width = 8, 32, (2, 2, 1), 2
        critic.norm, critic.spectral_norm = "none", True
    config.data.grid, config.data.box_size = 16, 64.0
    config.data.boxes.train, config.data.boxes.val, config.data.boxes.test = 32, 8, 4
    config.data.fit_examples, config.data.num_workers = 16, 0
    config.evaluate.batch_size = 4
    config.total_steps, config.ema_decay = 200, 0.98
    config.optimizer.learning_rate = RATES[name]
    config.optimizer.schedule.warmup_steps = 10
    return config


def physics_informed():
    """The diffusion equation in the published size and with a fifth of its points.

    Only the check of physics looks at it.
    """
    config = pinn.get_config("diffusion-published")
    points = config.data.points
    points.interior, points.initial, points.boundary = 400, 100, 40
    config.total_steps, config.evaluate.every, config.checkpoint.every = 200, 100, 100
    config.preflight.only = ("physics",)
    return config
