"""Functions of each voxel's channels, applied to whole volumes in little memory.

What such a function keeps for its backward pass is many times its input; computing it again costs
less than to store and to fetch it.  `voxelwise` keeps the input only, and on one CPU works slab by
slab, in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any
Dtype = Any
SLAB = 4096  # voxels at least; 20 channels of them fill a third of a megabyte


def voxelwise(function: Callable[..., Array], weights: PyTree, *fields: Array) -> Array:
    """Apply a function of each voxel's channels to volumes [B, D, H, W, C].

    The backward pass keeps only these fields.  `function(weights, *slabs)` is given [..., C, N]:
    voxels lie along the last axis, where vector units want them; inside the network the two changes
    of layout cancel.  One CPU works slab by slab (`slabwise`), in its cache.
    """
    b, d, h, w, _ = fields[0].shape
    slices = tuple(jnp.moveaxis(v, -1, 2).reshape(b, d, v.shape[-1], h * w) for v in fields)
    slabs = slab_count(b * d, h * w)
    if slabs == 1:
        out = jax.checkpoint(function)(weights, *slices)
    else:
        # no axis of length 1: XLA would copy between its layouts
        per_slab = (b * d // slabs,) if b * d > slabs else ()
        out = slabwise(
            function, weights, tuple(v.reshape(slabs, *per_slab, *v.shape[2:]) for v in slices)
        )
    return jnp.moveaxis(out.reshape(b, d, -1, h, w), 2, -1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def slabwise(function: Callable[..., Array], weights: PyTree, fields: tuple[Array, ...]) -> Array:
    """Loop over the first axis of the fields, forward and backward.

    XLA's CPU backend ignores jax.checkpoint (it merges the recomputed operations with the first
    ones), clears the output of a `lax.scan` twice and widens bfloat16 loop variables to float32:
    hence the loops by hand, over raw bits.
    """
    one = jax.eval_shape(function, weights, *(v[0] for v in fields))
    packed = tuple(map(pack, fields))

    def body(i: Array, out: Array) -> Array:
        slab = function(weights, *(unpack(v[i], f.dtype) for v, f in zip(packed, fields)))
        return jax.lax.dynamic_update_index_in_dim(out, pack(slab), i, 0)

    return unpack(jax.lax.fori_loop(0, len(fields[0]), body, buffer(one, fields)), one.dtype)


def _slabwise_forward(
    function: Callable[..., Array], weights: PyTree, fields: tuple[Array, ...]
) -> tuple[Array, PyTree]:
    return slabwise(function, weights, fields), (
        weights,
        tuple(map(pack, fields)),
        tuple(v[0, :0] for v in fields),
    )


def _slabwise_backward(
    function: Callable[..., Array], saved: PyTree, cotangent: Array
) -> tuple[PyTree, tuple[Array, ...]]:
    weights, packed, like = saved
    bits = pack(cotangent)

    def body(i: Array, carry: PyTree) -> PyTree:
        total, out = carry
        _, pull = jax.vjp(function, weights, *(unpack(v[i], f.dtype) for v, f in zip(packed, like)))
        by_weights, *by_fields = pull(unpack(bits[i], cotangent.dtype))
        out = tuple(
            jax.lax.dynamic_update_index_in_dim(v, pack(d), i, 0) for v, d in zip(out, by_fields)
        )
        return jax.tree.map(jnp.add, total, by_weights), out

    out = tuple(
        buffer(jax.ShapeDtypeStruct(v.shape[1:], f.dtype), (cotangent,), j)
        for j, (v, f) in enumerate(zip(packed, like))
    )
    total, out = jax.lax.fori_loop(0, len(bits), body, (jax.tree.map(jnp.zeros_like, weights), out))
    return total, tuple(unpack(v, f.dtype) for v, f in zip(out, like))


slabwise.defvjp(_slabwise_forward, _slabwise_backward)


def buffer(one: jax.ShapeDtypeStruct, fields: tuple[Array, ...], element: int = 0) -> Array:
    """Room for a slab `one` per slab of `fields`.

    Filled with a value that exists only now and differs: XLA would make one room of zeros at the
    start and copy it.
    """
    value = fields[0].ravel()[element].astype(one.dtype)
    return pack(jnp.broadcast_to(value, (len(fields[0]), *one.shape)))


def pack(x: Array) -> Array:
    """bfloat16 as its bits."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def unpack(x: Array, dtype: Dtype) -> Array:
    """The inverse of `pack`."""
    return jax.lax.bitcast_convert_type(x, dtype) if dtype == jnp.bfloat16 else x


def slab_count(slices: int, voxels: int) -> int:
    """Slabs of whole slices of `voxels` voxels: the most of at least SLAB voxels.

    1 where devices share the volume.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 1
    return max(
        n
        for n in range(1, slices + 1)
        if slices % n == 0 and (slices // n * voxels >= SLAB or n == 1)
    )
