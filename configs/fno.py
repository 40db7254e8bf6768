"""FNO on volumes.

Times: 2 CPU cores, simulations included.  VRMSE on unseen boxes: 1 is the mean predictor, the
Wiener filter has 0.906.

    python -m jaxvol.main --config=configs/fno.py         about 10 minutes   VRMSE 0.65 (28 % below)
    python -m jaxvol.main --config=configs/fno.py:quick   about  5 minutes   VRMSE 0.71 (22 % below)

On real data that this project does not ship:

    python -m jaxvol.main --config=configs/fno.py:galaxies --config.data.path=FILE
                                                          about  4 minutes   VRMSE 0.648
                                                                             (Wiener filter 0.669)
    python -m jaxvol.main --config=configs/fno.py:darcy --config.data.root=FOLDER
                                                          about  2 minutes   relative L2 0.086

FILE: counts (.npz), or the catalogue gals_Mr19.ff of the package corrfunc.  FOLDER: with
darcy_train_16.npz and darcy_test_16.npz (arrays x, y) of the package neuraloperator 0.3.0.
"""

from jaxvol.config import base

VARIANTS = ("", "quick", "galaxies", "darcy")


def get_config(variant: str = ""):
    """The config of a variant, one of VARIANTS."""
    config = base.common()
    config.model, config.task = base.model("fno"), base.task("regression")
    base.choose(variant, {"": full, "quick": quick, "galaxies": galaxies, "darcy": darcy})(config)
    return config


def full(config) -> None:
    """Evolved dark-matter density at z = 0 -> the linear density field it grew from.

    Boxes of 32^3 cells of 4 Mpc/h.
    """
    config.data = base.data("cosmology")
    config.data.input_normaliser = (("log1p", {"floor": 0.0}), ("standardise", {}))
    config.model.modes, config.model.width = (16, 16, 16), 24
    # Dense spectral weights learn every frequency from its own few examples; factors that
    # frequencies share learn ten times faster from 200 boxes.
    config.model.factorization, config.model.rank = "tucker", 0.02
    config.total_steps = 1000
    config.batch_size = 2
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule.warmup_steps = 20
    config.ema_decay = 0.99


def quick(config) -> None:
    """The same task in five minutes: fewer frequencies, fewer steps."""
    full(config)
    config.model.modes = (12, 12, 12)
    config.total_steps = 300
    config.ema_decay = 0.98


def galaxies(config) -> None:
    """One random half of 1.24 million N-body galaxies -> the density of the other half.

    Crops of a periodic box of 420 Mpc/h.
    """
    config.data = base.data("galaxies")
    config.model.width, config.model.padding = 20, 0.25
    config.model.factorization, config.model.rank = "tucker", 0.02
    config.task.spectra = False
    config.total_steps, config.batch_size = 300, 8
    config.optimizer.learning_rate = 5e-3
    config.optimizer.schedule.warmup_steps = 20
    config.ema_decay = 0.98


def darcy(config) -> None:
    """Darcy flow, coefficient -> pressure, 16^2: 1000 training fields, 40 epochs.

    The last weights count: no averaging, no selection.
    """
    config.data = base.data("volumes")
    config.data.augment = ("transpose",)  # samples at 0, h, 2h, ...: no mirror images
    config.data.ndim = 2
    config.data.input.train, config.data.input.test = "darcy_train_16.npz", "darcy_test_16.npz"
    config.data.input.key, config.data.target.key = "x", "y"
    config.data.input.channels, config.data.target.channels = ("coefficient",), ("pressure",)
    config.data.fit_examples = 1000
    # 191,881 parameters, as the published recipe
    config.model.modes, config.model.window = (0, 4, 4), "one_sided"
    config.model.width, config.model.coordinates = 24, "all"
    config.task.losses = (("relative_l2", 1.0),)
    config.task.metrics = ("relative_l2", "vrmse", "rmse")
    config.task.spectra = False
    config.checkpoint.best_metric = "relative_l2"
    config.evaluate.checkpoint, config.evaluate.weights = "final", "raw"
    config.evaluate.batch_size = 50
    config.ema_decay = 0.0
    config.total_steps, config.batch_size = 2000, 20  # 40 epochs
    config.optimizer.learning_rate, config.optimizer.clip_norm = 5e-3, 0.0
    config.optimizer.schedule.cosine.end_factor = 0.0


def sweep() -> list[dict]:
    """Learning rate against width: 6 points."""
    return [
        {"optimizer.learning_rate": rate, "model.width": width}
        for rate in (3e-3, 1e-2, 2e-2)
        for width in (16, 24)
    ]
