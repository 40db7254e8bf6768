"""Multi-scale patch discriminator (pix2pixHD, arXiv:1711.11585; in 3D Pix2PixCC, arXiv:2204.12068).

Scale s sees the volume average-pooled s times and has its own weights:

    D^1 = act(conv x);   D^l = act(norm(conv D^(l-1)));   D^L = conv D^(L-1), the logits
    act = LeakyReLU 0.2

Each logit judges a patch.  All convolutions are 4^3; volumes of depth 1 have kernels of depth 1.
With spectral normalisation (Miyato et al. 2018, arXiv:1802.05957) the kernels are divided by their
largest singular value.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.models import layers
from jaxvol.models.layers import NORMS, PADDINGS, Norm
from jaxvol.ops import convolution, resample
from jaxvol.types import Array, Spec, UserError

Dtype = Any
Shape = tuple[int, int, int]
KERNEL = 4
SLOPE = 0.2  # of LeakyReLU below 0
TINY = 1e-12  # least norm that a vector of the power iteration is divided by
WARM_UP = 15  # power iterations before the first step


def fields() -> ConfigDict:
    """Multi-scale patch discriminator (`config.task.discriminator`).

    Pix2PixCC's has norm="instance" and no spectral norm.
    """
    return ConfigDict(
        {
            # discriminators; number s sees the volume average-pooled s times
            "scales": 2,
            # channels of the first convolution; doubled by each further one
            "width": 32,
            "max_width": 256,  # at most
            # one 4^3 convolution each, the last gives the logits; smaller volumes need fewer 2s
            "strides": (2, 2, 2, 1, 1),
            "pad_width": 1,  # voxels added at each face before each convolution
            # auto (periodic where all axes wrap, else zero) | zero | replicate | periodic | reflect
            "padding": "auto",
            # of all convolutions but the first and the last: none | group | instance | batch
            "norm": "instance",
            # divide each kernel by its largest singular value, by one power iteration per call
            "spectral_norm": False,
            # zeros beyond the border count in the average-pooling between scales (Pix2PixCC in 3D)
            "count_padding": False,
            "remat": False,  # recompute each convolution in the backward pass
        }
    )


def discriminator(block: ConfigDict, spec: Spec, precision: str) -> nn.Module:
    """The discriminator of `block`, which holds the fields of `fields()`, for volumes of `spec`.

    precision: f32 | bf16 | f64
    Called as module(x, train=bool), x [B, D, H, W, C] being the pair of condition and image, it
    returns per scale a tuple of one feature volume per entry of `block.strides`, the last being
    the logits [B, D', H', W', 1], in at least float32.  With spectral normalisation (and with
    norm="batch") a call with train=True changes the collection "batch_stats".  Raises UserError
    for an unknown choice and when a scale has no voxels left.
    """
    if block.norm not in NORMS:
        raise UserError(
            f"config.task.discriminator.norm is {block.norm!r}; choose one of {', '.join(NORMS)}."
        )
    if block.padding not in PADDINGS:
        raise UserError(
            f"config.task.discriminator.padding is {block.padding!r}; choose one of "
            f"{', '.join(PADDINGS)}."
        )
    if len(block.strides) < 2 or block.scales < 1:
        raise UserError(
            f"config.task.discriminator has strides {tuple(block.strides)} and scales "
            f"{block.scales}; expected two or more strides, one per convolution, and at least one "
            "scale."
        )
    strides = tuple(block.strides)
    feature_shapes(spec.shape, block.scales, strides, block.pad_width)
    return Discriminator(
        scales=block.scales,
        width=block.width,
        max_width=block.max_width,
        strides=strides,
        pad_width=block.pad_width,
        padding=layers.boundary(block.padding, spec, "zero"),
        norm=block.norm,
        spectral_norm=block.spectral_norm,
        count_padding=block.count_padding,
        remat=block.remat,
        **layers.dtypes(precision),
    )


def feature_shapes(
    shape: Shape, scales: int, strides: tuple[int, ...], pad_width: int
) -> list[list[Shape]]:
    """[scale][layer] -> voxels of the feature volume; UserError when a scale has none left."""
    flat, all_sides = shape[0] == 1, []
    for s in range(scales):
        sides, of_scale = shape, []
        for i, stride in enumerate(strides):
            sides = tuple(
                1 if flat and axis == 0 else (n + 2 * pad_width - KERNEL) // stride + 1
                for axis, n in enumerate(sides)
            )
            of_scale.append(sides)
            if min(sides) < 1:
                raise UserError(
                    f"the discriminator's scale {s} sees {'x'.join(map(str, shape))} voxels and "
                    f"has none left after convolution {i + 1} of {len(strides)} (strides "
                    f"{strides}, padding {pad_width}): lower config.task.discriminator.scales or "
                    "its strides, or take larger volumes."
                )
        all_sides.append(of_scale)
        shape = tuple((n - 1) // 2 + 1 for n in shape)
    return all_sides


class Discriminator(nn.Module):
    """[B, D, H, W, C] -> (features of scale 0, of scale 1, ...).

    Layer l has width * 2^l channels, at most max_width.
    """

    scales: int
    width: int
    max_width: int
    strides: tuple[int, ...]
    pad_width: int
    padding: str
    norm: str
    spectral_norm: bool
    count_padding: bool
    remat: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[tuple[Array, ...], ...]:
        feature_shapes(x.shape[1:4], self.scales, self.strides, self.pad_width)
        layer = nn.remat(Layer, static_argnums=(2,)) if self.remat else Layer
        last, scales = len(self.strides) - 1, []
        for s in range(self.scales):
            x = self.halve(x) if s else x
            v, features = x, []
            for i, stride in enumerate(self.strides):
                v = layer(
                    1 if i == last else min(self.width * 2**i, self.max_width),
                    stride,
                    self.pad_width,
                    self.padding,
                    "none" if i in (0, last) else self.norm,
                    i < last,
                    self.spectral_norm,
                    jnp.promote_types(self.dtype, jnp.float32) if i == last else self.dtype,
                    self.param_dtype,
                    name=f"scale_{s}_block_{i}",
                )(v, train)
                features.append(v)
            scales.append(tuple(features))
        return tuple(scales)

    def halve(self, x: Array) -> Array:
        """Averages over 3^3 voxels at every second one.

        Beyond the border the volume wraps, is 0 (count_padding) or left out.
        """
        flat = x.shape[1] == 1
        if self.padding == "periodic":
            return resample.avg_pool(convolution.pad(x, ((1, 1),) * 3, "periodic"), 3, 2)
        # a flat volume has nothing beyond its depth
        return resample.avg_pool(x, 3, 2, 1, self.count_padding and not flat)


class Layer(nn.Module):
    """act(norm(conv x)): one feature volume."""

    features: int
    stride: int
    pad_width: int
    padding: str
    norm: str
    activate: bool
    spectral_norm: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        depth = 1 if x.shape[1] == 1 else KERNEL
        shape = (depth, KERNEL, KERNEL, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        if self.spectral_norm:
            kernel = kernel / self.largest_singular_value(kernel, train)
        widths = ((0 if depth == 1 else self.pad_width,) * 2, *((self.pad_width,) * 2,) * 2)
        y = convolution.conv(
            x.astype(self.dtype), kernel.astype(self.dtype), self.stride, widths, self.padding
        )
        y = (y + bias.astype(jnp.promote_types(self.dtype, jnp.float32))).astype(self.dtype)
        y = Norm(self.norm, self.norm != "instance", self.dtype, self.param_dtype, name="norm")(
            y, train
        )
        return nn.leaky_relu(y, SLOPE) if self.activate else y

    def largest_singular_value(self, kernel: Array, train: bool) -> Array:
        """sigma = v^T W u of W [inputs, features].

        While training after one more power iteration v = W u, u = W^T v (both normalised).  u and v
        lie in "batch_stats" and are constants of the gradient, as in torch's spectral_norm.
        """
        w = kernel.reshape(-1, self.features)
        u = self.variable("batch_stats", "u", lambda: self.first_vector(w))
        v = self.variable("batch_stats", "v", lambda: unit(dot(w, u.value)))
        if train and not self.is_initializing():
            u.value, v.value = power_iteration(w, u.value)
        return dot(v.value, dot(w, u.value))

    def first_vector(self, w: Array) -> Array:
        """u [features] after WARM_UP power iterations from a random vector."""
        u = jax.random.normal(self.make_rng("params"), (self.features,), w.dtype)
        for _ in range(WARM_UP):
            u, _ = power_iteration(w, u)
        return u


def power_iteration(w: Array, u: Array) -> tuple[Array, Array]:
    """One step (u, v) towards the singular vectors of the largest singular value, as constants.

    w: [inputs, features], u: [features].
    """
    w = jax.lax.stop_gradient(w)
    v = unit(dot(w, u))
    return unit(dot(v, w)), v


def unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x), TINY)


def dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
