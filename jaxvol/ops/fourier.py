"""Spectral convolution of real volumes with two interchangeable implementations: FFT, and truncated
DFT as matrix products.

For a real field x on a periodic grid of D x H x W voxels, complex weights W_k and the window of
kept frequencies k,

    y(r_j) = Re sum_k  c_k W_k X_k exp(2 pi i k.j / n),      X_k = 1/(D H W) sum_j x(r_j) exp(-2 pi
    i k.j / n)

(Li et al. 2021, arXiv:2010.08895, Eq. 4; transforms scaled as norm="forward", so weights do not
depend on the grid).  The last axis keeps 0 <= k only: c_k = 2 stands for its conjugate half, c_k =
1 at k = 0.  All signs of the other axes are kept.  On an axis of even length n the frequencies +n/2
and -n/2 are the same samples: X there is halved and shared by both, which is what trigonometric
interpolation does, so that reflections and the plane k_last = n/2 come out right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

Array = jax.Array
# real and imaginary part: optimizers and checkpoints then see reals only
Pair = tuple[Array, Array]
# (lowest, highest) integer frequency kept per axis; the last axis starts at 0
Window = tuple[tuple[int, int], ...]
IMPLEMENTATIONS = ("auto", "fft", "dft")
# mesh axes over which the batch, and the depth, of volumes may be split
BATCH_AXES = ("data", "fsdp")
DEPTH_AXIS = "space"
# of the frequencies of one axis, see `choose`
DFT_FRACTION = {"cpu": 0.55, "gpu": 0.75, "tpu": 0.75}
# float32 products would otherwise run in TF32 on NVIDIA GPUs (errors of 1e-3)
HIGHEST = jax.lax.Precision.HIGHEST


def window(modes: tuple[int, int, int], one_sided: bool = False) -> Window:
    """Frequencies -m..m per axis and 0..m on the last; `one_sided` stops at m - 1 on the positive
    side of the first two.

    The one-sided window is the layout of the `neuraloperator` package for even `n_modes = 2 m`.
    """
    full = tuple((-m, m - 1 if one_sided and m > 0 else m) for m in modes[:2])
    return (*full, (0, modes[2]))


def cropped(kept: Window, shape: tuple[int, ...]) -> Window:
    """The part of a window that a grid resolves; a one-sided axis keeps -n/2 and drops +n/2, as
    fftfreq counts.
    """

    def axis(low: int, high: int, n: int) -> tuple[int, int]:
        top = n // 2 if low in (0, -high) else (n - 1) // 2
        return max(low, -(n // 2)), min(high, top)

    return tuple(axis(low, high, n) for (low, high), n in zip(kept, shape))


def window_size(kept: Window) -> tuple[int, ...]:
    """Number of frequencies per axis."""
    return tuple(high - low + 1 for low, high in kept)


def spectral_conv(
    x: Array,
    core: Pair | None,
    factors: tuple[Pair, ...],
    kept: Window,
    *,
    implementation: str = "auto",
    output_shape: tuple[int, int, int] | None = None,
) -> Array:
    """Convolve real volumes with a kernel given by its Fourier coefficients: [B, D, H, W, C] -> [B,
    D', H', W', K].

    x:        real, any float dtype; transforms and products are carried out in at least float32
    core:     weights (real, imag), each [kd, kh, kw, C, K] with (kd, kh, kw) = window_size(kept);
              with `factors`, see `contract`
    kept:     the frequencies that the weights stand for; on a grid that does not resolve them they
              are cropped
    output_shape: evaluate the trigonometric polynomial y on another grid (default: that of x)
    Returns at least float32, whatever x's dtype.  Raises ValueError for an unknown implementation.
    """
    shape, out = x.shape[1:4], tuple(output_shape or x.shape[1:4])
    used = cropped(kept, tuple(map(min, shape, out)))
    core, factors = _crop_weights(core, factors, kept, used)
    how = choose(implementation, shape, used)
    analyse, synthesise = (
        (_analyse_dft, _synthesise_dft) if how == "dft" else (_analyse_fft, _synthesise_fft)
    )
    # products run along W
    dtype, x = x.dtype, jnp.moveaxis(x, -1, 2).astype(jnp.promote_types(x.dtype, jnp.float32))
    spectrum = analyse(x, used)
    spectrum = _by_example(
        contract_again(_by_example(_halve_nyquist(spectrum, used, shape)), core, factors, dtype)
    )
    return jnp.moveaxis(synthesise(spectrum, used, out), 2, -1)


def choose(implementation: str, shape: tuple[int, ...], kept: Window) -> str:
    """Resolve "auto": DFT on more than one device or while few frequencies are kept, FFT otherwise.

    A batch-sharded FFT is gathered by XLA in jax 0.10, a DFT never is.  DFT_FRACTION is the
    measured crossing on one CPU core (32, 48 and 64 cubed) and, on accelerators, an estimate of
    where truncated products move fewer bytes than full transforms.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"spectral convolution {implementation!r} is unknown; choose one of "
            f"{', '.join(IMPLEMENTATIONS)}."
        )
    if implementation != "auto":
        return implementation
    whole = (*shape[:2], shape[2] // 2 + 1)
    fraction = (
        max(size / n for size, n in zip(window_size(kept), whole) if n > 1)
        if max(shape) > 1
        else 0.0
    )
    return (
        "dft"
        if jax.device_count() > 1 or fraction <= DFT_FRACTION[jax.default_backend()]
        else "fft"
    )


def contract(spectrum: Array, core: Pair | None, factors: tuple[Pair, ...]) -> Array:
    """Multiply each kept mode by its channel matrix: [B, kd, kh, C, kw] -> [B, kd, kh, K, kw].

    no factors     core [kd, kh, kw, C, K] is the dense tensor
    Tucker         core [r1 .. r5], factors [kd, r1], [kh, r2], [kw, r3], [C, r4], [K, r5]   (TFNO,
    arXiv:2310.00120)
    CP             core None, factors [kd, r], [kh, r], [kw, r], [C, r], [K, r]
    The order of a factorised product is chosen by operation count, so the dense tensor is built
    only where that is cheaper.
    """
    if not factors:
        return _contract_dense(spectrum, *core)
    small = tuple(jax.lax.complex(*f) for f in factors)
    if core is None:
        return jnp.einsum("bmlik,mr,lr,kr,ir,or->bmlok", spectrum, *small, precision=HIGHEST)
    return jnp.einsum(
        "bmlik,uvwpq,mu,lv,kw,ip,oq->bmlok",
        spectrum,
        jax.lax.complex(*core),
        *small,
        precision=HIGHEST,
    )


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def contract_again(
    spectrum: Array, core: Pair | None, factors: tuple[Pair, ...], dtype: jnp.dtype
) -> Array:
    """`contract`, whose backward pass keeps the spectrum alone, rounded to `dtype`, and multiplies
    once more.

    The products of factorised weights are several times the spectrum.  Rounding only touches the
    gradient of the weights.
    """
    return contract(spectrum, core, factors)


def _contract_again_forward(
    spectrum: Array, core: Pair | None, factors: tuple[Pair, ...], dtype: jnp.dtype
) -> tuple:
    bits = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[dtype.itemsize]
    parts = (
        jax.lax.bitcast_convert_type(part.astype(dtype), bits)
        for part in (spectrum.real, spectrum.imag)
    )
    return contract(spectrum, core, factors), (tuple(parts), core, factors)


def _contract_again_backward(dtype: jnp.dtype, saved: tuple, cotangent: Array) -> tuple:
    """What is multiplied again has to look new to XLA, which would keep the first products: it
    depends on the cotangent.
    """
    parts, core, factors = saved
    first = cotangent.real.ravel()[0]
    # true for a NaN only, whose step is refused anyway
    never = first != first
    parts = (
        jax.lax.bitcast_convert_type(part ^ never.astype(part.dtype), dtype).astype(
            cotangent.real.dtype
        )
        for part in parts
    )
    core, factors = jax.tree.map(lambda w: w + never.astype(w.dtype), (core, factors))
    return jax.vjp(contract, jax.lax.complex(*parts), core, factors)[1](cotangent)


contract_again.defvjp(_contract_again_forward, _contract_again_backward)


def _contract_dense(spectrum: Array, real: Array, imag: Array) -> Array:
    """One small product per mode; real and imaginary rows are stacked, so that no complex copy of
    the weights is made.

    Rows run over (example, part), in this order: an axis that is split over devices may be merged
    with a whole one behind it.
    """
    # [kd, kh, kw, B, 2, C]
    parts = jnp.stack([spectrum.real, spectrum.imag], axis=1).transpose(2, 3, 5, 0, 1, 4)
    rows = parts.reshape(*parts.shape[:3], -1, parts.shape[-1])
    by_real, by_imag = (
        jnp.matmul(rows, w, precision=HIGHEST).reshape(*parts.shape[:5], -1) for w in (real, imag)
    )
    y = jax.lax.complex(
        by_real[..., 0, :] - by_imag[..., 1, :], by_imag[..., 0, :] + by_real[..., 1, :]
    )
    return y.transpose(3, 0, 1, 4, 2)


def _crop_weights(
    core: Pair | None, factors: tuple[Pair, ...], kept: Window, used: Window
) -> tuple[Pair | None, tuple]:
    """Weights of the frequencies in `used`, a part of the window `kept`."""
    rows = tuple(slice(u[0] - k[0], u[1] - k[0] + 1) for u, k in zip(used, kept))
    if factors:
        return core, (*((real[r], imag[r]) for (real, imag), r in zip(factors, rows)), *factors[3:])
    return (core[0][rows], core[1][rows]), ()


def _halve_nyquist(spectrum: Array, kept: Window, shape: tuple[int, ...]) -> Array:
    """Share the sample at +-n/2 between both signs where the window keeps both."""
    for axis, (low, high), n in zip((1, 2, 4), kept, shape):
        if 2 * high == n and low in (0, -high):
            k = np.arange(low, high + 1)
            scale = np.where(2 * abs(k) == n, 0.5, 1.0)
            spectrum = spectrum * scale.reshape([-1 if a == axis else 1 for a in range(5)]).astype(
                spectrum.real.dtype
            )
    return spectrum


def _waves(n: int, low: int, high: int) -> np.ndarray:
    """exp(2 pi i k j / n) [n, high - low + 1] in double precision; the phase is reduced modulo n
    first.
    """
    return np.exp(2j * np.pi / n * (np.outer(np.arange(n), np.arange(low, high + 1)) % n))


def _analyse_dft(x: Array, kept: Window) -> Array:
    """[B, D, C, H, W] -> [B, kd, kh, C, kw]: last axis first, so that what a split depth axis must
    sum is small.
    """
    d, h, w = (_waves(n, *k).conj() / n for n, k in zip((x.shape[1], *x.shape[3:]), kept))
    d, h = (e.astype(jnp.result_type(x.dtype, jnp.complex64)) for e in (d, h))
    parts = np.concatenate([w.real, w.imag], axis=1).astype(x.dtype)
    y = jax.lax.complex(
        *jnp.split(jnp.einsum("bdchw,wk->bdchk", x, parts, precision=HIGHEST), 2, axis=-1)
    )
    y = jnp.einsum("bdchk,hl->bdlck", y, h, precision=HIGHEST)
    return jnp.einsum("bdlck,dm->bmlck", y, d, precision=HIGHEST)


def _synthesise_dft(y: Array, kept: Window, shape: tuple[int, ...]) -> Array:
    """[B, kd, kh, K, kw] -> [B, D, K, H, W], the real part of the sum over the window."""
    d, h, w = (_waves(n, *k) for n, k in zip(shape, kept))
    w[:, 1:] *= 2.0
    parts = np.concatenate([w.real, -w.imag], axis=1).T.astype(y.real.dtype)
    y = jnp.einsum("bmlok,dm->bdlok", y, d.astype(y.dtype), precision=HIGHEST)
    y = jnp.einsum("bdlok,hl->bdohk", y, h.astype(y.dtype), precision=HIGHEST)
    return jnp.einsum(
        "bdohk,kw->bdohw", jnp.concatenate([y.real, y.imag], axis=-1), parts, precision=HIGHEST
    )


def _analyse_fft(x: Array, kept: Window) -> Array:
    """[B, D, C, H, W] -> [B, kd, kh, C, kw], pruned after each axis."""

    def plane(x: Array) -> Array:
        y = jnp.fft.rfft(x, norm="forward")[..., : kept[2][1] + 1]
        return _prune(jnp.fft.fft(y, axis=3, norm="forward"), 3, *kept[1])

    def depth(y: Array) -> Array:
        return _prune(jnp.fft.fft(y, axis=1, norm="forward"), 1, *kept[0])

    return _local(depth, _local(plane, x, split_depth=True), split_depth=False).swapaxes(2, 3)


def _synthesise_fft(y: Array, kept: Window, shape: tuple[int, ...]) -> Array:
    """[B, kd, kh, K, kw] -> [B, D, K, H, W]; irfft counts the plane +n/2 once where the sum above
    counts it twice.
    """

    def depth(y: Array) -> Array:
        return jnp.fft.ifft(_place(y, 1, *kept[0], shape[0]), axis=1, norm="forward")

    def plane(y: Array) -> Array:
        y = jnp.fft.ifft(_place(y, 3, *kept[1], shape[1]), axis=3, norm="forward")
        if 0 < 2 * kept[2][1] == shape[2]:
            y = y.at[..., -1].multiply(2.0)
        return jnp.fft.irfft(y, shape[2], norm="forward")

    return _local(plane, _local(depth, y.swapaxes(2, 3), split_depth=False), split_depth=True)


def _prune(y: Array, axis: int, low: int, high: int) -> Array:
    """Frequencies low..high, ascending, out of a full transform along `axis`."""
    n = y.shape[axis]
    positive = jax.lax.slice_in_dim(y, 0, high + 1, axis=axis)
    return (
        positive
        if low == 0
        else jnp.concatenate([jax.lax.slice_in_dim(y, n + low, n, axis=axis), positive], axis)
    )


def _place(y: Array, axis: int, low: int, high: int, n: int) -> Array:
    """The adjoint of `_prune`: a full spectrum of length n, where -n/2 and +n/2 fall on the same
    sample.
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
    """Apply a transform to each device's own examples (and depths), because XLA gathers a sharded
    operand of an FFT.

    Needs the mesh in context.  An axis that does not divide, and the depth with
    `split_depth=False`, is gathered: left alone with a transform along a split axis, XLA does the
    same on jax 0.12 and aborts the process on jax 0.10.
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


def _by_example(y: Array) -> Array:
    """Split the kept modes by examples alone: it is then the weights that travel between devices,
    once.
    """
    batch = _batch_axes(y.shape[0])
    return jax.lax.with_sharding_constraint(y, P(batch)) if batch else y


def _batch_axes(batch_size: int) -> tuple[str, ...]:
    """Axes of the mesh in context over which a batch of this size is split."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(a for a in BATCH_AXES if mesh.shape.get(a, 1) > 1)
    return axes if batch_size % math.prod(mesh.shape[a] for a in axes) == 0 else ()
