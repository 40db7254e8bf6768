"""Checksums of arrays, computed on the devices that hold them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxvol.types import PyTree


def _words(x: jax.Array) -> jax.Array:
    """The bits of `x` as uint32, one or two words per element."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(jnp.stack([x.real, x.imag], -1))
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    width = min(x.dtype.itemsize, 4)
    return jax.lax.bitcast_convert_type(
        x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width]
    ).astype(jnp.uint32)


def _checksum(x: jax.Array) -> jax.Array:
    """sum_i bits_i * odd_i mod 2^32, odd_i from the index.  Whole-number sums do not depend on how
    `x` is sharded, and
    an odd weight cannot map a changed element to an unchanged sum."""
    words = _words(x)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * ((index * jnp.uint32(2654435761)) | jnp.uint32(1)), dtype=jnp.uint32)


@functools.cache
def _checksums_on_device(everywhere):
    """The jitted checksums, whole on each of several processes (`everywhere`: the sharding that
    says so, None on one).
    """
    return jax.jit(
        lambda leaves: jnp.stack([_checksum(x) for x in leaves]), out_shardings=everywhere
    )


def checksums(tree: PyTree) -> dict[str, int]:
    """One 32-bit checksum per leaf, keyed by its path."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree))
    spread = next((x.sharding for x in leaves if not x.is_fully_addressable), None)
    everywhere = None if spread is None else NamedSharding(spread.mesh, PartitionSpec())
    values = np.asarray(_checksums_on_device(everywhere)(list(leaves)))
    return {jax.tree_util.keystr(p): int(v) for p, v in zip(paths, values)}
