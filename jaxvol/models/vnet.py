"""Encoder-decoders with skips on volumes: the V-Net and the 3D U-Net of dm2ics.

V-Net: Milletari et al. 2016, arXiv:1606.04797.  Features e_l at level l live on grids of
ceil(n / 2^l) voxels; the decoder joins its features d, brought to a finer grid, with the encoder's
of that grid:

    residual (widths w_0, w_1, ...), pre-activation
        e_0 = R(conv3 x)      e_l = R(conv2 e_{l-1}), stride 2
        d_l = R(e_l + up(conv1 d_{l+1}))                              y = conv1 d_0
        R(v) = v + conv3 act norm conv3 act norm v
    original (widths w_1, w_2, ...)
        e_0 = x               e_l = act norm conv5 e_{l-1}, stride 2
        d_l = act norm conv3 [up d_{l+1}, e_l]                        y = conv3 [up d_1, x]

The output layer is linear; `head="norm_relu"` appends the norm and the ReLU with which the
published U-Net ends.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.models import layers
from jaxvol.models.layers import NORMS, PADDINGS, Conv, Norm
from jaxvol.ops import resample
from jaxvol.types import Array, Spec, UserError

Dtype = Any
LAYOUTS = ("residual", "original")
HEADS = ("linear", "norm_relu")
FITS = ("resize", "crop")
# kernel size and padding of the convolutions of stride 2
STEPS_DOWN = {"residual": (2, 0), "original": (5, 2)}
LINEAR = nn.initializers.lecun_normal()  # of convolutions that no ReLU precedes


def fields() -> ConfigDict:
    """V-Net.

    The published 3D U-Net has layout="original", head="norm_relu", fit="crop", norm="batch",
    bias_before_norm=True.
    """
    return ConfigDict(
        {
            "name": "vnet",
            # residual: pre-activation blocks, sums with the skips
            # original: one convolution per level
            "layout": "residual",
            # channels per level; residual: the first at full resolution, original: at half of it
            "widths": (16, 32, 64, 80),
            # group (8 groups) | instance (forgets the amplitude of its input) | batch | none
            "norm": "group",
            # zero | replicate | periodic | reflect
            # auto: periodic where all axes wrap, else replicate
            "padding": "auto",
            "head": "linear",  # linear | norm_relu (as published: no output below 0)
            # up-sampled features to the skip's grid: resize | crop (published: drops a first voxel)
            "fit": "resize",
            "bias_before_norm": False,  # biases that a norm takes away again
            # recompute each block in the backward pass: less memory on GPU and TPU, not on CPU
            "remat": False,
        }
    )


def make(config, spec: Spec) -> nn.Module:
    """The V-Net of `config.model` for volumes of `spec`: [B, D, H, W, C] -> [B, D, H, W, K].

    Raises UserError for an unknown choice, for widths that are no positive numbers, and when the
    depth is split over more devices (config.mesh.space) than the coarsest grid has planes: the rest
    would hold nothing of it, and XLA would gather what they need.
    """
    m = config.model
    layers.check_choices(m, layout=LAYOUTS, padding=PADDINGS, norm=NORMS, head=HEADS, fit=FITS)
    if not m.widths or min(m.widths) < 1:
        raise UserError(
            f"config.model.widths is {tuple(m.widths)}: expected one positive number of channels "
            "per level."
        )
    halvings = len(m.widths) - (m.layout == "residual")
    coarsest = -(-spec.shape[0] // 2**halvings)
    # the run's own, whatever -1 in config.mesh came to
    mesh = jax.sharding.get_abstract_mesh().shape
    if "space" in mesh and 1 < mesh["space"] > coarsest:
        raise UserError(
            f"config.mesh.space is {mesh['space']}, but the coarsest grid of model vnet has "
            f"{coarsest} planes (depth {spec.shape[0]}, halved {halvings} times); use at most "
            f"{coarsest} devices for space, fewer config.model.widths, or deeper volumes."
        )
    return VNet(
        channels=layers.target_channels(spec, "vnet"),
        widths=tuple(m.widths),
        layout=m.layout,
        padding=layers.boundary(m.padding, spec),
        norm=m.norm,
        head=m.head,
        fit=m.fit,
        bias_before_norm=m.bias_before_norm,
        remat=m.remat,
        **layers.dtypes(config.precision),
    )


class VNet(nn.Module):
    """[B, D, H, W, C] -> [B, D, H, W, channels] in at least float32.

    Blocks are numbered down to the coarsest grid and up again.
    """

    channels: int
    widths: tuple[int, ...]
    layout: str
    padding: str
    norm: str
    head: str
    fit: str
    bias_before_norm: bool
    remat: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        original, levels = self.layout == "original", len(self.widths)
        down, up = (
            nn.remat(b, static_argnums=(s,)) if self.remat else b
            for b, s in ((Encoder, 2), (Decoder, 3))
        )
        common = {
            "layout": self.layout,
            "padding": self.padding,
            "norm": self.norm,
            "bias_before_norm": self.bias_before_norm,
            "branch": 1 / (2 * levels - 1),
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        x = x.astype(self.dtype)
        skips = [x] if original else []
        for i, features in enumerate(self.widths):
            stride = 2 if original or i else 1
            x = down(features, stride=stride, **common, name=f"block_{i}")(x, train)
            skips.append(x)
        x = skips.pop()
        for i, features in enumerate(reversed(self.widths[:-1])):
            x = up(features, fit=self.fit, **common, name=f"block_{levels + i}")(
                x, skips.pop(), train
            )
        if original:
            x = joined(x, skips.pop(), self.padding, self.fit)
        return self.project(x, train, kernel_size=3 if original else 1)

    def project(self, x: Array, train: bool, kernel_size: int) -> Array:
        """The head, in at least float32."""
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        with_norm = self.head == "norm_relu" and self.norm != "none"
        init = layers.SMALL if self.head == "linear" else LINEAR
        y = Conv(
            self.channels,
            kernel_size,
            1,
            self.padding,
            kernel_size // 2,
            self.bias_before_norm or not with_norm,
            init,
            dtype,
            self.param_dtype,
            name="head",
        )(x)
        if self.head == "linear":
            return y
        return nn.relu(
            Norm(self.norm, dtype=dtype, param_dtype=self.param_dtype, name="head_norm")(y, train)
        )


class Block(nn.Module):
    """What encoder and decoder share: what they do to a level's features; not used by itself."""

    features: int
    layout: str
    padding: str
    norm: str
    bias_before_norm: bool
    branch: float  # variance that a residual branch adds to its input, relative to it
    dtype: Dtype
    param_dtype: Dtype

    def conv(
        self,
        name: str,
        kernel_size: int,
        use_bias: bool,
        init=LINEAR,
        stride: int = 1,
        width: int | None = None,
    ) -> Conv:
        width = kernel_size // 2 if width is None else width
        return Conv(
            self.features,
            kernel_size,
            stride,
            self.padding,
            width,
            use_bias,
            init,
            self.dtype,
            self.param_dtype,
            name=name,
        )

    def activated(self, x: Array, train: bool, name: str) -> Array:
        return nn.relu(
            Norm(self.norm, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x, train)
        )

    def body(self, x: Array, train: bool) -> Array:
        """original: act norm; residual: R."""
        if self.layout == "original":
            return self.activated(x, train, "norm")
        y = self.conv("conv_0", 3, self.needs_bias(), nn.initializers.he_normal())(
            self.activated(x, train, "norm_0")
        )
        init = nn.initializers.variance_scaling(2 * self.branch, "fan_in", "truncated_normal")
        return x + self.conv("conv_1", 3, True, init)(self.activated(y, train, "norm_1"))

    def needs_bias(self) -> bool:
        """Of a convolution that a norm follows, which would take a bias away again."""
        return self.bias_before_norm or self.norm == "none"


