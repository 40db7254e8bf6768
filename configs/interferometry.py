"""Height of a surface from 16 fringe images: 4 wavelengths, 4 phase steps (jaxvol/ops/fringes.py).

    python -m jaxvol.main --config=configs/interferometry.py:pinn             45 s of one core
        a network of coordinates, fitted to one stack of images
    python -m jaxvol.main --config=configs/interferometry.py:unet            200 s of one core
        images to heights, trained on random surfaces
    python -m jaxvol.main --config=configs/interferometry.py:pinn-published
    python -m jaxvol.main --config=configs/interferometry.py:unet-published
        the published losses
    python launch/studies/fringe_points.py
        pixels per second and error for mini-batches of pixels

RMSE in um on the published surface, 128^2 pixels, 8 bits, seed 0; camera noise in grey levels is
data.problem.noise, data.optics.noise:

    noise                        0         5        10
    pinn                    0.0049    0.0051    0.0066
    unet                    0.0008    0.0036    0.0069
    unwrapping              0.0007    0.0080    0.0160     classical, see jaxvol/ops/fringes.py; it
                                                           needs the middle of the heights
    unwrapping, smoothed    0.0082    0.0085    0.0094
    pinn-published               -       101         -
    mean                         -       7.6         -

Without the classical solution, 64^2 pixels, noise 5, on the published surface: unet-beats 1.4,
unet-published 7.4, the mean 7.6.

Your own stacks (jaxvol/data/io/image_stack.py): --config.data.problem.folder=FOLDER, of the U-Net
--config.data.optics.folder=FOLDER.
"""

from jaxvol import pdes
from jaxvol.config import base

VARIANTS = ("pinn", "pinn-adam", "pinn-published", "unet", "unet-beats", "unet-published", "quick")
# differences of beats: ranges of 302 and 333 um
LONG = ((1, -2, 1, 0), (0, 1, -2, 1))
BEATS = ((1, -1, 0, 0), (0, 1, -1, 0), (0, 0, 1, -1))  # 27.5, 30.3 and 33.3 um
SHORT = ((1, 0, -1, 0), (0, 1, 0, -1), (1, 0, 0, -1))  # 14.4, 15.8 and 10.1 um


def get_config(variant: str = "pinn"):
    """The config of a variant, one of VARIANTS."""
    config = base.common()
    base.choose(
        variant,
        {
            "pinn": pinn,
            "pinn-adam": adam,
            "pinn-published": pinn_published,
            "unet": unet,
            "unet-beats": unet_beats,
            "unet-published": unet_published,
            "quick": quick,
        },
    )(config)
    return config


def coordinates(config) -> None:
    """h(x, y) = 12 + 15 network um, from 1,024 pixels, drawn anew for every update of Adam."""
    config.model, config.task = base.model("cheb_kan"), base.task("physics")
    config.data = base.data("collocation")
    config.data.problem = pdes.fields("interferometry")
    # One set: the same pixels in four sets of 256 take longer (launch/studies/fringe_points.py).
    config.data.points.interior, config.data.points.data, config.data.resample = 256, 1024, 1
    config.batch_size = config.evaluate.batch_size = 1
    config.task.constraints = "hard"
    # published: 1e-7 and 1; here in units of modulation^2
    config.task.weights.pde, config.task.weights.data = 1e-11, 1e-4
    config.task.metrics = ("relative_l2", "rmse", "mae", "mape")
    config.evaluate.checkpoint, config.checkpoint.best_metric = "final", "loss"
    config.optimizer.name, config.optimizer.learning_rate = "adam", 5e-3
    config.optimizer.schedule.warmup_steps = 50
    config.preflight.only = ("environment", "physics")
    config.log_every = 100


def lengths(config, *steps: int) -> None:
    """From long beats to short ones to the images: so many updates of each."""
    rate = "optimizer.learning_rate"
    overrides = (
        {"data.problem.match": LONG},
        {"data.problem.match": BEATS},
        {"data.problem.match": SHORT, rate: 2e-3},
        {rate: 1e-3},
    )
    config.phases = tuple(zip(("long beats", "beats", "short beats", "images"), steps, overrides))
    config.total_steps = sum(steps)
    config.evaluate.every = config.checkpoint.every = max(config.total_steps // 8, 1)


def pinn(config) -> None:
    """The same, and then the self-scaled Broyden method in float64 on 4,096 pixels that stay."""
    coordinates(config)
    lengths(config, 400, 400, 400, 400)
    search = {
        "optimizer.name": "broyden",
        "optimizer.clip_norm": 0.0,
        "optimizer.schedule.name": "constant",
        "optimizer.schedule.warmup_steps": 0,
        "data.resample": 0,
        "data.points.data": 4096,
    }
    config.phases = (*config.phases, ("images, Broyden", 600, search))
    config.total_steps += 600
    config.evaluate.every = config.checkpoint.every = 200
    config.precision, config.ema_decay, config.evaluate.weights = "f64", 0.0, "raw"


def adam(config) -> None:
    """Adam alone, in float32: what launch/studies/fringe_points.py varies the points of."""
    coordinates(config)
    lengths(config, 400, 400, 600, 2200)
    config.ema_decay = 0.99


def pinn_published(config) -> None:
    """The published loss alone, with the same start and updates: it ends in a fringe nearby."""
    adam(config)
    config.phases = ()


def unet(config) -> None:
    """What has to be added to the classical solution; no height is ever shown.

    128^2 pixels, 256 random surfaces, noise anew each time.
    """
    config.model, config.task = base.model("unet"), base.task("fringes")
    config.data = base.data("fringes")
    config.batch_size, config.evaluate.batch_size = 2, 2
    config.ema_decay = 0.99
    config.checkpoint.best_metric = "loss"
    config.optimizer.learning_rate, config.optimizer.schedule.warmup_steps = 2e-3, 20
    # Fringes have no linear correlation with heights, and no loss of heights decides what is best:
    # "data" and "state" would refuse that.
    config.preflight.only = ("environment", "schedule", "structure", "numerics")
    config.total_steps = 500
    config.evaluate.every = config.checkpoint.every = 100


def small(config, pixels: int) -> None:
    """Fewer pixels, that is larger ones.

    Roughness is counted per squared pixel, so its weight goes with the fourth power of their size.
    """
    config.task.weights.smooth *= (pixels / config.data.optics.size) ** 4
    config.data.optics.size = pixels


def unet_beats(config) -> None:
    """Heights from the images alone, without the classical solution, led by the beats."""
    unet(config)
    small(config, 64)
    config.task.start, config.task.scale, config.batch_size = "constant", 15.0, 4
    match = "task.match"
    config.phases = (
        ("long beats", 150, {match: LONG}),
        ("beats", 300, {match: BEATS}),
        ("short beats", 200, {match: SHORT}),
        ("images", 150, {}),
    )
    config.total_steps = 800
    config.evaluate.every = config.checkpoint.every = 200
    config.evaluate.checkpoint = "final"


def unet_published(config) -> None:
    """The published loss and weight, from the images alone, with as many updates."""
    unet_beats(config)
    config.phases = ()
    config.task.weights.smooth = 1e-4 * config.task.weights.data


def quick(config) -> None:
    """The U-Net on 32^2 pixels, in half a minute."""
    unet(config)
    small(config, 32)
    config.data.surfaces.train, config.total_steps, config.batch_size = 64, 200, 4
