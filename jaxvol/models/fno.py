"""Fourier neural operator in 3D (Li et al. 2021, arXiv:2010.08895; factorised: Kossaifi et al.
2024, arXiv:2310.00120).

    v_0 = lift(x);   v_{l+1} = act(K_l v_l + bypass_l(v_l));   y = project(v_L)

K_l is the spectral convolution of `jaxvol.ops.fourier`, lift, bypass and project act on each voxel
alone.  A channel MLP may follow each block, as in version 2 of the `neuraloperator` package, whose
weights load into this module (`window="one_sided"`). The output layer is linear.  The same weights
run on any grid.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.ops import fourier
from jaxvol.ops.chunked import voxelwise
from jaxvol.types import Array, PyTree, Spec, UserError

Dtype = Any
COMPUTE = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f64": jnp.float64}
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
            # symmetric: k = -m..m | one_sided: k = -m..m-1, the neuraloperator layout of n_modes =
            # 2m
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
            # recompute each block in the backward pass: less memory on GPU and TPU, none saved on
            # CPU
            "remat": False,
        }
    )


def make(config, spec: Spec) -> nn.Module:
    """The FNO of `config.model` for volumes of `spec`: [B, D, H, W, C] -> [B, D, H, W, K].

    Raises UserError for an unknown choice and for modes above the Nyquist frequency of the training
    grid.
    """
    m = config.model
    for field, value, known in (
        ("window", m.window, WINDOWS),
        ("factorization", m.factorization, FACTORIZATIONS),
        ("implementation", m.implementation, fourier.IMPLEMENTATIONS),
        ("bypass", m.bypass, SKIPS),
        ("channel_mlp_skip", m.channel_mlp_skip, SKIPS),
        ("norm", m.norm, NORMS),
        ("coordinates", m.coordinates, COORDINATES),
    ):
        if value not in known:
            raise UserError(f"config.model.{field} is {value!r}; choose one of {', '.join(known)}.")
    modes = tuple(m.modes)
    if len(modes) != 3 or any(k < 0 or k > n // 2 for k, n in zip(modes, spec.shape)):
        raise UserError(
            f"config.model.modes is {modes} (the highest |k| kept along D, H, W), but the training "
            "grid is "
            f"{'x'.join(map(str, spec.shape))} and resolves at most "
            f"{tuple(n // 2 for n in spec.shape)}; "
            "lower the modes or use larger volumes."
        )
    if "target" not in spec.fields:
        raise UserError(
            f"the dataset has the fields {', '.join(spec.fields)}; model fno needs one named "
            "'target'."
        )
    open_axes = tuple(a for a in range(3) if not spec.periodic[a] and spec.shape[a] > 1)
    long_axes = tuple(a for a in range(3) if spec.shape[a] > 1)
    return FNO(
        channels=len(spec.fields["target"].channels),
        width=m.width,
        layers=m.layers,
        kept=fourier.window(modes, m.window == "one_sided"),
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
        dtype=COMPUTE[config.precision],
        param_dtype=jnp.float64 if config.precision == "f64" else jnp.float32,
    )


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
                kept=self.kept,
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
    """act(norm(K v) + bypass(v)), then optionally act(norm(MLP(.) + skip(v))); [B, D, H, W, C] ->
    the same.
    """

    kept: fourier.Window
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
        act = gelu if self.activate else (lambda v: v)
        y = SpectralConv(
            self.kept,
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
        return (
            y
            if self.norm == "none"
            else voxelwise(lambda p, y: act(y), (), self.normalise(y, "channel_mlp_norm"))
        )

    def skip(self, x: Array, kind: str, name: str) -> Array | None:
        """Weights of a path around a convolution or MLP."""
        if kind == "linear":
            return self.param(
                name, nn.initializers.he_normal(), (x.shape[-1], x.shape[-1]), self.param_dtype
            )
        return (
            self.param(name, nn.initializers.ones, x.shape[-1:], self.param_dtype)
            if kind == "soft_gating"
            else None
        )

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


class SpectralConv(nn.Module):
    """Spectral convolution with its own weights, [B, D, H, W, C] -> the same, computed in at least
    float32.

    Each complex weight is stored as two reals (`_real`, `_imag`): optimizers then need no complex
    arithmetic.  At the start E|W_k|^2 = 1 / C (factorised weights: that of the dense tensor they
    stand for), as in the published implementation.  With the bypass's 2 / C the sum has 2 (white
    fields) to 3 times (smooth fields) the variance of v, which GELU brings back to about 0.9 to
    1.3: activations keep their scale through the blocks.
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
            factors = tuple(
                self.weight(f"factor_{i}", (n, r), 1 / r)
                for i, (n, r) in enumerate(zip(sizes, ranks))
            )
        else:
            rank = max(1, round(self.rank * math.prod(sizes) / sum(sizes)))
            factors = tuple(
                self.weight(f"factor_{i}", (n, rank), (1 / (width * rank)) ** 0.2)
                for i, n in enumerate(sizes)
            )
        return fourier.spectral_conv(
            x, core, factors, self.kept, implementation=self.implementation
        ).astype(x.dtype)

    def weight(self, name: str, shape: tuple[int, ...], variance: float) -> fourier.Pair:
        """Real and imaginary part of a parameter of E|w|^2 = variance."""
        init = nn.initializers.normal(math.sqrt(variance / 2))
        return tuple(
            self.param(f"{name}_{part}", init, shape, self.param_dtype) for part in ("real", "imag")
        )


