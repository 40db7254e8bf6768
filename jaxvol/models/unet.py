"""U-Net on images, which are volumes of depth 1 (Ronneberger et al. 2015, arXiv:1505.04597).

    e_0 = C(x)      e_l = C(pool e_{l-1})      d_l = C([up d_{l+1}, e_l])      y = conv1 d_0
    C(v) = (act norm conv3)^2 v

Levels lie on grids of ceil(n / 2^l) pixels; pool is the mean over 2 x 2 pixels, up is bilinear.
models/vnet.py does the same on volumes; on images two thirds of its weights, and of its time, would
go to neighbours that do not exist.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.models import layers
from jaxvol.models.layers import NORMS, Norm
from jaxvol.ops import resample
from jaxvol.types import Array, Spec, UserError


def fields() -> ConfigDict:
    """U-Net on images, volumes of depth 1.

    The published one of the fringe images has widths=(64, 128, 256, 512), norm="batch".
    """
    return ConfigDict(
        {
            "name": "unet",
            "widths": (16, 32, 64),  # channels per level, each on half the grid of the one before
            # group (8 groups) | instance (forgets the amplitude of its input) | batch | none
            "norm": "group",
        }
    )


def rules(config) -> list[str]:
    """Violated rules of `config.model`, for jaxvol/config/validate.py."""
    m, errors = config.model, []
    if m.norm not in NORMS:
        errors.append(f"model.norm is {m.norm!r}; it has to be one of {', '.join(NORMS)}.")
    if not m.widths or min(m.widths) < 1:
        errors.append(
            f"model.widths is {tuple(m.widths)}; it has to be one positive number of channels per "
            "level."
        )
    return errors


def make(config, spec: Spec) -> nn.Module:
    """The U-Net of `config.model`: [B, 1, H, W, C] -> [B, 1, H, W, K].

    Raises UserError for volumes that are deeper than 1.
    """
    if spec.shape[0] != 1:
        raise UserError(
            f"model unet is for images, but the volumes have the depth {spec.shape[0]}; use "
            "config.model.name='vnet'."
        )
    m = config.model
    return UNet(
        channels=len(spec.fields["target"].channels),
        widths=tuple(m.widths),
        norm=m.norm,
        **layers.dtypes(config.precision),
    )


class UNet(nn.Module):
    """[B, 1, H, W, C] -> [B, 1, H, W, channels] in at least float32.

    Blocks are numbered down to the coarsest grid and up again.
    """

    channels: int
    widths: tuple[int, ...]
    norm: str
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        common = {"norm": self.norm, "dtype": self.dtype, "param_dtype": self.param_dtype}
        x, skips, levels = x.astype(self.dtype), [], len(self.widths)
        for i, features in enumerate(self.widths):
            x = Block(features, **common, name=f"block_{i}")(halved(x) if i else x, train)
            skips.append(x)
        x = skips.pop()
        for i, features in enumerate(reversed(self.widths[:-1])):
            skip = skips.pop()
            x = jnp.concatenate([resample.resize(x, skip.shape[1:4]), skip], -1)
            x = Block(features, **common, name=f"block_{levels + i}")(x, train)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return nn.Dense(
            self.channels,
            kernel_init=layers.SMALL,
            dtype=wide,
            param_dtype=self.param_dtype,
            name="head",
        )(x.astype(wide))


class Block(nn.Module):
    """Twice convolution, norm and ReLU; images of the same size."""

    features: int
    norm: str
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i in range(2):
            wide = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")[:, 0]
            x = nn.Conv(
                self.features,
                (3, 3),
                padding="VALID",
                use_bias=self.norm == "none",
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"conv_{i}",
            )(wide)[:, None]
            x = nn.relu(
                Norm(self.norm, dtype=self.dtype, param_dtype=self.param_dtype, name=f"norm_{i}")(
                    x, train
                )
            )
        return x


def halved(x: Array) -> Array:
    """Means over 2 x 2 pixels; the last row and column are repeated where their number is odd."""
    b, d, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return x.reshape(b, d, (h + 1) // 2, 2, (w + 1) // 2, 2, c).mean((3, 5))
