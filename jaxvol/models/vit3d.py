"""Vision transformer for volumes (Dosovitskiy et al. 2021, arXiv:2010.11929), with convolutions at
both ends.

    z_0 = embed(stem(x)) + position
    z   = z + attention(norm(z));  z = z + MLP(norm(z))            in each block (pre-norm)
    y   = decode(norm(z), stem(x))

The stem halves the grid step by step down to the tokens, with convolutions on each; the decoder
goes back by interpolation and convolutions and adds the stem's features on each grid: patches
overlap, leave no seams, and small scales need not pass through the tokens.  `embed="linear"`,
`head="linear"`, `position="learned"` is the plain ViT, whose published weights load.  Relative
positions and periodic convolutions commute with shifts by whole patches where the volume wraps.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxvol.models.fno import COMPUTE
from jaxvol.models.layers import Conv
from jaxvol.ops import attention, convolution, patches, resample
from jaxvol.ops.pointwise import gelu, standardise
from jaxvol.types import Array, Spec, UserError

Dtype = Any
Triple = tuple[int, int, int]
EMBEDS = ("conv", "linear")
HEADS = ("conv", "linear")
POSITIONS = ("relative", "learned", "sincos", "none")


def fields() -> ConfigDict:
    """Vision transformer for volumes; `embed`, `head` = "linear" and `position` = "learned" is the
    plain ViT.
    """
    return ConfigDict(
        {
            "name": "vit3d",
            # voxels of a token along D, H, W; they have to divide the volume
            "patch": (4, 4, 4),
            "width": 128,  # features of a token
            "layers": 4,  # blocks
            "heads": 4,  # attention heads
            "head_features": 32,  # features of each head
            "mlp_ratio": 2.0,  # hidden features of each block's MLP / width
            # conv: the grid is halved step by step, with convolutions | linear: patches alone
            "embed": "conv",
            # conv: back by interpolation and convolutions, with the embedding's features | linear:
            # has
            # seams
            "head": "conv",
            # channels of those convolutions on the finest grid, twice as many on each coarser one
            "stem_width": 16,
            "stem_layers": 2,  # their number on each grid
            # relative (in every block) | learned | sincos (added to the tokens) | none
            "position": "relative",
            "position_std": 0.02,  # of a learned table at the start
            # attention within cubes of so many tokens, moved by half of it in every other block; 0
            # =
            # all tokens
            "window": 0,
            "dropout": 0.0,  # of tokens and of both sub-layers, while training
            # auto | matmul (fastest on CPU) | xla | cudnn (NVIDIA GPUs, bf16)
            "attention": "auto",
            # recompute each block in the backward pass: less memory on GPU and TPU, none saved on
            # CPU
            "remat": False,
        }
    )


def make(config, spec: Spec) -> nn.Module:
    """The ViT3D of `config.model` for volumes of `spec`: [B, D, H, W, C] -> [B, D, H, W, K].

    Raises UserError for an unknown choice, a patch that does not divide the volume or a window that
    does not divide the tokens.
    """
    m = config.model
    for field, value, known in (
        ("embed", m.embed, EMBEDS),
        ("head", m.head, HEADS),
        ("position", m.position, POSITIONS),
        ("attention", m.attention, attention.IMPLEMENTATIONS),
    ):
        if value not in known:
            raise UserError(f"config.model.{field} is {value!r}; choose one of {', '.join(known)}.")
    if len(tuple(m.patch)) != 3:
        raise UserError(
            f"config.model.patch is {tuple(m.patch)}; expected three sizes in voxels, along D, H, "
            "W."
        )
    if "target" not in spec.fields:
        raise UserError(
            f"the dataset has the fields {', '.join(spec.fields)}; model vit3d needs one named "
            "'target'."
        )
    grid = patches.grid_of(spec.shape, tuple(m.patch))
    if m.window and any(n % m.window for n in grid):
        raise UserError(
            f"config.model.window is {m.window}, but the training grid has "
            f"{' x '.join(map(str, grid))} tokens; choose a "
            "window that divides each side, or 0 (none)."
        )
    return ViT3D(
        channels=len(spec.fields["target"].channels),
        patch=tuple(m.patch),
        grid=grid,
        periodic=tuple(spec.periodic),
        width=m.width,
        layers=m.layers,
        heads=m.heads,
        head_features=m.head_features,
        mlp_ratio=m.mlp_ratio,
        embed=m.embed,
        head=m.head,
        stem_width=m.stem_width,
        stem_layers=m.stem_layers,
        position=m.position,
        position_std=m.position_std,
        window=m.window,
        dropout=m.dropout,
        attention=m.attention,
        remat=m.remat,
        dtype=COMPUTE[config.precision],
        param_dtype=jnp.float64 if config.precision == "f64" else jnp.float32,
    )


def rules(config) -> list[str]:
    """Violated rules of `config.model`, for jaxvol/config/validate.py."""
    m = config.model
    found = [
        f"model.{name} is {m[name]}; it has to be at least 1."
        for name in ("width", "heads", "head_features", "stem_width")
        if m[name] < 1
    ]
    found += [
        f"model.{name} is {m[name]}; it has to be at least 0."
        for name in ("layers", "stem_layers", "window")
        if m[name] < 0
    ]
    return found + (
        [] if 0 <= m.dropout < 1 else [f"model.dropout is {m.dropout}; it has to be in [0, 1)."]
    )


class ViT3D(nn.Module):
    """Vision transformer, [B, D, H, W, C] -> [B, D, H, W, channels] in at least float32.

    Dropout draws from the rng "dropout" while training.  With mutable=["intermediates"] every block
    sows its attention weights, `block_<i>/attention/weights` [B, heads, T, T] (with windows [B n,
    heads, T, T]).  Raises UserError for volumes that the patch does not divide.
    """

    channels: int
    patch: tuple[int, int, int]
    grid: tuple[int, int, int]  # tokens of a training volume, which positions refer to
    periodic: tuple[bool, bool, bool]
    width: int
    layers: int
    heads: int
    head_features: int
    mlp_ratio: float
    embed: str
    head: str
    stem_width: int
    stem_layers: int
    position: str
    position_std: float
    window: int
    dropout: float
    attention: str
    remat: bool
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = x.astype(self.dtype)
        grid, factors = patches.grid_of(x.shape[1:4], self.patch), patches.steps(self.patch)
        pyramid = self.stem(x, factors) if "conv" in (self.embed, self.head) else []
        if self.embed == "conv":
            tokens = self.linear(self.width, "patch")(patches.patchify(pyramid[-1], factors[-1]))
        else:
            tokens = self.linear(self.width, "patch")(
                self.norm("patch_norm")(patches.patchify(x, self.patch))
            )
            tokens = self.norm("embed_norm")(tokens)
        tokens = drop(self, self.place(tokens), self.dropout, train)
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for i in range(self.layers):
            tokens = block(
                heads=self.heads,
                head_features=self.head_features,
                hidden=round(self.mlp_ratio * self.width),
                grid=self.grid,
                periodic=self.periodic,
                relative=self.position == "relative",
                window=self.window,
                shift=self.window // 2 if i % 2 and self.window < max(grid) else 0,
                dropout=self.dropout,
                implementation=self.attention,
                scale=1 / math.sqrt(2 * self.layers),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=f"block_{i}",
            )(tokens, train)
        tokens = self.norm("head_norm")(tokens)
        # small weights of the last layer: training starts near the mean
        wide = jnp.promote_types(self.dtype, jnp.float32)
        if self.head == "linear":
            y = self.linear(math.prod(self.patch) * self.channels, "head", wide, scale=0.1)(tokens)
            return patches.unpatchify(y, self.patch)
        return self.linear(self.channels, "head", wide, scale=0.1)(
            self.decoder(tokens, pyramid, factors)
        )

    def stem(self, x: Array, factors: list[Triple]) -> list[Array]:
        """Features on each grid from the volume's own to the last before the tokens'; each is half
        as fine and twice as wide.
        """
        x = gelu(self.conv(self.stem_width, "stem_0")(surround(x, self.periodic)))
        pyramid = [x]
        for i, factor in enumerate(factors[:-1], 1):
            x = self.linear(self.stem_width * 2**i, f"merge_{i}")(patches.patchify(x, factor))
            x = self.refine(x, f"stem_{i}")
            pyramid.append(x)
        return pyramid

    def decoder(self, x: Array, pyramid: list[Array], factors: list[Triple]) -> Array:
        """Back from grid to grid: trilinear interpolation, the stem's features added,
        convolutions.
        """
        for i, (fine, factor) in reversed(list(enumerate(zip(pyramid, factors)))):
            x = enlarge(self.linear(fine.shape[-1], f"expand_{i}")(x), factor, self.periodic) + fine
            x = self.refine(x, f"decoder_{i}")
        return x

    def refine(self, x: Array, name: str) -> Array:
        """x + gelu(conv(x)), `stem_layers` times."""
        for j in range(self.stem_layers):
            x = x + gelu(self.conv(x.shape[-1], f"{name}_{j}")(surround(x, self.periodic)))
        return x

    def conv(self, features: int, name: str) -> nn.Module:
        return Conv(
            features, 3, padding="zero", dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    def place(self, tokens: Array) -> Array:
        """Tokens with their absolute positions added."""
        grid = tokens.shape[1:4]
        if self.position == "sincos":
            return tokens + jnp.asarray(
                patches.sincos(grid, self.grid, self.periodic, self.width), tokens.dtype
            )
        if self.position == "learned":
            init = nn.initializers.normal(self.position_std)
            table = self.param("position", init, (*self.grid, self.width), self.param_dtype)
            return (tokens + resample.resize(table[None], grid)).astype(tokens.dtype)
        return tokens

    def linear(
        self, features: int, name: str, dtype: Dtype | None = None, scale: float = 1.0
    ) -> nn.Module:
        return Linear(
            features,
            scale=scale,
            dtype=dtype or self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def norm(self, name: str) -> nn.Module:
        return LayerNorm(self.dtype, self.param_dtype, name=name)


class Block(nn.Module):
    """z + attention(norm(z)), then z + MLP(norm(z)); tokens [B, d, h, w, C] -> the same."""

    heads: int
    head_features: int
    hidden: int
    grid: tuple[int, int, int]
    periodic: tuple[bool, bool, bool]
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
        y = gelu(Linear(self.hidden, name="mlp_in", **options)(y))
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
    grid: tuple[int, int, int]
    periodic: tuple[bool, bool, bool]
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
        seen, wraps = ((self.window,) * 3, (False,) * 3) if self.window else (grid, self.periodic)
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
        position = self.positions(seen, wraps) if self.relative else None
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

    def positions(
        self, seen: tuple[int, int, int], wraps: tuple[bool, bool, bool]
    ) -> tuple[Array, Array]:
        """The factors of the relative positions among `seen` tokens."""
        trained = (self.window,) * 3 if self.window else self.grid
        rows = []
        for axis in range(3):

            def init(rng, shape, dtype, step=patches.offset_at(trained[axis], wraps[axis])):
                reach = 2.0 ** np.arange(self.heads)[:, None]
                return jnp.asarray(-0.5 * (step / reach) ** 2, dtype)

            table = self.param(
                f"relative_{axis}",
                init,
                (self.heads, patches.offset_count(trained[axis], wraps[axis])),
                self.param_dtype,
            )
            rows.append(table[:, patches.offsets(seen[axis], trained[axis], wraps[axis])])
        return patches.spread(tuple(rows)), jnp.asarray(patches.one_hot_places(seen))


class Linear(nn.Module):
    """x W + b on the last axis, in `dtype`; W has variance scale^2 / inputs.  The bias is added in
    at least float32, as its
    gradient is a sum over all tokens."""

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
    """(x - mean) / sqrt(var + 1e-5) over the features of each token, times scale, plus bias;
    statistics in at least float32.
    """

    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return (standardise(x.astype(wide)) * scale + bias).astype(self.dtype)


def drop(module: nn.Module, x: Array, rate: float, train: bool) -> Array:
    """Values kept with probability 1 - rate, and then divided by it, while training."""
    if rate == 0 or not train:
        return x
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def surround(x: Array, periodic: tuple[bool, bool, bool]) -> Array:
    """x with one voxel more at each face: from the other end where it wraps, the outermost one
    elsewhere.
    """
    around = tuple((int(wraps),) * 2 for wraps in periodic)
    edges = tuple((int(not wraps),) * 2 for wraps in periodic)
    return convolution.pad(convolution.pad(x, around, "periodic"), edges, "replicate")


def enlarge(x: Array, factor: Triple, periodic: tuple[bool, bool, bool]) -> Array:
    """Trilinear interpolation to a grid `factor` times as fine, around the ends of
    axes that wrap.
    """
    shape = tuple(n * f for n, f in zip(x.shape[1:4], factor))
    inner = tuple(m if wraps else n for n, m, wraps in zip(x.shape[1:4], shape, periodic))
    return resample.resize(resample.resize(x, inner, True), shape, False)
