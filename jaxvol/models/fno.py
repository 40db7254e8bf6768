"""Fourier neural operator in three dimensions (Li et al. 2021, arXiv:2010.08895; factorised: Kossaifi et al. 2024, arXiv:2310.00120).

    v_0 = lift(x);   v_{l+1} = act(K_l v_l + bypass_l(v_l));   y = project(v_L)

K_l is the spectral convolution of `jaxvol.ops.fourier`, lift, bypass and project act on each voxel alone.  A channel MLP may
follow each block, as in version 2 of the `neuraloperator` package, whose weights load into this module (`window="one_sided"`).
The output layer is linear.  The same weights run on any grid.
"""
from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvol.ops import fourier
from jaxvol.types import Array, Spec, UserError

Dtype = Any
COMPUTE = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f64": jnp.float64}
WINDOWS = ("symmetric", "one_sided")
FACTORIZATIONS = ("dense", "tucker", "cp")
SKIPS = ("linear", "identity", "soft_gating", "none")
NORMS = ("none", "instance", "group")
COORDINATES = ("auto", "all", "none")


def make(config, spec: Spec) -> nn.Module:
    """The FNO of `config.model` for volumes of `spec`: [B, D, H, W, C] -> [B, D, H, W, K].

    Raises UserError for an unknown choice and for modes above the Nyquist frequency of the training grid.
    """
    m = config.model
    for field, value, known in (("window", m.window, WINDOWS), ("factorization", m.factorization, FACTORIZATIONS),
                                ("implementation", m.implementation, fourier.IMPLEMENTATIONS), ("bypass", m.bypass, SKIPS),
                                ("channel_mlp_skip", m.channel_mlp_skip, SKIPS), ("norm", m.norm, NORMS),
                                ("coordinates", m.coordinates, COORDINATES)):
        if value not in known:
            raise UserError(f"config.model.{field} is {value!r}; choose one of {', '.join(known)}.")
    modes = tuple(m.modes)
    if len(modes) != 3 or any(k < 0 or k > n // 2 for k, n in zip(modes, spec.shape)):
        raise UserError(f"config.model.modes is {modes} (the highest |k| kept along D, H, W), but the training grid is "
                        f"{'x'.join(map(str, spec.shape))} and resolves at most {tuple(n // 2 for n in spec.shape)}; "
                        "lower the modes or use larger volumes.")
    if "target" not in spec.fields:
        raise UserError(f"the dataset has the fields {', '.join(spec.fields)}; model fno needs one named 'target'.")
    open_axes = tuple(a for a in range(3) if not spec.periodic[a] and spec.shape[a] > 1)
    long_axes = tuple(a for a in range(3) if spec.shape[a] > 1)
    return FNO(channels=len(spec.fields["target"].channels), width=m.width, layers=m.layers,
               kept=fourier.window(modes, m.window == "one_sided"), factorization=m.factorization, rank=m.rank,
               implementation=m.implementation, lifting_ratio=m.lifting_ratio, projection_ratio=m.projection_ratio,
               bypass=m.bypass, channel_mlp_ratio=m.channel_mlp_ratio, channel_mlp_skip=m.channel_mlp_skip, norm=m.norm,
               activate_last=m.activate_last, coordinate_axes={"auto": open_axes, "all": long_axes, "none": ()}[m.coordinates],
               padding=m.padding, padded_axes=open_axes, remat=m.remat, dtype=COMPUTE[config.precision],
               param_dtype=jnp.float64 if config.precision == "f64" else jnp.float32)


class FNO(nn.Module):
    """Fourier neural operator, [B, D, H, W, C] -> [B, D, H, W, channels] in at least float32."""
    channels: int
    width: int
    layers: int
    kept: fourier.Window
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
        x = PointwiseMLP(round(self.lifting_ratio * self.width), self.width, self.dtype, self.param_dtype, name="lifting")(x)
        grid = x.shape[1:4]
        extra = [round(self.padding * n) if a in self.padded_axes else 0 for a, n in enumerate(grid)]
        if any(extra):
            x = jnp.pad(x, [(0, 0), *((0, e) for e in extra), (0, 0)])
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.layers):
            x = block(kept=self.kept, factorization=self.factorization, rank=self.rank, implementation=self.implementation,
                      bypass=self.bypass, channel_mlp_ratio=self.channel_mlp_ratio, channel_mlp_skip=self.channel_mlp_skip,
                      norm=self.norm, activate=self.activate_last or i < self.layers - 1, dtype=self.dtype,
                      param_dtype=self.param_dtype, name=f"block_{i}")(x)
        x = x[:, :grid[0], :grid[1], :grid[2]]
        return PointwiseMLP(round(self.projection_ratio * self.width), self.channels,
                            jnp.promote_types(self.dtype, jnp.float32), self.param_dtype, name="projection")(x)


