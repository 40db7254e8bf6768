"""Fourier transforms of real volumes that compute a window of frequencies: by FFT and by DFT.

`analyse` goes from volumes [B, D, C, H, W] to spectra [B, kd, kh, C, kw], `synthesise` back, as
defined in `jaxvol.ops.fourier`.  Both are written for volumes that are split over devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

Array = jax.Array
# (lowest, highest) integer frequency per axis; the last axis starts at 0
Window = tuple[tuple[int, int], ...]
# mesh axes over which the batch, and the depth, of volumes may be split
BATCH_AXES = ("data", "fsdp")
DEPTH_AXIS = "space"
# float32 products would otherwise run in TF32 on NVIDIA GPUs (errors of 1e-3)
HIGHEST = jax.lax.Precision.HIGHEST


def halve_nyquist(spectrum: Array, frequencies: Window, shape: tuple[int, ...]) -> Array:
    """Share the sample at +-n/2 between both signs where the window keeps both."""
    for axis, (low, high), n in zip((1, 2, 4), frequencies, shape):
        if 2 * high == n and low in (0, -high):
            k = np.arange(low, high + 1)
            scale = np.where(2 * abs(k) == n, 0.5, 1.0)
            spectrum = spectrum * scale.reshape([-1 if a == axis else 1 for a in range(5)]).astype(
                spectrum.real.dtype
            )
    return spectrum


def _waves(n: int, low: int, high: int) -> np.ndarray:
    """exp(2 pi i k j / n) [n, high - low + 1] in double precision, the phase reduced modulo n."""
    return np.exp(2j * np.pi / n * (np.outer(np.arange(n), np.arange(low, high + 1)) % n))


def analyse_dft(x: Array, frequencies: Window) -> Array:
    """[B, D, C, H, W] -> [B, kd, kh, C, kw].

    The last axis comes first, so that what is summed along a split depth axis is small.
    """
    d, h, w = (_waves(n, *k).conj() / n for n, k in zip((x.shape[1], *x.shape[3:]), frequencies))
    d, h = (e.astype(jnp.result_type(x.dtype, jnp.complex64)) for e in (d, h))
    parts = np.concatenate([w.real, w.imag], axis=1).astype(x.dtype)
    y = jax.lax.complex(
        *jnp.split(jnp.einsum("bdchw,wk->bdchk", x, parts, precision=HIGHEST), 2, axis=-1)
    )
    y = jnp.einsum("bdchk,hl->bdlck", y, h, precision=HIGHEST)
    return jnp.einsum("bdlck,dm->bmlck", y, d, precision=HIGHEST)


def synthesise_dft(y: Array, frequencies: Window, shape: tuple[int, ...]) -> Array:
    """[B, kd, kh, K, kw] -> [B, D, K, H, W], the real part of the sum over the window."""
    d, h, w = (_waves(n, *k) for n, k in zip(shape, frequencies))
    w[:, 1:] *= 2.0
    parts = np.concatenate([w.real, -w.imag], axis=1).T.astype(y.real.dtype)
    y = jnp.einsum("bmlok,dm->bdlok", y, d.astype(y.dtype), precision=HIGHEST)
    y = jnp.einsum("bdlok,hl->bdohk", y, h.astype(y.dtype), precision=HIGHEST)
    return jnp.einsum(
        "bdohk,kw->bdohw", jnp.concatenate([y.real, y.imag], axis=-1), parts, precision=HIGHEST
    )


def analyse_fft(x: Array, frequencies: Window) -> Array:
    """[B, D, C, H, W] -> [B, kd, kh, C, kw], pruned after each axis."""

    def plane(x: Array) -> Array:
        y = jnp.fft.rfft(x, norm="forward")[..., : frequencies[2][1] + 1]
        return _prune(jnp.fft.fft(y, axis=3, norm="forward"), 3, *frequencies[1])

    def depth(y: Array) -> Array:
        return _prune(jnp.fft.fft(y, axis=1, norm="forward"), 1, *frequencies[0])

    return _local(depth, _local(plane, x, split_depth=True), split_depth=False).swapaxes(2, 3)


def synthesise_fft(y: Array, frequencies: Window, shape: tuple[int, ...]) -> Array:
    """[B, kd, kh, K, kw] -> [B, D, K, H, W].

    irfft counts the plane +n/2 once where the sum over the window counts it twice.
    """

    def depth(y: Array) -> Array:
        return jnp.fft.ifft(_place(y, 1, *frequencies[0], shape[0]), axis=1, norm="forward")

    def plane(y: Array) -> Array:
        y = jnp.fft.ifft(_place(y, 3, *frequencies[1], shape[1]), axis=3, norm="forward")
        if 0 < 2 * frequencies[2][1] == shape[2]:
            y = y.at[..., -1].multiply(2.0)
        return jnp.fft.irfft(y, shape[2], norm="forward")

    return _local(plane, _local(depth, y.swapaxes(2, 3), split_depth=False), split_depth=True)


def _prune(y: Array, axis: int, low: int, high: int) -> Array:
    """Frequencies low..high, ascending, out of a full transform along `axis`."""
    n = y.shape[axis]
    positive = jax.lax.slice_in_dim(y, 0, high + 1, axis=axis)
    if low == 0:
        return positive
    return jnp.concatenate([jax.lax.slice_in_dim(y, n + low, n, axis=axis), positive], axis)


def _place(y: Array, axis: int, low: int, high: int, n: int) -> Array:
    """The adjoint of `_prune`: a full spectrum of length n.

    There -n/2 and +n/2 fall on the same sample.
    """
    negative, positive = jnp.split(y, [-low], axis=axis)
    zeros = max(n - (high - low + 1), 0)
    full = jnp.concatenate(
        [positive, jnp.zeros((*y.shape[:axis], zeros, *y.shape[axis + 1 :]), y.dtype), negative],
        axis,
    )
    if high - low + 1 <= n:
        return full
    merged = jax.lax.slice_in_dim(full, high, high + 1, axis=axis) + jax.lax.slice_in_dim(
        full, high + 1, high + 2, axis=axis
    )
    return jnp.concatenate(
        [
            jax.lax.slice_in_dim(full, 0, high, axis=axis),
            merged,
            jax.lax.slice_in_dim(full, high + 2, n + 1, axis=axis),
        ],
        axis,
    )


def _local(transform: Callable[[Array], Array], x: Array, split_depth: bool) -> Array:
    """Apply a transform to each device's own examples (and depths).

    XLA would gather a sharded operand of an FFT.  Needs the mesh in context.  An axis that does not
    divide, and the depth with `split_depth=False`, is gathered: left alone with a transform along a
    split axis, XLA does the same on jax 0.12 and aborts the process on jax 0.10.
    """
    mesh, batch = jax.sharding.get_abstract_mesh(), _batch_axes(x.shape[0])
    depth = (
        DEPTH_AXIS
        if split_depth
        and mesh.shape.get(DEPTH_AXIS, 1) > 1
        and x.shape[1] % mesh.shape[DEPTH_AXIS] == 0
        else None
    )
    if mesh.size <= 1:
        return transform(x)
    spec = P(batch or None, depth)
    return jax.shard_map(transform, in_specs=spec, out_specs=spec, check_vma=False)(x)


def by_example(y: Array) -> Array:
    """Split the spectrum by examples alone: then the weights travel between devices, once."""
    batch = _batch_axes(y.shape[0])
    return jax.lax.with_sharding_constraint(y, P(batch)) if batch else y


def _batch_axes(batch_size: int) -> tuple[str, ...]:
    """Axes of the mesh in context over which a batch of this size is split."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(a for a in BATCH_AXES if mesh.shape.get(a, 1) > 1)
    return axes if batch_size % math.prod(mesh.shape[a] for a in axes) == 0 else ()
