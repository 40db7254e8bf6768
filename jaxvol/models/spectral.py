"""The spectral convolution as a layer with weights: dense, or factorised (Tucker, CP)."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn

from jaxvol.ops import fourier
from jaxvol.types import Array

Dtype = Any


class SpectralConv(nn.Module):
    """Spectral convolution with its own weights, [B, D, H, W, C] -> the same.

    It is computed in at least float32.
    Each complex weight is stored as two reals (`_real`, `_imag`): optimizers then need no complex
    arithmetic.  At the start E|W_k|^2 = 1 / C (factorised weights: that of the dense tensor they
    stand for), as in the published implementation.  With the bypass's 2 / C the sum has 2 (white
    fields) to 3 times (smooth fields) the variance of v, which GELU brings back to about 0.9 to
    1.3: activations keep their scale through the blocks.
    """

    frequencies: fourier.Window
    factorization: str
    rank: float
    implementation: str
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        sizes = (*fourier.window_size(self.frequencies), width, width)
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
            x, core, factors, self.frequencies, implementation=self.implementation
        ).astype(x.dtype)

    def weight(self, name: str, shape: tuple[int, ...], variance: float) -> fourier.Pair:
        """Real and imaginary part of a parameter of E|w|^2 = variance."""
        init = nn.initializers.normal(math.sqrt(variance / 2))
        return tuple(
            self.param(f"{name}_{part}", init, shape, self.param_dtype) for part in ("real", "imag")
        )


def tucker_ranks(sizes: tuple[int, ...], fraction: float) -> tuple[int, ...]:
    """Ranks in proportion to the sizes, with at most `fraction` of the dense tensor's parameters.

    A fraction of 1 is full rank.
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
