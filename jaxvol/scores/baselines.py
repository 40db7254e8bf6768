"""Trivial predictors of one volume from another, as functions of arrays: what a network has to
beat.

mean:     the training mean of the target
identity: the input in physical units
wiener:   the isotropic linear filter of ops/wiener.py, on the input in physical units or as the
          network sees it, whichever has the lower VRMSE on the training boxes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxvol.ops import masked, normalise, round_trip, wiener
from jaxvol.types import Array, Batch, Spec


class Fitted(NamedTuple):
    """What the training boxes say about trivial predictions."""

    filter: dict[str, Array]  # of ops/wiener.py, between fields in `units`
    target_mean: Array  # [K] in physical units, for the mean predictor
    input: str  # what the filter is applied to: physical | normalised
    training_vrmse: dict[str, float]  # of either


def fit(spec: Spec, train_batches: Iterable[dict[str, np.ndarray]]) -> Fitted:
    """The mean and the better linear filter.

    train_batches: host batches of the training split, normalised, padding marked by `_mask`; read
                   once.  Raises UserError when there is none.
    """
    inputs, targets = (len(spec.fields[name].channels) for name in ("input", "target"))
    moments = wiener.measure(_boxes(spec, train_batches), spec.spacing)
    target = slice(2 * inputs, 2 * inputs + targets)
    filters = {
        "physical": wiener.fit(moments, slice(0, inputs), target),
        "normalised": wiener.fit(moments, slice(inputs, 2 * inputs), target),
    }
    errors = {name: error for name, (_, error) in filters.items()}
    best = min(errors, key=errors.get)
    fitted = {key: jnp.asarray(value) for key, value in filters[best][0].items()}
    target_mean = fitted["target_mean"] * units(spec, "target").astype(np.float32)
    return Fitted(fitted, target_mean, best, errors)


def units(spec: Spec, name: str) -> np.ndarray:
    """The power of two that each channel of a field is filtered in, [C]: the squares of physical
    values may leave the range of float32.
    """
    field = spec.fields[name]
    return round_trip.unit(field.normaliser, len(field.channels))


def mean(target_mean: Array, batch: Batch) -> Array:
    """The mean [K] everywhere, [B, D, H, W, K]."""
    return jnp.broadcast_to(target_mean, (*batch["input"].shape[:-1], *target_mean.shape))


def identity(spec: Spec, batch: Batch) -> Array:
    """The input in physical units, [B, D, H, W, C]."""
    return normalise.inverse(spec.fields["input"].normaliser, masked.promote(batch["input"]))


def linear(fitted: dict[str, Array], source: str, spec: Spec, batch: Batch) -> Array:
    """The filter's prediction in physical units, [B, D, H, W, K].

    fitted, source: the filter, and the input that it is applied to, see `Fitted`.
    """
    x = batch["input"]
    if source == "physical":
        x = identity(spec, batch)
        x = x / jnp.asarray(units(spec, "input"), x.dtype)
    y = wiener.apply(fitted, x, _mask(batch), spec.spacing)
    return y * jnp.asarray(units(spec, "target"), y.dtype)


def _boxes(
    spec: Spec, train_batches: Iterable[dict[str, np.ndarray]]
) -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray]]:
    """(input in `units`, normalised input and target in `units` in one array, mask, which examples
    are real).
    """
    for batch in train_batches:
        x, y = (
            normalise.inverse(spec.fields[name].normaliser, batch[name])
            / units(spec, name).astype(np.float32)
            for name in ("input", "target")
        )
        real = batch["_mask"] > 0 if "_mask" in batch else np.ones(len(x), bool)
        yield np.concatenate([x, batch["input"], y], -1), _mask(batch), real


def _mask(batch: Batch) -> Array | None:
    return batch["mask"] if "mask" in batch else None
