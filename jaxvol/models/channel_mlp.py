"""Small MLPs on the channels of each voxel, and the paths around them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxvol.ops import pointwise
from jaxvol.ops.chunked import voxelwise
from jaxvol.types import Array

Dtype = Any


class PointwiseMLP(nn.Module):
    """Linear, GELU, linear on the channels of each voxel; the result is in `dtype`.

    hidden = 0 is one linear layer.
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
    """(kernel, bias) per layer, as parameters of `module`.

    The variance of a kernel is 1 / inputs, after a GELU 2 / inputs, in the last layer times gain^2.
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
    """Linear layers on the channels of [..., C, N] with GELU between them.

    Products are in x's dtype, the result is in `dtype`.
    A bias is added in the parameters' precision: its gradient is a sum over all voxels, which in
    bfloat16 would stop growing after a few hundred of them.
    """
    for i, (kernel, bias) in enumerate(layers):
        last = i == len(layers) - 1
        y = product(kernel, x, dtype if last else x.dtype) + bias[:, None]
        x = y.astype(dtype) if last else pointwise.gelu(y).astype(x.dtype)
    return x


def product(kernel: Array, x: Array, dtype: Dtype) -> Array:
    """y_kn = sum_c W_ck x_cn for each leading index, in x's dtype.

    The gradient of W is summed over the leading indices in W's dtype.
    """
    matrices = jnp.broadcast_to(kernel.T, (*x.shape[:-2], *kernel.shape[::-1])).astype(x.dtype)
    return jnp.matmul(matrices, x, preferred_element_type=dtype)


def skip(x: Array, kind: str, weight: Array | None) -> Array:
    """linear: W x | soft_gating: w x | identity: x | none: 0, on [..., C, N]."""
    if kind == "linear":
        return product(weight, x, x.dtype)
    if kind == "soft_gating":
        return x * weight[:, None]
    return x if kind == "identity" else jnp.zeros_like(x)
