"""Chebyshev KAN on coordinates, in the two published forms.

    y_o = sum_i sum_k C_kio T_k(x_i)          one layer, degrees k = 0 ... K; T_0 is the bias

tanh:        x <- layer(tanh x) in every layer, the first and the last included
             (Scaled-cPIKAN, arXiv:2501.02762)
layer_norm:  x <- tanh(norm(layer x)) in hidden layers, y = layer(x) in the last
             (its port, StreoCalibration/Scaled-cPIKANs)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.models.coordinates import enter, leave, scaled_fields
from jaxvol.ops import chebyshev, taylor
from jaxvol.types import Array, Spec

FORMS = ("tanh", "layer_norm")
INITS = ("xavier", "kaiming", "orthogonal", "small")
EPSILON = 1e-5


def fields() -> ConfigDict:
    """Chebyshev KAN.

    Scaled-cPIKAN has form="tanh", init="xavier", degree=5; its port form="layer_norm",
    init="kaiming".
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


def rules(config) -> list[str]:
    """Violated rules of `config.model`, for jaxvol/config/validate.py."""
    m, errors = config.model, []
    for field, value, known in (("form", m.form, FORMS), ("init", m.init, INITS)):
        if value not in known:
            errors.append(f"model.{field} is {value!r}; it has to be one of {', '.join(known)}.")
    if m.degree < 1:
        errors.append(f"model.degree is {m.degree}; it has to be at least 1.")
    return errors


def make(config, spec: Spec) -> nn.Module:
    """The Chebyshev KAN of `config.model`: physical coordinates [.., d] -> fields [.., channels].

    Taylor operands likewise.  Raises UserError, see `coordinates.scaled_fields`.
    """
    m = config.model
    return ChebKAN(**scaled_fields(config, spec), degree=m.degree, form=m.form, initial=m.init)


class ChebKAN(nn.Module):
    """[.., d] -> [.., channels] in at least float32; xhat = factor x + shift comes first."""

    channels: int
    widths: tuple[int, ...]
    degree: int
    form: str
    initial: str
    factor: tuple[float, ...]
    shift: tuple[float, ...]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array | taylor.Taylor, train: bool = False) -> Array | taylor.Taylor:
        x, inputs = enter(x, self.factor, self.shift, self.dtype), len(self.factor)
        for i, outputs in enumerate((*self.widths, self.channels)):
            c = self.param(
                f"layer_{i}",
                initialiser(self.initial),
                (self.degree + 1, inputs, outputs),
                self.param_dtype,
            ).astype(self.dtype)
            if self.form == "tanh":
                x = chebyshev.layer(taylor.tanh(x), c)
            else:
                x = chebyshev.layer(x, c)
                if i < len(self.widths):
                    scale = self.param(
                        f"norm_{i}_scale", nn.initializers.ones, (outputs,), self.param_dtype
                    )
                    bias = self.param(
                        f"norm_{i}_bias", nn.initializers.zeros, (outputs,), self.param_dtype
                    )
                    x = taylor.tanh(
                        taylor.layer_norm(
                            x, scale.astype(self.dtype), bias.astype(self.dtype), EPSILON
                        )
                    )
            inputs = outputs
        return leave(x)


def initialiser(name: str) -> Callable:
    """Coefficients [K + 1, m, n] of one layer at the start, for (key, shape, dtype).

    xavier:      normal, variance 2 / ((m + n)(K + 1))
    kaiming:     uniform within sqrt(2 / 1.01) sqrt(3 / (m (K + 1)))
    orthogonal:  the (K + 1) m rows or the n columns orthonormal
    small:       normal, standard deviation 0.1 / sqrt(m (K + 1))
    """

    def draw(key: jax.Array, shape: tuple[int, int, int], dtype) -> Array:
        degrees, inputs, outputs = shape
        if name == "xavier":
            return math.sqrt(2 / ((inputs + outputs) * degrees)) * jax.random.normal(
                key, shape, dtype
            )
        if name == "kaiming":
            bound = math.sqrt(2 / 1.01) * math.sqrt(3 / (inputs * degrees))
            return jax.random.uniform(key, shape, dtype, -bound, bound)
        if name == "orthogonal":
            return nn.initializers.orthogonal()(key, (degrees * inputs, outputs), dtype).reshape(
                shape
            )
        return 0.1 / math.sqrt(inputs * degrees) * jax.random.normal(key, shape, dtype)

    return draw
