"""P(k), T(k) and r(k) as scores: rows of spectra per box, and what they sum up to."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxvol.ops import round_trip, spectra
from jaxvol.types import Array, Metrics, Rows, Spec, UserError

NAMES = ("P_pred", "P_true", "P_cross")


def possible(spec: Spec) -> bool:
    """Whether there are isotropic spectra: cubes of cubic voxels."""
    return spec.shape[0] > 1 and len(set(spec.shape)) == 1 and len(set(spec.spacing)) == 1


def units(spec: Spec) -> np.ndarray:
    """The power of two that each channel of the target is measured in, [C]: its power would leave
    the range of float32 in physical units (1e-58, 1e40).
    """
    target = spec.fields["target"]
    return round_trip.unit(target.normaliser, len(target.channels))


def rows(spec: Spec, pred: Array, target: Array, mask: Array | None) -> Rows:
    """P_pred, P_true, P_cross in units of `units`^2, [B, K] or, with several channels, [B, K, C].

    Boxes are tapered along axes that do not wrap.  Raises UserError for volumes of another size
    than the spec's.
    """
    if pred.shape[1:4] != spec.shape:
        raise UserError(
            f"found volumes of {pred.shape[1:4]} voxels to score, but the spec says {spec.shape}: "
            "spectra need boxes of one size; set config.task.spectra=False"
        )
    weights = None if mask is None else (mask > 0).astype(jnp.float32)
    if not all(spec.periodic):
        window = jnp.asarray(spectra.taper(spec.shape, spec.periodic), jnp.float32)
        weights = window if weights is None else weights * window
    pred, target = (x / jnp.asarray(units(spec), x.dtype) for x in (pred, target))
    powers = spectra.spectra(pred, target, spec.box_size, weights=weights)
    return {
        name: power[..., 0] if power.shape[-1] == 1 else power
        for name, power in zip(NAMES, powers, strict=True)
    }


def summary(spec: Spec, rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """k, modes (independent ones per box), T and r of spectra summed over boxes, their standard
    deviation over boxes, mean P, and the window.
    """
    boxes = {name: np.asarray(rows[name], np.float64) for name in NAMES}
    size = np.square(units(spec)) if boxes["P_true"].ndim == 3 else np.square(units(spec))[0]
    boxes = {name: size * values for name, values in boxes.items()}
    total = {name: values.sum(0) for name, values in boxes.items()}
    shells = spectra.shells(spec.shape, spec.box_size)
    inside = slice(1, shells.last + 1)
    return {
        "k": shells.k[inside],
        "modes": shells.modes[inside].astype(int),
        "T": spectra.transfer(total["P_pred"], total["P_true"]),
        "r": _correlation(total),
        "T_std": spectra.transfer(boxes["P_pred"], boxes["P_true"]).std(0),
        "r_std": _correlation(boxes).std(0),
        **{name: values / len(boxes[name]) for name, values in total.items()},
        "window": "none" if all(spec.periodic) else "hann",
    }


def scales(spec: Spec, summary: dict[str, Any]) -> Metrics:
    """r_eighth, r_quarter and r_half at these fractions of the Nyquist frequency, and
    transfer_error, the mean of |T - 1| above half of it; of the first channel.
    """
    k = np.asarray(summary["k"]) / (np.pi / max(spec.spacing))
    r, T = (np.asarray(summary[name]).reshape(len(k), -1)[:, 0] for name in ("r", "T"))
    numbers = {
        f"r_{name}": float(np.interp(share, k, r))
        for name, share in (("eighth", 1 / 8), ("quarter", 1 / 4), ("half", 1 / 2))
    }
    if (k >= 0.5).any():
        numbers["transfer_error"] = float(np.abs(T[k >= 0.5] - 1).mean())
    return numbers


def _correlation(powers: dict[str, np.ndarray]) -> np.ndarray:
    return spectra.cross_correlation(
        p_pred=powers["P_pred"], p_true=powers["P_true"], p_cross=powers["P_cross"]
    )
