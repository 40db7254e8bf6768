"""The Pix2PixCC generator in 3D (Jeong et al. 2022, arXiv:2204.12068; pix2pixHD, arXiv:1711.11585).

         v = act(norm(conv7 x)),                                     act = Mish
    n x  v = act(norm(conv5 v))   at half the resolution, with twice the channels
    m x  v = v + norm(conv3 act(norm(conv3 v)))
    n x  v = act(norm(conv3 up(v) [+ the encoder's v of that size]))
         y = conv7 v

Sides that 2^n does not divide come out at their own size: every step up ends at the size from which
the step down started.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.models import layers
from jaxvol.models.layers import NORMS, PADDINGS, Conv, Norm, TransposedConv
from jaxvol.ops import pointwise, resample
from jaxvol.types import Array, Spec, UserError

Dtype = Any
UPSAMPLING = ("trilinear", "transposed")
SKIPS = ("none", "add")
# kernel sizes: first and last convolution, steps down, everything else
OUTER, DOWN, INNER = 7, 5, 3


def fields() -> ConfigDict:
    """Pix2PixCC generator.

    The published one has norm="instance", down_padding="zero", bias_before_norm=True, skips="none".
    """
    return ConfigDict(
        {
            "name": "pix2pixcc",
            "width": 16,  # channels at full resolution; doubled by each step down
            # steps down, and up again: convolutions of stride 2; volumes may have any size
            "downs": 2,
            "blocks": 4,  # residual blocks at the coarsest resolution
            # none | group (8 groups) | instance (forgets the amplitude of its input) | batch
            "norm": "none",
            # none | add: the encoder's features to the decoder's of the same size
            "skips": "add",
            "upsampling": "trilinear",  # trilinear (and a convolution) | transposed (convolution)
            # zero | replicate | periodic | reflect
            # auto: periodic where all axes wrap, else replicate
            "padding": "auto",
            "down_padding": "auto",  # the same, of the steps down
            "bias_before_norm": False,  # biases that a norm takes away again
            # recompute each block in the backward pass: less memory on GPU and TPU, not on CPU
            "remat": False,
        }
    )


def make(config, spec: Spec) -> nn.Module:
    """The generator of `config.model` for volumes of `spec`: [B, D, H, W, C] -> [B, D, H, W, K].

    Raises UserError for an unknown choice, and when the steps down leave an instance norm a single
    voxel.
    """
    m = config.model
    layers.check_choices(
        m, padding=PADDINGS, down_padding=PADDINGS, upsampling=UPSAMPLING, skips=SKIPS, norm=NORMS
    )
    channels = layers.target_channels(spec, "pix2pixcc")
    coarse = tuple(-(-n // 2**m.downs) for n in spec.shape)
    if m.norm == "instance" and math.prod(coarse) == 1:
        raise UserError(
            f"config.model.downs is {m.downs}, which leaves {coarse} voxels of the training "
            f"volumes of {spec.shape}: instance norm makes a single voxel 0; take fewer steps "
            "down, larger volumes or another norm."
        )
    return Generator(
        channels=channels,
        width=m.width,
        downs=m.downs,
        blocks=m.blocks,
        norm=m.norm,
        upsampling=m.upsampling,
        padding=layers.boundary(m.padding, spec),
        down_padding=layers.boundary(m.down_padding, spec),
        skips=m.skips == "add",
        bias_before_norm=m.bias_before_norm,
        remat=m.remat,
        **layers.dtypes(config.precision),
    )


class Generator(nn.Module):
    """[B, D, H, W, C] -> [B, D, H, W, channels] in at least float32.

    After i steps down there are width * 2^i channels.
    """

    channels: int
    width: int
    downs: int
    blocks: int
    norm: str
    upsampling: str
    padding: str
    down_padding: str
    skips: bool
    bias_before_norm: bool
    remat: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        def remat(block: type[nn.Module], *static: int) -> type[nn.Module]:
            return nn.remat(block, static_argnums=static) if self.remat else block

        common = {
            "norm": self.norm,
            "use_bias": self.bias_before_norm or self.norm == "none",
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        layer, block, up = remat(Layer, 2), remat(Block, 2), remat(Up, 2, 3)
        v = layer(self.width, OUTER, 1, self.padding, **common, name="first")(
            x.astype(self.dtype), train
        )
        above = []
        for i in range(self.downs):
            above.append(v)
            v = layer(
                self.width * 2 ** (i + 1), DOWN, 2, self.down_padding, **common, name=f"down_{i}"
            )(v, train)
        for i in range(self.blocks):
            v = block(self.padding, 1 / self.blocks, **common, name=f"block_{i}")(v, train)
        for i in reversed(range(self.downs)):
            skip = above[i] if self.skips else None
            v = up(self.width * 2**i, self.upsampling, self.padding, **common, name=f"up_{i}")(
                v, train, above[i].shape[1:4], skip
            )
        return Conv(
            self.channels,
            OUTER,
            1,
            self.padding,
            OUTER // 2,
            kernel_init=layers.SMALL,
            dtype=jnp.promote_types(self.dtype, jnp.float32),
            param_dtype=self.param_dtype,
            name="last",
        )(v)


class Layer(nn.Module):
    """act(norm(conv x)) at 1 / stride of the resolution, n -> ceil(n / stride) voxels."""

    features: int
    kernel_size: int
    stride: int
    padding: str
    norm: str
    use_bias: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.padding,
            self.kernel_size // 2,
            self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)
        return pointwise.mish(normalise(self, x, train))


class Block(nn.Module):
    """x + norm(conv3 act(norm(conv3 x))), without an activation after the sum.

    The branch starts with `share` of x's variance.
    """

    padding: str
    share: float
    norm: str
    use_bias: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y, branch_end = x, nn.initializers.variance_scaling(2 * self.share, "fan_in", "normal")
        for i, init in enumerate((nn.initializers.he_normal(), branch_end)):
            y = Conv(
                x.shape[-1],
                INNER,
                1,
                self.padding,
                INNER // 2,
                self.use_bias,
                init,
                self.dtype,
                self.param_dtype,
                name=f"conv_{i}",
            )(y)
            y = normalise(self, y, train, f"norm_{i}")
            y = pointwise.mish(y) if i == 0 else y
        return x + y


class Up(nn.Module):
    """act(norm(conv3 up(x) + skip)) at the size `shape`.

    Trilinear interpolation and convolution, or a transposed convolution.
    """

    features: int
    upsampling: str
    padding: str
    norm: str
    use_bias: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Array, train: bool, shape: tuple[int, int, int], skip: Array | None
    ) -> Array:
        periodic = self.padding == "periodic"
        if self.upsampling == "trilinear":
            x = Conv(
                self.features,
                INNER,
                1,
                self.padding,
                INNER // 2,
                self.use_bias,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name="conv",
            )(resample.resize(x, shape, periodic))
        else:
            x = TransposedConv(
                self.features, periodic, self.use_bias, self.dtype, self.param_dtype, name="conv"
            )(x)
            x = resample.resize(x, shape, periodic)
        return pointwise.mish(normalise(self, x if skip is None else x + skip, train))


def normalise(module: nn.Module, x: Array, train: bool, name: str = "norm") -> Array:
    """The norm of a module that has the fields norm, dtype and param_dtype.

    As published, `instance` has no scale and no bias.
    """
    return Norm(
        module.norm, module.norm != "instance", module.dtype, module.param_dtype, name=name
    )(x, train)
