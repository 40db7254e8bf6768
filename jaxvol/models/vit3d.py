"""Vision transformer for volumes, with convolutions at both ends.

    z_0 = embed(stem(x)) + position
    z   = z + attention(norm(z));  z = z + MLP(norm(z))            in each block (pre-norm)
    y   = decode(norm(z), stem(x))

(Dosovitskiy et al. 2021, arXiv:2010.11929.)  The stem halves the grid step by step down to the
tokens, with convolutions on each; the decoder goes back by interpolation and convolutions and adds
the stem's features on each grid: patches overlap, leave no seams, and small scales need not pass
through the tokens.  `embed="linear"`, `head="linear"`, `position="learned"` is the plain ViT, whose
published weights load.  Relative positions and periodic convolutions commute with shifts by whole
patches where the volume wraps.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.models import layers, transformer
from jaxvol.models.layers import Conv
from jaxvol.ops import attention, convolution, patches, pointwise, resample
from jaxvol.types import Array, Spec, UserError

Dtype = Any
Triple = tuple[int, int, int]
EMBEDS = ("conv", "linear")
HEADS = ("conv", "linear")
POSITIONS = ("relative", "learned", "sincos", "none")


def fields() -> ConfigDict:
    """Vision transformer for volumes.

    The plain ViT has embed="linear", head="linear", position="learned".
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
            # conv: back by interpolation and convolutions, with the embedding's features
            # linear: has seams
            "head": "conv",
            # channels of those convolutions on the finest grid, twice as many on each coarser one
            "stem_width": 16,
            "stem_layers": 2,  # their number on each grid
            # relative (in every block) | learned | sincos (added to the tokens) | none
            "position": "relative",
            "position_std": 0.02,  # of a learned table at the start
            # attention within cubes of so many tokens, moved by half of it in every other block;
            # 0 = all tokens
            "window": 0,
            "dropout": 0.0,  # of tokens and of both sub-layers, while training
            # auto | matmul (fastest on CPU) | xla | cudnn (NVIDIA GPUs, bf16)
            "attention": "auto",
            # recompute each block in the backward pass: less memory on GPU and TPU, not on CPU
            "remat": False,
        }
    )


def make(config, spec: Spec) -> nn.Module:
    """The ViT3D of `config.model` for volumes of `spec`: [B, D, H, W, C] -> [B, D, H, W, K].

    Raises UserError for an unknown choice, a patch that does not divide the volume or a window that
    does not divide the tokens.
    """
    m = config.model
    layers.check_choices(
        m, embed=EMBEDS, head=HEADS, position=POSITIONS, attention=attention.IMPLEMENTATIONS
    )
    if len(tuple(m.patch)) != 3:
        raise UserError(
            f"config.model.patch is {tuple(m.patch)}; expected three sizes in voxels, along D, H, "
            "W."
        )
    channels = layers.target_channels(spec, "vit3d")
    grid = patches.grid_of(spec.shape, tuple(m.patch))
    if m.window and any(n % m.window for n in grid):
        raise UserError(
            f"config.model.window is {m.window}, but the training grid has "
            f"{' x '.join(map(str, grid))} tokens; choose a window that divides each side, or 0 "
            "(none)."
        )
    return ViT3D(
        channels=channels,
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
        **layers.dtypes(config.precision),
    )


def rules(config) -> list[str]:
    """Violated rules of `config.model`, for jaxvol/config/validate.py."""
    m = config.model
    errors = [
        f"model.{name} is {m[name]}; it has to be at least 1."
        for name in ("width", "heads", "head_features", "stem_width")
        if m[name] < 1
    ]
    errors += [
        f"model.{name} is {m[name]}; it has to be at least 0."
        for name in ("layers", "stem_layers", "window")
        if m[name] < 0
    ]
    if not 0 <= m.dropout < 1:
        errors.append(f"model.dropout is {m.dropout}; it has to be in [0, 1).")
    return errors


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
        tokens = transformer.drop(self, self.place(tokens), self.dropout, train)
        block = transformer.Block
        block = nn.remat(block, static_argnums=(2,)) if self.remat else block
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
        """Features on each grid from the volume's own to the last before the tokens'.

        Each is half as fine and twice as wide as the one before.
        """
        x = pointwise.lean_gelu(self.conv(self.stem_width, "stem_0")(surround(x, self.periodic)))
        pyramid = [x]
        for i, factor in enumerate(factors[:-1], 1):
            x = self.linear(self.stem_width * 2**i, f"merge_{i}")(patches.patchify(x, factor))
            x = self.refine(x, f"stem_{i}")
            pyramid.append(x)
        return pyramid

    def decoder(self, x: Array, pyramid: list[Array], factors: list[Triple]) -> Array:
        """Back from grid to grid: interpolation, the stem's features added, convolutions."""
        for i, (fine, factor) in reversed(list(enumerate(zip(pyramid, factors)))):
            x = enlarge(self.linear(fine.shape[-1], f"expand_{i}")(x), factor, self.periodic) + fine
            x = self.refine(x, f"decoder_{i}")
        return x

    def refine(self, x: Array, name: str) -> Array:
        """x + gelu(conv(x)), `stem_layers` times."""
        for j in range(self.stem_layers):
            conv = self.conv(x.shape[-1], f"{name}_{j}")
            x = x + pointwise.lean_gelu(conv(surround(x, self.periodic)))
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
        return transformer.Linear(
            features,
            scale=scale,
            dtype=dtype or self.dtype,
            param_dtype=self.param_dtype,
            name=name,
        )

    def norm(self, name: str) -> nn.Module:
        return transformer.LayerNorm(self.dtype, self.param_dtype, name=name)


def surround(x: Array, periodic: tuple[bool, bool, bool]) -> Array:
    """x with one voxel more at each face: the other end's where it wraps, else the outermost."""
    around = tuple((int(wraps),) * 2 for wraps in periodic)
    edges = tuple((int(not wraps),) * 2 for wraps in periodic)
    return convolution.pad(convolution.pad(x, around, "periodic"), edges, "replicate")


def enlarge(x: Array, factor: Triple, periodic: tuple[bool, bool, bool]) -> Array:
    """Trilinear interpolation to a grid `factor` times as fine; axes that wrap have no ends."""
    shape = tuple(n * f for n, f in zip(x.shape[1:4], factor))
    inner = tuple(m if wraps else n for n, m, wraps in zip(x.shape[1:4], shape, periodic))
    return resample.resize(resample.resize(x, inner, True), shape, False)