class Block(nn.Module):
    """act(norm(K v) + bypass(v)), then optionally act(norm(MLP(.) + skip(v))); [B, D, H, W, C] -> the same."""
    kept: fourier.Window
    factorization: str
    rank: float
    implementation: str
    bypass: str
    channel_mlp_ratio: float
    channel_mlp_skip: str
    norm: str
    activate: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act = gelu if self.activate else (lambda v: v)
        y = SpectralConv(self.kept, self.factorization, self.rank, self.implementation, self.param_dtype, name="spectral")(x)
        y = normalise(y, self.norm, self.dtype, self.param_dtype, "norm")
        y = act(y + skip(x, self.bypass, self.dtype, self.param_dtype, "bypass"))
        if self.channel_mlp_ratio > 0:
            hidden = round(self.channel_mlp_ratio * x.shape[-1])
            y = PointwiseMLP(hidden, x.shape[-1], self.dtype, self.param_dtype, name="channel_mlp")(y)
            y = y + skip(x, self.channel_mlp_skip, self.dtype, self.param_dtype, "channel_mlp_skip")
            y = act(normalise(y, self.norm, self.dtype, self.param_dtype, "channel_mlp_norm"))
        return y


class SpectralConv(nn.Module):
    """Spectral convolution with its own weights and bias, [B, D, H, W, C] -> the same, computed in at least float32.

    Each complex weight is stored as two reals (`_real`, `_imag`): optimizers then need no complex arithmetic.  At the start
    E|W_k|^2 = 1 / C (factorised weights: that of the dense tensor they stand for), so a field whose power lies within the
    window keeps its variance; with the bypass's 1 / C the sum has twice that, which the activation about halves again.
    """
    kept: fourier.Window
    factorization: str
    rank: float
    implementation: str
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        sizes = (*fourier.window_size(self.kept), width, width)
        core, factors = None, ()
        if self.factorization == "dense":
            core = self.weight("kernel", sizes, 1 / width)
        elif self.factorization == "tucker":
            ranks = tucker_ranks(sizes, self.rank)
            core = self.weight("core", ranks, 1 / width)
            factors = tuple(self.weight(f"factor_{i}", (n, r), 1 / r) for i, (n, r) in enumerate(zip(sizes, ranks)))
        else:
            rank = max(1, round(self.rank * math.prod(sizes) / sum(sizes)))
            factors = tuple(self.weight(f"factor_{i}", (n, rank), (1 / (width * rank)) ** 0.2) for i, n in enumerate(sizes))
        bias = self.param("bias", nn.initializers.zeros, (width,), self.param_dtype)
        y = fourier.spectral_conv(x, core, factors, self.kept, implementation=self.implementation)
        return (y + bias).astype(x.dtype)

    def weight(self, name: str, shape: tuple[int, ...], variance: float) -> Array:
        """A complex parameter of E|w|^2 = variance."""
        init = nn.initializers.normal(math.sqrt(variance / 2))
        return jax.lax.complex(*(self.param(f"{name}_{part}", init, shape, self.param_dtype) for part in ("real", "imag")))


class PointwiseMLP(nn.Module):
    """Linear, GELU, linear on the channels of each voxel; hidden = 0 is one linear layer."""
    hidden: int
    features: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def weights(name: str, rows: int, columns: int) -> tuple[Array, Array]:
            return (self.param(f"{name}_kernel", nn.initializers.lecun_normal(), (rows, columns), self.param_dtype),
                    self.param(f"{name}_bias", nn.initializers.zeros, (columns,), self.param_dtype))
        if not self.hidden:
            return linear(x, *weights("output", x.shape[-1], self.features), self.dtype)
        return mlp(x, weights("hidden", x.shape[-1], self.hidden), weights("output", self.hidden, self.features), self.dtype)


