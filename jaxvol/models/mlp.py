"""Multilayer perceptron on coordinates, the baseline of the Chebyshev KAN.

tanh:     x <- tanh(x W + b)
sine:     SIREN, x <- sin(omega x W + b), weights uniform within sqrt(6 / m) / omega, of the first
          layer within 1 / m (Sitzmann et al. 2020, arXiv:2006.09661)
fourier:  random Fourier features, x <- [cos 2 pi x B, sin 2 pi x B], entries of B normal with
          standard deviation `fourier_scale`, fixed; then tanh layers (Tancik et al. 2020,
          arXiv:2006.10739)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxvol.models.coordinates import enter, leave, scaled_fields
from jaxvol.ops import taylor
from jaxvol.types import Array, Spec

KINDS = ("tanh", "sine", "fourier")


def fields() -> ConfigDict:
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


def rules(config) -> list[str]:
    """Violated rules of `config.model`, for jaxvol/config/validate.py."""
    known = ", ".join(KINDS)
    return (
        []
        if config.model.kind in KINDS
        else [f"model.kind is {config.model.kind!r}; it has to be one of {known}."]
    )


def make(config, spec: Spec) -> nn.Module:
    """The MLP of `config.model`: physical coordinates [.., d] -> fields [.., channels].

    Taylor operands likewise.  Raises UserError, see `coordinates.scaled_fields`.
    """
    m = config.model
    return MLP(
        **scaled_fields(config, spec),
        kind=m.kind,
        omega=m.omega,
        fourier_features=m.fourier_features,
        fourier_scale=m.fourier_scale,
    )


class MLP(nn.Module):
    """[.., d] -> [.., channels] in at least float32; xhat = factor x + shift comes first."""

    channels: int
    widths: tuple[int, ...]
    kind: str
    omega: float
    fourier_features: int
    fourier_scale: float
    factor: tuple[float, ...]
    shift: tuple[float, ...]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array | taylor.Taylor, train: bool = False) -> Array | taylor.Taylor:
        x, inputs = enter(x, self.factor, self.shift, self.dtype), len(self.factor)
        if self.kind == "fourier":
            frequencies = np.random.default_rng(0).normal(
                0, self.fourier_scale, (inputs, self.fourier_features)
            )
            waves = taylor.dense(x, jnp.asarray(2 * math.pi * frequencies, self.dtype))
            x, inputs = (
                taylor.concatenate([taylor.cos(waves), taylor.sin(waves)]),
                2 * self.fourier_features,
            )
        for i, outputs in enumerate((*self.widths, self.channels)):
            last, omega = i == len(self.widths), self.omega if self.kind == "sine" else 1.0
            start = (
                siren(inputs, omega, i == 0)
                if self.kind == "sine"
                else nn.initializers.glorot_normal()
            )
            kernel = self.param(f"layer_{i}", start, (inputs, outputs), self.param_dtype).astype(
                self.dtype
            )
            bias = self.param(
                f"bias_{i}", nn.initializers.zeros, (outputs,), self.param_dtype
            ).astype(self.dtype)
            x = taylor.dense(x, kernel if last else omega * kernel, bias)
            if not last:
                x = taylor.sin(x) if self.kind == "sine" else taylor.tanh(x)
            inputs = outputs
        return leave(x)


def siren(inputs: int, omega: float, first: bool) -> Callable:
    """Weights that keep the spread of sine layers.

    Uniform within 1 / m in the first layer, within sqrt(6 / m) / omega in the others.
    """
    bound = 1 / inputs if first else math.sqrt(6 / inputs) / omega
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
