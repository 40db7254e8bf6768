"""Fields of the components of physics-informed networks, as configs/base.py has those of the others."""
from ml_collections import ConfigDict


def cheb_kan() -> ConfigDict:
    """Chebyshev KAN; form="tanh", init="xavier", degree=5 is Scaled-cPIKAN's, form="layer_norm", init="kaiming" its port's."""
    return ConfigDict({
        "name": "cheb_kan",
        "widths": (32, 32, 32),        # neurons of the hidden layers
        "degree": 3,                   # highest Chebyshev polynomial
        "form": "layer_norm",          # layer_norm (and tanh, behind hidden layers) | tanh (in front of every layer)
        "init": "kaiming",             # xavier | kaiming | orthogonal | small
        "scaling": "affine",           # of the coordinates to [-1, 1]: affine | space (all but t) | none
    })


def mlp() -> ConfigDict:
    """Multilayer perceptron of coordinates."""
    return ConfigDict({
        "name": "mlp",
        "widths": (54, 54, 54, 54),    # neurons of the hidden layers; (54,) * 4 has the 9,000 parameters of the KAN's defaults
        "kind": "tanh",                # tanh | sine (SIREN) | fourier (random Fourier features and tanh)
        "omega": 30.0,                 # sine: factor of the weights of every layer
        "fourier_features": 32,        # fourier: number of random frequencies
        "fourier_scale": 1.0,          # fourier: their standard deviation, in cycles per unit of the scaled coordinate
        "scaling": "affine",           # of the coordinates to [-1, 1]: affine | space (all but t) | none
    })