class Encoder(Block):
    """A convolution of stride 1 or 2, then the body; n -> ceil(n / stride) voxels."""

    stride: int = 2

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.stride == 1:
            return self.body(self.conv("entry", 3, True)(x), train)
        original = self.layout == "original"
        # pairs of voxels: an odd axis is first stretched by one, which treats its two ends alike
        if not original:
            x = resample.resize(
                x, tuple(n + n % 2 for n in x.shape[1:4]), self.padding == "periodic"
            )
        size, width = STEPS_DOWN[self.layout]
        init = nn.initializers.he_normal() if original else LINEAR
        return self.body(
            self.conv("entry", size, self.needs_bias() or not original, init, 2, width)(x), train
        )


class Decoder(Block):
    """Coarse features and the encoder's on the finer grid -> this level's."""

    fit: str = "resize"

    @nn.compact
    def __call__(self, x: Array, skip: Array, train: bool) -> Array:
        if self.layout == "residual":
            # before it goes to the finer grid: the same there, at an eighth of the cost
            x = self.conv("entry", 1, False)(x)
            return self.body(skip + brought(x, skip, self.padding, self.fit), train)
        x = self.conv("entry", 3, self.needs_bias(), nn.initializers.he_normal())(
            joined(x, skip, self.padding, self.fit)
        )
        return self.body(x, train)


def brought(x: Array, skip: Array, padding: str, fit: str) -> Array:
    """x on the grid of `skip`, trilinear.

    resize: both grids fill the same box.
    crop:   twice the voxels, and where that is one too many the first one is left out, as the
            published model does, which moves the features by half a voxel.
    """
    shape, periodic = skip.shape[1:4], padding == "periodic"
    if fit == "resize":
        return resample.resize(x, shape, periodic)
    x = resample.resize(x, tuple(2 * n for n in x.shape[1:4]), periodic)
    d, h, w = (have - want for have, want in zip(x.shape[1:4], shape))
    return x[:, d:, h:, w:]


def joined(x: Array, skip: Array, padding: str, fit: str) -> Array:
    """[x on the grid of skip, skip] along the channels."""
    return jnp.concatenate([brought(x, skip, padding, fit), skip], -1)
