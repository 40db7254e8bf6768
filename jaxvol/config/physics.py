"""Fields of the components of physics-informed networks, as jaxvol/config/base.py has those of the
others.
"""

from ml_collections import ConfigDict

from jaxvol.config import base


def cheb_kan() -> ConfigDict:
    """Chebyshev KAN; form="tanh", init="xavier", degree=5 is Scaled-cPIKAN's, form="layer_norm",
    init="kaiming" its port's.
    """
    return ConfigDict(
        {
            "name": "cheb_kan",
            "widths": (16, 16),  # neurons of the hidden layers
            "degree": 5,  # highest Chebyshev polynomial
            # tanh (in front of every layer) | layer_norm (and tanh, behind hidden layers)
            "form": "tanh",
            "init": "xavier",  # xavier | kaiming | orthogonal | small
            # of the coordinates to [-1, 1]: affine | space (all but t) | none
            "scaling": "affine",
        }
    )


def mlp() -> ConfigDict:
    """Multilayer perceptron of coordinates."""
    return ConfigDict(
        {
            "name": "mlp",
            # neurons of the hidden layers; as many parameters as the KAN of the defaults
            "widths": (40, 40),
            # tanh | sine (SIREN) | fourier (random Fourier features and tanh)
            "kind": "tanh",
            "omega": 30.0,  # sine: factor of the weights of every layer
            "fourier_features": 32,  # fourier: number of random frequencies
            # fourier: their standard deviation, in cycles per unit of the scaled coordinate
            "fourier_scale": 1.0,
            # of the coordinates to [-1, 1]: affine | space (all but t) | none
            "scaling": "affine",
        }
    )


def helmholtz() -> ConfigDict:
    """lap u + k^2 u = q on [-1, 1]^d with u = prod sin(a_i pi x_i)."""
    return ConfigDict(
        {
            "name": "helmholtz",
            "wavenumber": 12.566370614359172,  # k; 4 pi
            "frequencies": (4,),  # a, whole numbers, one per dimension
        }
    )


def poisson(dimension: int = 3) -> ConfigDict:
    """lap u + f = 0 on the unit cube."""
    return ConfigDict({"name": "poisson", "dimension": dimension})  # 1 | 2 | 3


def diffusion() -> ConfigDict:
    """u_t = alpha u_xx on [-6, 6] x [0, 1], the problem of the published code."""
    return ConfigDict({"name": "diffusion", "alpha": 0.1})  # diffusivity


def wave() -> ConfigDict:
    """u_tt = c^2 u_xx on the unit square."""
    return ConfigDict({"name": "wave", "speed": 2.0})  # c


def burgers() -> ConfigDict:
    """u_t + u u_x = nu u_xx."""
    return ConfigDict({"name": "burgers", "viscosity": 0.003183098861837907})  # nu; 0.01 / pi


def allen_cahn() -> ConfigDict:
    """u_t = D u_xx + 5 (u - u^3)."""
    return ConfigDict({"name": "allen_cahn", "diffusivity": 0.001})  # D


def reaction_diffusion() -> ConfigDict:
    """u_t = D u_xx + rho u (1 - u)."""
    return ConfigDict(
        {
            "name": "reaction_diffusion",
            "diffusivity": 1.0,  # D
            "rate": 1.0,  # rho
            "inverse": False,  # find rho from measurements (points.data of them)
            "noise": 0.01,  # of those, as a fraction of their standard deviation
        }
    )


def taylor_green() -> ConfigDict:
    """The decaying vortex of the Navier-Stokes equations."""
    return ConfigDict({"name": "taylor_green", "viscosity": 0.1})  # nu


def optics() -> ConfigDict:
    """What the interferometer is, and where its images come from; for the points of
    `interferometry` and the images of `fringes`.
    """
    return ConfigDict(
        {
            # um; each with phase steps 0, pi/2, pi and 3 pi/2
            "wavelengths": (5.0, 5.5, 6.05, 6.655),
            # um, the middle of where heights are looked for; `unwrapping` finds those within 16.6
            # um of
            # it
            "centre": 12.0,
            "background": 128.0,  # of the images, in grey levels of 0 .. 255
            "modulation": 100.0,  # their amplitude
            # of users' stacks (jaxvol/data/io/image_stack.py); "" = simulated
            "folder": "",
            "size": 128,  # simulated: pixels along a side
            # simulated: standard deviation of the camera's noise, in grey levels
            "noise": 5.0,
            "bits": 8,  # simulated: of a pixel; 0 = neither rounded nor clipped
            # of the noise, and of random surfaces; config.seed is for training
            "simulation_seed": 0,
        }
    )


