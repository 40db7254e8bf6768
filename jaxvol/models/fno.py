"""Fourier neural operator in 3D (Li et al. 2021, arXiv:2010.08895).

    v_0 = lift(x);   v_{l+1} = act(K_l v_l + bypass_l(v_l));   y = project(v_L)

K_l is the spectral convolution of `jaxvol.ops.fourier`, lift, bypass and project act on each voxel
alone.  Its weights may be factorised (Kossaifi et al. 2024, arXiv:2310.00120).  A channel MLP may
follow each block, as in version 2 of the `neuraloperator` package, whose weights load into this
module (`window="one_sided"`).  The output layer is linear.  The same weights run on any grid.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.models import layers
from jaxvol.models.channel_mlp import PointwiseMLP, apply_mlp, mlp_weights, skip
from jaxvol.models.spectral import SpectralConv
from jaxvol.ops import fourier, pointwise
from jaxvol.ops.chunked import voxelwise
from jaxvol.types import Array, PyTree, Spec, UserError

Dtype = Any
WINDOWS = ("symmetric", "one_sided")
FACTORIZATIONS = ("dense", "tucker", "cp")
SKIPS = ("linear", "identity", "soft_gating", "none")
NORMS = ("none", "instance", "group")
COORDINATES = ("auto", "all", "none")
# the first prediction is close to the mean: a loss of 1, not 10, and no steps lost on undoing it
OUTPUT_GAIN = 0.1


def fields() -> ConfigDict:
    """Fourier neural operator; the defaults keep every frequency up to |k| = 8 on each axis."""
    return ConfigDict(
        {
            "name": "fno",
            "width": 20,  # channels of the hidden field
            "layers": 4,  # blocks
            # highest |k| kept along D, H, W; at most half the grid, 0 on an axis of length 1
            "modes": (8, 8, 8),
            # symmetric: k = -m..m
            # one_sided: k = -m..m-1, the layout of neuraloperator with n_modes = 2m
            "window": "symmetric",
            "factorization": "dense",  # of the spectral weights: dense | tucker | cp (TFNO)
            # factorised: parameters as a fraction of the dense tensor's; tucker 1.0 = full rank
            "rank": 0.1,
            "implementation": "auto",  # auto | fft | dft (truncated DFT as matrix products)
            # hidden channels of the lifting MLP / width; 0 = one linear layer
            "lifting_ratio": 2.0,
            # hidden channels of the projection MLP / width; 0 = one linear layer
            "projection_ratio": 2.0,
            # around the spectral convolution: linear (1x1) | identity | soft_gating | none
            "bypass": "linear",
            "channel_mlp_ratio": 0.5,  # hidden channels of each block's MLP / width; 0 = no MLP
            # around that MLP, from the block's input: linear | identity | soft_gating | none
            "channel_mlp_skip": "soft_gating",
            "norm": "none",  # none | instance | group (all channels together)
            "activate_last": False,  # activation in the last block as well
            # input channels j/n: auto (axes that are not periodic) | all | none
            "coordinates": "auto",
            # zeros appended to axes that are not periodic, as a fraction of their length
            "padding": 0.0,
            # recompute each block in the backward pass: less memory on GPU and TPU, not on CPU
            "remat": False,
        }
    )


def rules(config) -> list[str]:
    """What a config with this network has to keep to, besides what `make` asks of the data."""
    m = config.model
    if m.factorization == "dense" or m.rank > 0:
        return []
    return [
        f"model.rank is {m.rank} with factorization={m.factorization!r}; it has to be above 0, the "
        "share of the dense tensor's parameters."
    ]


def make(config, spec: Spec) -> nn.Module:
    """The FNO of `config.model` for volumes of `spec`: [B, D, H, W, C] -> [B, D, H, W, K].

    Raises UserError for an unknown choice and for modes that the training grid does not resolve.
    """
    m = config.model
    layers.check_choices(
        m,
        window=WINDOWS,
        factorization=FACTORIZATIONS,
        implementation=fourier.IMPLEMENTATIONS,
        bypass=SKIPS,
        channel_mlp_skip=SKIPS,
        norm=NORMS,
        coordinates=COORDINATES,
    )
    modes = tuple(m.modes)
    if len(modes) != 3 or any(k < 0 or k > n // 2 for k, n in zip(modes, spec.shape)):
        raise UserError(
            f"config.model.modes is {modes} (the highest |k| kept along D, H, W), but the training "
            f"grid is {'x'.join(map(str, spec.shape))} and resolves at most "
            f"{tuple(n // 2 for n in spec.shape)}; lower the modes or use larger volumes."
        )
    channels = layers.target_channels(spec, "fno")
    open_axes = tuple(a for a in range(3) if not spec.periodic[a] and spec.shape[a] > 1)
    long_axes = tuple(a for a in range(3) if spec.shape[a] > 1)
    return FNO(
        channels=channels,
        width=m.width,
        layers=m.layers,
        frequencies=fourier.window(modes, m.window == "one_sided"),
        factorization=m.factorization,
        rank=m.rank,
        implementation=m.implementation,
        lifting_ratio=m.lifting_ratio,
        projection_ratio=m.projection_ratio,
        bypass=m.bypass,
        channel_mlp_ratio=m.channel_mlp_ratio,
        channel_mlp_skip=m.channel_mlp_skip,
        norm=m.norm,
        activate_last=m.activate_last,
        coordinate_axes={"auto": open_axes, "all": long_axes, "none": ()}[m.coordinates],
        padding=m.padding,
        padded_axes=open_axes,
        remat=m.remat,
        **layers.dtypes(config.precision),
    )


class FNO(nn.Module):
    """Fourier neural operator, [B, D, H, W, C] -> [B, D, H, W, channels] in at least float32."""

    channels: int
    width: int
    layers: int
    frequencies: fourier.Window
    factorization: str
    rank: float
    implementation: str
    lifting_ratio: float
    projection_ratio: float
    bypass: str
    channel_mlp_ratio: float
    channel_mlp_skip: str
    norm: str
    activate_last: bool
    coordinate_axes: tuple[int, ...]
    padding: float
    padded_axes: tuple[int, ...]
    remat: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = append_coordinates(x.astype(self.dtype), self.coordinate_axes)
        x = PointwiseMLP(
            round(self.lifting_ratio * self.width),
            self.width,
            self.dtype,
            self.param_dtype,
            name="lifting",
        )(x)
        grid = x.shape[1:4]
        extra = [
            round(self.padding * n) if a in self.padded_axes else 0 for a, n in enumerate(grid)
        ]
        if any(extra):
            x = jnp.pad(x, [(0, 0), *((0, e) for e in extra), (0, 0)])
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.layers):
            x = block(
                frequencies=self.frequencies,
                factorization=self.factorization,
                rank=self.rank,
                implementation=self.implementation,
                bypass=self.bypass,
                channel_mlp_ratio=self.channel_mlp_ratio,
                channel_mlp_skip=self.channel_mlp_skip,
                norm=self.norm,
                activate=self.activate_last or i < self.layers - 1,
                param_dtype=self.param_dtype,
                name=f"block_{i}",
            )(x)
        x = x[:, : grid[0], : grid[1], : grid[2]]
        return PointwiseMLP(
            round(self.projection_ratio * self.width),
            self.channels,
            jnp.promote_types(self.dtype, jnp.float32),
            self.param_dtype,
            OUTPUT_GAIN,
            name="projection",
        )(x)


class Block(nn.Module):
    """act(norm(K v) + bypass(v)), then optionally act(norm(MLP(.) + skip(v))).

    [B, D, H, W, C] -> the same.
    """

    frequencies: fourier.Window
    factorization: str
    rank: float
    implementation: str
    bypass: str
    channel_mlp_ratio: float
    channel_mlp_skip: str
    norm: str
    activate: bool
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act = pointwise.gelu if self.activate else (lambda v: v)
        y = SpectralConv(
            self.frequencies,
            self.factorization,
            self.rank,
            self.implementation,
            self.param_dtype,
            name="spectral",
        )(x)
        y = self.normalise(y, "norm")
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        bypass = self.skip(x, self.bypass, "bypass")
        if self.channel_mlp_ratio == 0:
            return voxelwise(
                lambda p, v, y: act(y + p[0][:, None] + skip(v, self.bypass, p[1])).astype(v.dtype),
                (bias, bypass),
                x,
                y,
            )
        mlp = mlp_weights(
            self,
            "channel_mlp_",
            x.shape[-1],
            round(self.channel_mlp_ratio * x.shape[-1]),
            x.shape[-1],
        )
        around = self.skip(x, self.channel_mlp_skip, "channel_mlp_skip")
        between = act if self.norm == "none" else (lambda v: v)

        def mix(p: PyTree, v: Array, y: Array) -> Array:
            y = act(y + p[0][:, None] + skip(v, self.bypass, p[1])).astype(v.dtype)
            y = apply_mlp(p[2], y, jnp.promote_types(y.dtype, jnp.float32)) + skip(
                v, self.channel_mlp_skip, p[3]
            )
            return between(y).astype(v.dtype)

        y = voxelwise(mix, (bias, bypass, mlp, around), x, y)
        if self.norm == "none":
            return y
        return voxelwise(lambda p, y: act(y), (), self.normalise(y, "channel_mlp_norm"))

    def skip(self, x: Array, kind: str, name: str) -> Array | None:
        """Weights of a path around a convolution or MLP."""
        if kind == "linear":
            return self.param(
                name, nn.initializers.he_normal(), (x.shape[-1], x.shape[-1]), self.param_dtype
            )
        if kind == "soft_gating":
            return self.param(name, nn.initializers.ones, x.shape[-1:], self.param_dtype)
        return None

    def normalise(self, x: Array, name: str) -> Array:
        """Per example: `instance` over the voxels of each channel, `group` over all of them."""
        if self.norm == "none":
            return x
        groups = (
            {"num_groups": None, "group_size": 1} if self.norm == "instance" else {"num_groups": 1}
        )
        return nn.GroupNorm(
            epsilon=1e-5, dtype=x.dtype, param_dtype=self.param_dtype, name=name, **groups
        )(x)


def append_coordinates(x: Array, axes: tuple[int, ...]) -> Array:
    """Append one channel j / n in [0, 1) for each named axis, after the data channels."""
    channels = []
    for a in axes:
        n = x.shape[a + 1]
        line = (
            (jnp.arange(n) / n).astype(x.dtype).reshape([n if i == a + 1 else 1 for i in range(5)])
        )
        channels.append(jnp.broadcast_to(line, (*x.shape[:4], 1)))
    return jnp.concatenate([x, *channels], axis=-1)