class PointwiseMLP(nn.Module):
    """Linear, GELU, linear on the channels of each voxel; hidden = 0 is one linear layer.  Result
    in `dtype`.
    """

    hidden: int
    features: int
    dtype: Dtype
    param_dtype: Dtype
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weights = mlp_weights(self, "", x.shape[-1], self.hidden, self.features, self.gain)
        return voxelwise(lambda p, v: apply_mlp(p, v, self.dtype), weights, x)


def mlp_weights(
    module: nn.Module, prefix: str, inputs: int, hidden: int, outputs: int, gain: float = 1.0
) -> list[tuple[Array, Array]]:
    """(kernel, bias) per layer, as parameters of `module`; variance 1 / inputs, 2 / inputs after a
    GELU, gain^2 times in the last.
    """
    widths = (inputs, hidden, outputs) if hidden else (inputs, outputs)
    variance = [1.0, 2.0][: len(widths) - 1]
    variance[-1] *= gain**2
    init = [nn.initializers.variance_scaling(v, "fan_in", "truncated_normal") for v in variance]
    return [
        (
            module.param(f"{prefix}kernel_{i}", init[i], (a, b), module.param_dtype),
            module.param(f"{prefix}bias_{i}", nn.initializers.zeros, (b,), module.param_dtype),
        )
        for i, (a, b) in enumerate(zip(widths, widths[1:]))
    ]


def apply_mlp(layers: list[tuple[Array, Array]], x: Array, dtype: Dtype) -> Array:
    """Linear layers on the channels of [..., C, N] with GELU between them; products in x's dtype,
    result in `dtype`.

    A bias is added in the parameters' precision: its gradient is a sum over all voxels, which in
    bfloat16 would stop growing after a few hundred of them.
    """
    for i, (kernel, bias) in enumerate(layers):
        last = i == len(layers) - 1
        y = product(kernel, x, dtype if last else x.dtype) + bias[:, None]
        x = y.astype(dtype) if last else gelu(y).astype(x.dtype)
    return x


def product(kernel: Array, x: Array, dtype: Dtype) -> Array:
    """y_kn = sum_c W_ck x_cn for each leading index, in x's dtype; the gradient of W is summed over
    them in W's dtype.
    """
    matrices = jnp.broadcast_to(kernel.T, (*x.shape[:-2], *kernel.shape[::-1])).astype(x.dtype)
    return jnp.matmul(matrices, x, preferred_element_type=dtype)


def skip(x: Array, kind: str, weight: Array | None) -> Array:
    """linear: W x | soft_gating: w x | identity: x | none: 0, on [..., C, N]."""
    if kind == "linear":
        return product(weight, x, x.dtype)
    return (
        x * weight[:, None]
        if kind == "soft_gating"
        else x
        if kind == "identity"
        else jnp.zeros_like(x)
    )


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


def tucker_ranks(sizes: tuple[int, ...], fraction: float) -> tuple[int, ...]:
    """Ranks in proportion to the sizes whose parameters are at most `fraction` of the dense
    tensor's; 1 is full rank.
    """
    if fraction >= 1:
        return sizes
    dense = math.prod(sizes)
    best = (1,) * len(sizes)
    for percent in range(1, 101):
        ranks = tuple(max(1, round(percent / 100 * n)) for n in sizes)
        if math.prod(ranks) + sum(r * n for r, n in zip(ranks, sizes)) <= fraction * dense:
            best = ranks
    return best


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """x Phi(x), exact (not the tanh form), computed in at least float32, in x's dtype."""
    return gelu_and_slope(x)[0]


@gelu.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value, slope = gelu_and_slope(primals[0])
    return value, slope * tangents[0]


def gelu_and_slope(x: Array) -> tuple[Array, Array]:
    """gelu(x) and its derivative Phi(x) + x phi(x), which share the error function."""
    z = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    cdf = 0.5 * (1 + jax.lax.erf(z * math.sqrt(0.5)))
    slope = cdf + z * jnp.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    return (z * cdf).astype(x.dtype), slope.astype(x.dtype)