def interferometry() -> ConfigDict:
    """Height of a surface from fringe images, as a function of coordinates
    (jaxvol/pdes/optics.py).
    """
    return ConfigDict(
        {
            "name": "interferometry",
            **optics(),
            "sample": "sample_0000",  # which of the folder's stacks
            # () = the images | combinations of the wavelengths' phases, ((1, -1, 0, 0), ...)
            "match": (),
            "scale": 15.0,  # um per unit of the network's output
        }
    )


def fringe_images() -> ConfigDict:
    """Stacks of fringe images as volumes of depth 1 (jaxvol/data/fringes.py)."""
    config = base.data()
    config.name = "fringes"
    config.optics = optics()
    # simulated: random ones; the first of test is the published one
    config.surfaces = ConfigDict({"train": 256, "val": 16, "test": 1})
    config.fractions = (0.8, 0.1, 0.1)  # of a folder's samples: train, val, test
    config.augment = ()
    config.input_normaliser = (("linear", {"low": 0.0, "high": 255.0}),)
    # um; not fitted, as stacks need not come with heights
    config.target_normaliser = (("linear", {"low": -5.0, "high": 29.0}),)
    return config


def fringes() -> ConfigDict:
    """Height from fringe images, learned without heights (jaxvol/tasks/fringes.py)."""
    return ConfigDict(
        {
            "name": "fringes",
            # what the network adds to: unwrapping (the classical solution) | constant
            # (data.optics.centre)
            "start": "unwrapping",
            "scale": 0.1,  # um per unit of the network's output
            # () = the images | combinations of the wavelengths' phases, ((1, -1, 0, 0), ...)
            "match": (),
            "weights": ConfigDict(
                {  # of the mean squares
                    "data": 1e-4,  # in grey levels: 1 / modulation^2
                    # of the five-point Laplacian in um per squared pixel; published: 1e-4 of the
                    # weight
                    # above
                    "smooth": 3.0,
                }
            ),
            "metrics": ("relative_l2", "rmse", "mae", "mape"),  # names in jaxvol/scores/metrics.py
            "spectra": False,  # images have none
        }
    )


def collocation() -> ConfigDict:
    """Point sets of a problem (jaxvol/data/collocation.py); config.batch_size counts sets, one is
    enough on one device.
    """
    return ConfigDict(
        {
            "name": "collocation",
            "problem": helmholtz(),  # or another of the functions above
            "points": ConfigDict(
                {  # of one set
                    "interior": 1000,  # where the equation is asked for
                    "boundary": 100,  # on each face of space; one where a face is a point
                    "initial": 400,  # at the first time
                    "data": 200,  # where the solution of an inverse problem was measured
                }
            ),
            "sampler": "latin",  # uniform | latin (hypercube) | sobol | grid
            # draw new points after so many updates; 0 = the same ones all the time
            "resample": 0,
        }
    )


def physics() -> ConfigDict:
    """Equation and conditions as a loss (jaxvol/tasks/physics.py)."""
    return ConfigDict(
        {
            "name": "physics",
            # auto | taylor | diagonal | jet | hessian | folx, see jaxvol/ops/laplacian.py
            "laplacian": "auto",
            # soft: conditions are terms of the loss | hard: the network is lift + distance *
            # network
            "constraints": "soft",
            "weights": ConfigDict(
                {  # of the mean squares; where the balance starts
                    "pde": 1.0,
                    "boundary": 10.0,
                    "initial": 10.0,
                    "data": 10.0,
                }
            ),
            "balance": ConfigDict(
                {  # how the weights change
                    # fixed | loss_ratio | gradnorm | ntk | relobralo | self_adaptive (group
                    # "weights")
                    "name": "fixed",
                    "loss_ratio": ConfigDict({"alpha": 1.5, "rate": 0.025}),
                    # every: updates between measurements
                    "gradnorm": ConfigDict({"alpha": 1.5, "rate": 0.025, "every": 10}),
                    "ntk": ConfigDict({"every": 100}),
                    "relobralo": ConfigDict({"temperature": 0.1, "decay": 0.999, "saccade": 0.999}),
                }
            ),
            "causal": ConfigDict(
                {  # slices of time wait until earlier ones are solved
                    "epsilon": 0.0,  # how strictly; 0 = off
                    "bins": 16,  # slices
                }
            ),
            "refine": ConfigDict(
                {  # points where the residual is large
                    "name": "none",  # none | rar (adds points) | rad (draws all of them anew)
                    "every": 500,  # updates between refinements
                    "cap": 200,  # rar: at most so many are added; rad: so many are drawn
                    "percentile": 75.0,  # rar: residuals above it
                    "ratio": 0.2,  # rar: points added, as a fraction of those there are
                    "candidates": 4000,  # rad: points that are drawn from
                    "power": 1.0,
                    "floor": 1.0,  # rad: density ~ |r|^power / mean |r|^power + floor
                }
            ),
            # names in jaxvol/scores/metrics.py, of the solution on the grid
            "metrics": ("relative_l2", "rmse", "mae"),
        }
    )
