"""What models share: convolutions, normalisation, precisions, the reading of a config's choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.ops import convolution
from jaxvol.types import Array, Spec, UserError

Dtype = Any
# config.precision -> type that a network computes in
COMPUTE = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f64": jnp.float64}
# of the last convolution: the first prediction is close to the mean
SMALL = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
PADDINGS = ("auto", *convolution.PADDINGS)
NORMS = ("batch", "instance", "group", "none")
# groups of the norm `group`, or fewer where they do not divide the channels
GROUPS = 8
EPSILON = 1e-5
MOMENTUM = 0.1  # of the running statistics: new = 0.9 old + 0.1 batch


def dtypes(precision: str) -> dict[str, Dtype]:
    """The fields `dtype` (of activations) and `param_dtype` of a module, for `config.precision`."""
    return {
        "dtype": COMPUTE[precision],
        "param_dtype": jnp.float64 if precision == "f64" else jnp.float32,
    }


def check_choices(model: ConfigDict, **known: tuple[str, ...]) -> None:
    """UserError unless every named field of `config.model` holds one of the values known for it."""
    for field, values in known.items():
        if model[field] not in values:
            raise UserError(
                f"config.model.{field} is {model[field]!r}; choose one of {', '.join(values)}."
            )


def target_channels(spec: Spec, model: str) -> int:
    """Channels of the field `target`, which the network `model` estimates; UserError without it."""
    if "target" not in spec.fields:
        raise UserError(
            f"the dataset has the fields {', '.join(spec.fields)}; model {model} needs one named "
            "'target'."
        )
    return len(spec.fields["target"].channels)


def boundary(padding: str, spec: Spec, otherwise: str = "replicate") -> str:
    """What the padding `auto` means for volumes of `spec`.

    Periodic if they wrap along every axis of more than one voxel, else `otherwise`.
    """
    if padding != "auto":
        return padding
    return "periodic" if all(p for p, n in zip(spec.periodic, spec.shape) if n > 1) else otherwise


class Conv(nn.Module):
    """Convolution with a cube of `kernel_size`^3 voxels: [B, D, H, W, C] -> [.., features].

    Each face is padded by `width` voxels.  Parameters: kernel [k, k, k, C, features] and bias
    [features].  The product is in `dtype`, and so is the result; the bias is added in at least
    float32, as its gradient is a sum over all voxels.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: str = "replicate"
    width: int = 0
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.he_normal()
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param(
            "kernel",
            self.kernel_init,
            (self.kernel_size,) * 3 + (x.shape[-1], self.features),
            self.param_dtype,
        )
        y = convolution.conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.stride,
            ((self.width, self.width),) * 3,
            self.padding,
            self.implementation,
        )
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return (y + bias.astype(jnp.promote_types(self.dtype, jnp.float32))).astype(self.dtype)


class TransposedConv(nn.Module):
    """torch's ConvTranspose3d(k3, s2, p1, output_padding 1), n -> 2n voxels.

    Where the volume wraps, so do the kernels.
    """

    features: int
    periodic: bool
    use_bias: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (3,) * 3 + (x.shape[-1], self.features)
        # a voxel meets half of the taps per axis: an eighth of the fan-in that he_normal assumes
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(16.0, "fan_in", "normal"),
            shape,
            self.param_dtype,
        )
        grid = x.shape[1:4]
        if self.periodic:
            x = convolution.pad(x, ((0, 1),) * 3, "periodic")
        y = convolution.conv_transpose(x.astype(self.dtype), kernel.astype(self.dtype))
        y = y[:, : 2 * grid[0], : 2 * grid[1], : 2 * grid[2]]
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return (y + bias.astype(jnp.promote_types(self.dtype, jnp.float32))).astype(self.dtype)


class Norm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5), if `affine` then times `scale` plus `bias` per channel.

    The result has x's shape and the type `dtype`.
    batch:    over the examples and voxels of each channel while training, and the running
              statistics (collection "batch_stats": mean, var) otherwise.  They move by a tenth of
              the way per step, the variance towards the unbiased one, as torch's do.
    instance: over the voxels of each example and channel.
    group:    over the voxels of each example and each of GROUPS groups of channels.
    none:     x itself.
    Statistics are computed in at least float32.
    """

    kind: str
    affine: bool = True
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        if self.kind not in NORMS:
            raise UserError(f"norm is {self.kind!r}; choose one of {', '.join(NORMS)}.")
        if self.kind == "none":
            return x.astype(self.dtype)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var = (
            self.running(wide, train) if self.kind == "batch" else per_example(wide, self.kind)
        )
        factor = 1 / jnp.sqrt(var + EPSILON)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
            return ((wide - mean) * (factor * scale) + bias).astype(self.dtype)
        return ((wide - mean) * factor).astype(self.dtype)

    def running(self, x: Array, train: bool) -> tuple[Array, Array]:
        """Mean and variance of each channel [C].

        While training those of the batch, which move the running ones; otherwise the running ones.
        """
        old_mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:], self.param_dtype)
        old_var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:], self.param_dtype)
        if not train:
            return old_mean.value, old_var.value
        mean = x.mean((0, 1, 2, 3))
        var = jnp.square(x - mean).mean((0, 1, 2, 3))
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            for old, new in ((old_mean, mean), (old_var, var * (count / max(count - 1, 1)))):
                old.value = ((1 - MOMENTUM) * old.value + MOMENTUM * new).astype(self.param_dtype)
        return mean, var


def per_example(x: Array, kind: str) -> tuple[Array, Array]:
    """Mean and variance over the voxels of each example, [B, 1, 1, 1, C].

    kind: "instance", or "group" for those of the channel's group.
    """
    groups = math.gcd(GROUPS, x.shape[-1]) if kind == "group" else x.shape[-1]
    mean = x.mean((1, 2, 3), keepdims=True)
    mean = shared(mean, groups)
    return mean, shared(jnp.square(x - mean).mean((1, 2, 3), keepdims=True), groups)


def shared(values: Array, groups: int) -> Array:
    """[..., C]: the mean over each group of neighbouring channels."""
    split = values.reshape(*values.shape[:-1], groups, -1)
    return jnp.broadcast_to(split.mean(-1, keepdims=True), split.shape).reshape(values.shape)
