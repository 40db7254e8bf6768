"""The blocks of a transformer on grids of tokens [B, d, h, w, C]: attention, MLP, normalisation."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.ops import attention, patches, pointwise
from jaxvol.types import Array

Dtype = Any
Triple = tuple[int, int, int]
Flags = tuple[bool, bool, bool]


class Block(nn.Module):
    """z + attention(norm(z)), then z + MLP(norm(z)); tokens [B, d, h, w, C] -> the same."""

    heads: int
    head_features: int
    hidden: int
    grid: Triple
    periodic: Flags
    relative: bool
    window: int
    shift: int
    dropout: float
    implementation: str
    scale: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = LayerNorm(name="attention_norm", **options)(x)
        y = Attention(
            self.heads,
            self.head_features,
            self.grid,
            self.periodic,
            self.relative,
            self.window,
            self.shift,
            self.implementation,
            self.scale,
            name="attention",
            **options,
        )(y)
        x = x + drop(self, y, self.dropout, train)
        y = LayerNorm(name="mlp_norm", **options)(x)
        y = pointwise.lean_gelu(Linear(self.hidden, name="mlp_in", **options)(y))
        y = Linear(x.shape[-1], scale=self.scale * math.sqrt(2), name="mlp_out", **options)(
            drop(self, y, self.dropout, train)
        )
        return x + drop(self, y, self.dropout, train)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, or within windows; [B, d, h, w, C] -> the same.

    Relative positions add to the logit of two tokens a number for their distance along each axis,
    per head, from tables of -(distance / s)^2 / 2 at the start, s = 1, 2, 4, ... tokens from head
    to head: kernels that see near before they see far.
    """

    heads: int
    head_features: int
    grid: Triple
    periodic: Flags
    relative: bool
    window: int
    shift: int
    implementation: str
    scale: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        grid, features = x.shape[1:4], self.heads * self.head_features
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        span, wraps = ((self.window,) * 3, (False,) * 3) if self.window else (grid, self.periodic)
        mask = (
            patches.window_mask(grid, self.window, self.shift, self.periodic)
            if self.window
            else None
        )
        cubes = (
            patches.windows(x, self.window, self.shift)
            if self.window
            else x.reshape(len(x), -1, x.shape[-1])
        )
        qkv = Linear(3 * features, use_bias=False, name="qkv", **options)(cubes)
        q, k, v = jnp.split(
            qkv.reshape(*cubes.shape[:2], 3 * self.heads, self.head_features), 3, axis=2
        )
        position = self.positions(span, wraps) if self.relative else None
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "weights", attention.maps(q, k, position, mask))
        y = attention.attention(q, k, v, position, mask, self.implementation)
        y = Linear(x.shape[-1], scale=self.scale, name="out", **options)(
            y.reshape(*cubes.shape[:2], features)
        )
        return (
            patches.unwindows(y, grid, self.window, self.shift)
            if self.window
            else y.reshape(x.shape)
        )

    def positions(self, span: Triple, wraps: Flags) -> tuple[Array, Array]:
        """The factors of the relative positions among a cube of `span` tokens."""
        trained = (self.window,) * 3 if self.window else self.grid
        rows = []
        for axis in range(3):
            table = self.param(
                f"relative_{axis}",
                near_before_far,
                (self.heads, patches.offset_count(trained[axis], wraps[axis])),
                self.param_dtype,
                patches.offset_at(trained[axis], wraps[axis]),
            )
            rows.append(table[:, patches.offsets(span[axis], trained[axis], wraps[axis])])
        return patches.spread(tuple(rows)), jnp.asarray(patches.one_hot_places(span))


def near_before_far(rng: Array, shape: tuple[int, ...], dtype: Dtype, offsets: np.ndarray) -> Array:
    """[heads, offsets]: -(offset / s)^2 / 2 with s = 1, 2, 4, ... tokens from head to head."""
    reach = 2.0 ** np.arange(shape[0])[:, None]
    return jnp.asarray(-0.5 * (offsets / reach) ** 2, dtype)


class Linear(nn.Module):
    """x W + b on the last axis, in `dtype`; W has variance scale^2 / inputs.

    The bias is added in at least float32, as its gradient is a sum over all tokens.
    """

    features: int
    use_bias: bool = True
    scale: float = 1.0
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(self.scale**2, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (x.shape[-1], self.features), self.param_dtype)
        y = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=self.dtype)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return (y + bias.astype(jnp.promote_types(self.dtype, jnp.float32))).astype(self.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) over the features of each token, times scale, plus bias.

    Statistics are computed in at least float32.
    """

    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return (pointwise.standardise(x.astype(wide)) * scale + bias).astype(self.dtype)


def drop(module: nn.Module, x: Array, rate: float, train: bool) -> Array:
    """While training, x / (1 - rate) with probability 1 - rate and 0 otherwise; else x itself."""
    if rate == 0 or not train:
        return x
    survives = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(survives, x / (1 - rate), 0).astype(x.dtype)
