"""What networks of coordinates share: the scaling of the domain to [-1, 1], and the precision.

    xhat = 2 (x - low) / (high - low) - 1

Derivatives with respect to the physical x are taken through it, so that equations are written in
physical units.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxvol.models import layers
from jaxvol.ops import taylor
from jaxvol.types import Array, Spec, UserError

SCALINGS = ("affine", "space", "none")


def scaled_fields(config, spec: Spec) -> dict[str, Any]:
    """Channels, widths, scaling and precision of a network of coordinates, from `config.model`.

    Raises UserError for widths that are no positive numbers, and for data that are no points of a
    domain.
    """
    m = config.model
    if not m.widths or min(m.widths) < 1:
        raise UserError(
            f"config.model.widths is {tuple(m.widths)}: expected one positive number of neurons "
            "per hidden layer."
        )
    factor, shift = scaling(m.scaling, spec)
    return {
        "channels": len(spec.fields["target"].channels),
        "widths": tuple(m.widths),
        "factor": factor,
        "shift": shift,
        **layers.dtypes(config.precision),
    }


def scaling(kind: str, spec: Spec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(factor, shift) per coordinate: xhat = factor x + shift.

    kind: affine | space (all but t) | none.
    The bounds are those of the `linear` normaliser of the field "input", one coordinate per
    channel.  Raises UserError for an unknown kind, and for data that are no points of a domain.
    """
    if kind not in SCALINGS:
        raise UserError(f"config.model.scaling is {kind!r}; choose one of {', '.join(SCALINGS)}.")
    field = spec.fields["input"]
    if [step["name"] for step in field.normaliser] != ["linear"]:
        raise UserError(
            "this model is one of coordinates and needs the bounds of a domain: use "
            "config.data.name='collocation'."
        )
    low, high = (
        np.broadcast_to(field.normaliser[0][name], len(field.channels)) for name in ("low", "high")
    )
    scaled = np.array(
        [kind == "affine" or kind == "space" and name != "t" for name in field.channels]
    )
    factor = np.where(scaled, 2 / (high - low), 1.0)
    return tuple(map(float, factor)), tuple(map(float, np.where(scaled, -factor * low - 1, 0.0)))


def enter(
    x: Array | taylor.Taylor, factor: tuple[float, ...], shift: tuple[float, ...], dtype
) -> Array | taylor.Taylor:
    """The scaled coordinates; scaled in x's own precision, then brought to `dtype`."""
    given = x.value.dtype if isinstance(x, taylor.Taylor) else x.dtype
    scaled = x * jnp.asarray(factor, given) + jnp.asarray(shift, given)
    return taylor.linear(lambda v: v.astype(dtype), scaled)


def leave(x: Array | taylor.Taylor) -> Array | taylor.Taylor:
    """The output in at least float32."""
    return taylor.linear(lambda v: v.astype(jnp.promote_types(v.dtype, jnp.float32)), x)