@partial(jax.checkpoint, static_argnums=3)
def mlp(x: Array, hidden: tuple[Array, Array], output: tuple[Array, Array], dtype: Dtype) -> Array:
    """Two layers on channels; recomputing the hidden one in the backward pass is cheaper than to store and fetch it."""
    return linear(gelu(linear(x, *hidden, x.dtype)), *output, dtype)


@partial(jax.checkpoint, static_argnums=3)
def linear(x: Array, kernel: Array, bias: Array | None, dtype: Dtype) -> Array:
    """x W + b on channels; products in x's dtype, result in `dtype`; the backward pass keeps x as it is, unconverted.

    The bias is added in the parameters' precision: its gradient is a sum over all voxels, which in bfloat16 would stop
    growing after a few hundred of them.
    """
    y = product(x, kernel, dtype)
    return y if bias is None else (y + bias).astype(dtype)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def product(x: Array, kernel: Array, dtype: Dtype) -> Array:
    """x W on channels, accumulated in at least float32.

    Its derivative in W is a sum over all voxels.  Written as one product, XLA's CPU backend takes up to 20 times as long for
    it as for one partial sum per slice, whatever the device, and the sum over slices is in the parameters' precision.
    """
    return jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=dtype)


@product.defjvp
def _(dtype: Dtype, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    b, d, h, w, c = x.shape
    slices = jnp.broadcast_to(dkernel, (b, d, *kernel.shape)).astype(x.dtype)
    by_kernel = jnp.matmul(x.reshape(b, d, h * w, c), slices, preferred_element_type=dtype).reshape(b, d, h, w, -1)
    return product(x, kernel, dtype), product(dx, kernel, dtype) + by_kernel


def skip(x: Array, kind: str, dtype: Dtype, param_dtype: Dtype, name: str) -> Array:
    """The path around a convolution or MLP; call inside a compact method."""
    if kind == "linear":
        return Mix(dtype, param_dtype, name=name)(x)
    if kind == "soft_gating":
        return Gate(param_dtype, name=name)(x)
    return x if kind == "identity" else jnp.zeros_like(x)


class Mix(nn.Module):
    """A square matrix on the channels, without bias."""
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], x.shape[-1]), self.param_dtype)
        return linear(x, kernel, None, self.dtype)


class Gate(nn.Module):
    """One learned factor per channel, 1 at the start."""
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return (x * self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)).astype(x.dtype)


def normalise(x: Array, kind: str, dtype: Dtype, param_dtype: Dtype, name: str) -> Array:
    """Per example: `instance` over the voxels of each channel, `group` over all of them; call inside a compact method."""
    if kind == "none":
        return x
    groups = {"num_groups": None, "group_size": 1} if kind == "instance" else {"num_groups": 1}
    return nn.GroupNorm(epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, name=name, **groups)(x)


def append_coordinates(x: Array, axes: tuple[int, ...]) -> Array:
    """Append one channel j / n in [0, 1) for each named axis, after the data channels."""
    channels = []
    for a in axes:
        n = x.shape[a + 1]
        line = (jnp.arange(n) / n).astype(x.dtype).reshape([n if i == a + 1 else 1 for i in range(5)])
        channels.append(jnp.broadcast_to(line, (*x.shape[:4], 1)))
    return jnp.concatenate([x, *channels], axis=-1)


def tucker_ranks(sizes: tuple[int, ...], fraction: float) -> tuple[int, ...]:
    """Ranks in proportion to the sizes whose parameters are at most `fraction` of the dense tensor's; 1 is full rank."""
    if fraction >= 1:
        return sizes
    dense = math.prod(sizes)
    best = (1,) * len(sizes)
    for percent in range(1, 101):
        ranks = tuple(max(1, round(percent / 100 * n)) for n in sizes)
        if math.prod(ranks) + sum(r * n for r, n in zip(ranks, sizes)) <= fraction * dense:
            best = ranks
    return best


@jax.checkpoint
def gelu(x: Array) -> Array:
    """x Phi(x), exact (not the tanh form), computed in at least float32; the backward pass keeps x only."""
    z = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * z * (1 + jax.lax.erf(z * math.sqrt(0.5)))).astype(x.dtype)
