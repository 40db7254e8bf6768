"""The terms of adversarial training, as one value per example, [B].

A discriminator returns, for every scale s, a tuple of feature volumes D_s^1 ... D_s^L, each
[B, D', H', W', K']; the last are the logits D_s.  x is the condition (the generator's input), y the
real image, G(x) the generated one.  Everything is computed in at least float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxvol.ops.masked import promote
from jaxvol.ops.resample import avg_pool
from jaxvol.types import Array, UserError

EPS = 1e-8  # added to what a correlation is divided by
KINDS = ("lsgan", "hinge")
CORRELATIONS = ("pcc", "ccc")
SCOPES = ("sample", "batch")

Features = Sequence[Sequence[Array]]  # [scale][layer] of a multi-scale discriminator


def logits(features: Features) -> tuple[Array, ...]:
    """The last feature volume of every scale."""
    return tuple(scale[-1] for scale in features)


def discriminator_loss(
    kind: str, real: Sequence[Array], fake: Sequence[Array], smoothing: float = 0.0
) -> dict[str, Array]:
    """{"real": [B], "fake": [B]}, which the discriminator minimises.

    They are taken of its logits on (x, y) and on (x, G(x)).

    lsgan: 1/2 sum_s mean (D_s - (1 - smoothing))^2 and 1/2 sum_s mean D_s^2 (Mao et al. 2017,
           arXiv:1611.04076, Eq. 9; summed over scales as in Pix2PixCC), with one-sided label
           smoothing
    hinge: sum_s mean max(0, 1 - D_s) and sum_s mean max(0, 1 + D_s) (Lim & Ye 2017,
           arXiv:1705.02894); no smoothing
    Raises UserError for another kind.
    """
    _choice("adversarial loss", kind, KINDS)
    if kind == "lsgan":
        return {
            "real": _over_scales(lambda d: 0.5 * jnp.square(d - (1 - smoothing)), real),
            "fake": _over_scales(lambda d: 0.5 * jnp.square(d), fake),
        }
    return {
        "real": _over_scales(lambda d: jax.nn.relu(1 - d), real),
        "fake": _over_scales(lambda d: jax.nn.relu(1 + d), fake),
    }


def generator_loss(kind: str, fake: Sequence[Array]) -> Array:
    """What the generator minimises, [B], of the logits on (x, G(x)).

    lsgan: 1/2 sum_s mean (D_s - 1)^2.  hinge: -sum_s mean D_s.  Raises UserError for another kind.
    """
    _choice("adversarial loss", kind, KINDS)
    return _over_scales(lambda d: 0.5 * jnp.square(d - 1) if kind == "lsgan" else -d, fake)


def feature_matching(fake: Features, real: Features, with_logits: bool = True) -> Array:
    """1/S sum_s sum_l mean |D_s^l(x, G(x)) - D_s^l(x, y)|, [B]; the real features are constants.

    Pix2PixCC (Jeong et al. 2022, arXiv:2204.12068) counts the logits as a layer; pix2pixHD
    (arXiv:1711.11585) does not.
    """
    last = None if with_logits else -1
    distances = [
        _per_example(jnp.abs(promote(f) - jax.lax.stop_gradient(promote(r))))
        for fakes, reals in zip(fake, real, strict=True)
        for f, r in zip(fakes[:last], reals[:last], strict=True)
    ]
    return sum(distances) / len(fake)


def correlation(
    pred: Array,
    target: Array,
    scales: int = 1,
    kind: str = "pcc",
    scope: str = "sample",
    mask: Array | None = None,
    count_padding: bool = False,
) -> Array:
    """1/n sum_{i < n} (1 - CC(pool^i pred, pool^i target)), [B] (Pix2PixCC).

    pool is the average over 3^3 voxels at stride 2.

    pred, target:  [B, D, H, W, C]
    kind:          pcc = Pearson's correlation
                   ccc = Lin's concordance, 2 cov / (var + var + shift^2)
    scope:         sample = over the voxels of each example and channel, mean over channels
                   batch = one coefficient over the whole array, repeated B times (the published
                   loss; not a mean over examples, so it changes with micro-batches)
    mask:          [B, D, H, W, 1], 1 = observed, or None
    count_padding: zeros beyond the border count in the averages, as published, which dims the
                   border; otherwise, and wherever there is a mask, averages are over what there is
    Raises UserError for an unknown kind or scope.
    """
    _choice("correlation", kind, CORRELATIONS)
    _choice("correlation's scope", scope, SCOPES)
    shape, axes = (
        (pred.shape[0], pred.shape[-1]),
        (1, 2, 3) if scope == "sample" else (0, 1, 2, 3, 4),
    )
    p, t = promote(pred), promote(target)
    weight = None if mask is None else (mask > 0).astype(p.dtype)
    total = 0.0
    for i in range(scales):
        if i:
            p, t, weight = _pool(p, t, weight, count_padding)
        total += jnp.mean(
            jnp.broadcast_to(1 - _coefficient(p, t, weight, axes, kind), shape), axis=-1
        )
    return total / scales


def pair(x: Array, image: Array, balance: float = 0.0) -> Array:
    """What the discriminator sees: x [..., C] and image [..., K] side by side.

    The one with fewer channels may be repeated.  With r = balance C / K: r >= 1 gives [x, image,
    ... floor(r) times]; r < 1 gives [x, ... floor(1 / r) times, image]; balance = 0 repeats
    nothing. Without it an image of one channel can drown among many of x (Pix2PixCC, ch_balance).
    """
    if balance <= 0:
        return jnp.concatenate([x, image], axis=-1)
    r = balance * x.shape[-1] / image.shape[-1]
    # 1 / (1 / 3) may come out below 3
    times = max(1, math.floor((r if r >= 1 else 1 / r) + 1e-9))
    return jnp.concatenate([x] + [image] * times if r >= 1 else [x] * times + [image], axis=-1)


def _pool(
    p: Array, t: Array, weight: Array | None, count_padding: bool
) -> tuple[Array, Array, Array | None]:
    """Both fields and the weights at half the resolution.

    With weights they are averages over the observed voxels, and 1 where there were any.
    """
    if weight is None:
        return avg_pool(p, 3, 2, 1, count_padding), avg_pool(t, 3, 2, 1, count_padding), None
    seen = avg_pool(weight, 3, 2, 1, count_padding)
    fields = [
        avg_pool(jnp.where(weight > 0, x, 0), 3, 2, 1, count_padding) / jnp.where(seen > 0, seen, 1)
        for x in (p, t)
    ]
    return *fields, (seen > 0).astype(p.dtype)


def _coefficient(
    p: Array, t: Array, weight: Array | None, axes: tuple[int, ...], kind: str
) -> Array:
    """Correlation or concordance over `axes`: [B, C] for (1, 2, 3), a scalar for all five."""
    weight = jnp.ones_like(p) if weight is None else jnp.broadcast_to(weight, p.shape)
    count = jnp.maximum(_dot(weight, weight, axes), 1)

    def centre(x: Array) -> tuple[Array, Array]:
        x = jnp.where(weight > 0, x, 0)
        mean = _dot(x, weight, axes) / count
        return jnp.where(
            weight > 0, x - (mean[:, None, None, None] if mean.ndim else mean), 0
        ), mean

    (p, mean_p), (t, mean_t) = centre(p), centre(t)
    squares = [_dot(x, x, axes) for x in (p, t)]
    # gradient 0, not NaN, at 0
    norms = [jnp.where(s > 0, jnp.sqrt(jnp.where(s > 0, s, 1)), 0) for s in squares]
    pearson = _dot(p, t, axes) / (norms[0] * norms[1] + EPS)
    if kind == "pcc":
        return pearson
    n = jnp.maximum(count - 1, 1)  # the published loss divides by N - 1
    twice_covariance = 2 * pearson * norms[0] * norms[1] / n
    return twice_covariance / ((squares[0] + squares[1]) / n + jnp.square(mean_p - mean_t) + EPS)


def _dot(a: Array, b: Array, axes: tuple[int, ...]) -> Array:
    """Sum of a b over `axes`, as a matrix product.

    On a CPU a plain sum of 10^5 float32 values is ten times less accurate.
    """
    rule = "bdhwc,bdhwc->" + ("bc" if len(axes) == 3 else "")
    return jnp.einsum(rule, a, b, precision=jax.lax.Precision.HIGHEST)


def _over_scales(rule, scales: Sequence[Array]) -> Array:
    """sum_s mean over voxels of rule(D_s), [B]."""
    return sum(_per_example(rule(promote(d))) for d in scales)


def _per_example(x: Array) -> Array:
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def _choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(
            f"found {value!r} as the {what}: expected one of {', '.join(known)}; choose one of "
            "these in config.task"
        )
