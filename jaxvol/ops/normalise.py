"""Normalisers: chains of invertible maps per channel, fitted once and stored as JSON.

They are applied to numpy and jax arrays alike.  A chain is `((name, arguments), ...)`, applied left
to right.  Every argument is one number or one per channel.

| step        | arguments               | y                              | fitted numbers          |
|-------------|-------------------------|--------------------------------|-------------------------|
| standardise |                         | (x - mean) / std               | mean, std               |
| zscore_mask |                         | (x - mean) / std               | mean, std over the mask |
| log10       | floor > 0               | log10(max(x, floor))           |                         |
| log1p       | floor > -1              | log(1 + max(x, floor))         |                         |
| asinh       | scale > 0               | asinh(x / scale)               |                         |
| linear      | low < high, clip        | 2 (x - low) / (high - low) - 1 |                         |
| percentile  | low < high, clip        | (x - a) / (b - a)              | a, b: percentiles       |
| percentile  | low < high, clip, signed| 2 (x - a) / (b - a) - 1        | a, b: percentiles       |

Without a mask `zscore_mask` takes the voxels where the data are above 0; the bounds of `percentile`
lie in [0, 100].  `inverse(fitted, forward(fitted, x)) == x` up to rounding, except where the
forward clips: below a `floor`, and outside the range of `linear` and `percentile` with clip=True,
where it returns the bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.types import UserError

REQUIRED = object()
ARGUMENTS = {  # step -> {argument: default}
    "standardise": {},
    "zscore_mask": {},
    "log10": {"floor": REQUIRED},
    "log1p": {"floor": REQUIRED},
    "asinh": {"scale": REQUIRED},
    "linear": {"low": REQUIRED, "high": REQUIRED, "clip": False},
    "percentile": {"low": REQUIRED, "high": REQUIRED, "clip": False, "signed": False},
}
FITTED = ("standardise", "zscore_mask", "percentile")  # the steps that need data


def check(steps: Iterable, channels: int) -> tuple[dict, ...]:
    """The chain as dicts with every argument, numbers as one float per channel.

    Raises UserError: unknown step or argument, missing argument, wrong number of values, value out
    of range.
    """
    return tuple(_check_step(step, channels) for step in steps)


def needs_data(steps: Iterable[Mapping]) -> bool:
    """Whether a checked chain has a step that is fitted on data."""
    return any(step["name"] in FITTED for step in steps)


def fit(
    steps: Iterable, arrays: Sequence, masks: Sequence | None = None, vector: bool = False
) -> tuple[dict, ...]:
    """Fits a chain on arrays [..., C], in float64; each step sees what the steps before it return.

    steps:  ((name, arguments), ...), or what `check` returned
    masks:  one [..., 1] per array, 1 = observed; the other voxels do not enter
    vector: channels come in threes (components along d, h, w): `standardise` then has mean 0 and
            one root mean square per vector, so that it commutes with rotations and reflections
    Returns JSON-able dicts for `forward` and `inverse`.
    Raises UserError: see `check`; a channel that is constant, or has no observed voxel, where a
    step is fitted.
    """
    channels = arrays[0].shape[-1]
    steps = check(steps, channels)
    values = [np.asarray(x, np.float64).reshape(-1, channels) for x in arrays]
    if masks is not None:
        values = [x[np.asarray(m).reshape(-1) > 0] for x, m in zip(values, masks, strict=True)]
    values = np.concatenate(values)
    if not len(values):
        raise UserError(
            "found no observed voxel to fit on: expected at least one example whose mask is not "
            "empty"
        )
    foreground = np.ones_like(values, bool) if masks is not None else values > 0
    fitted = []
    for step in steps:
        step = _fit_step(step, values, foreground, vector)
        values = forward((step,), values)
        fitted.append(step)
    return tuple(fitted)


def forward(fitted: Iterable[Mapping], x, mask=None):
    """The chain applied to x [..., C], in at least float32.

    Where `mask` [..., 1] is 0 the result is 0, even for NaN.
    """
    xp, x = _floating(x)
    if mask is not None:
        # before and after: neither values nor gradients become NaN
        x = xp.where(mask > 0, x, 0)
    for step in fitted:
        x = _forward_step(step, x, xp)
    return x if mask is None else xp.where(mask > 0, x, 0)


def inverse(fitted: Iterable[Mapping], y):
    """Physical units from normalised ones, y [..., C].

    Exact where the forward does not clip, see the top of this file.
    """
    xp, y = _floating(y)
    for step in reversed(tuple(fitted)):
        y = _inverse_step(step, y, xp)
    return y


def _check_step(step, channels: int) -> dict:
    if isinstance(step, Mapping):
        name, arguments = step["name"], {key: value for key, value in step.items() if key != "name"}
    else:
        try:
            name, arguments = step
            arguments = dict(arguments)
        except (TypeError, ValueError):
            raise UserError(
                f"found the normaliser step {step!r}: expected (name, {{argument: value}})"
            ) from None
    if name not in ARGUMENTS:
        raise UserError(
            f"found the normaliser step {name!r}: expected one of {', '.join(ARGUMENTS)}"
        )
    known = ARGUMENTS[name]
    if unknown := sorted(set(arguments) - set(known)):
        raise UserError(
            f"normaliser step {name!r} has no argument {', '.join(unknown)}: it takes "
            f"{', '.join(known) or 'none'}"
        )
    if missing := [
        key for key, default in known.items() if default is REQUIRED and key not in arguments
    ]:
        raise UserError(f"normaliser step {name!r} needs the argument {', '.join(missing)}")
    checked = {"name": name}
    for key, default in known.items():
        value = arguments[key] if key in arguments else default
        checked[key] = (
            bool(value) if isinstance(default, bool) else _per_channel(name, key, value, channels)
        )
    _check_range(checked)
    return checked


def _per_channel(name: str, key: str, value, channels: int) -> list[float]:
    numbers = np.asarray(value, np.float64)
    if numbers.shape not in ((), (1,), (channels,)) or not np.isfinite(numbers).all():
        raise UserError(
            f"normaliser step {name!r} has {key}={value!r}: expected a number, or one for each "
            f"of the {channels} channels"
        )
    return np.broadcast_to(numbers, (channels,)).tolist()


def _check_range(step: dict) -> None:
    name = step["name"]
    lower = {"log10": ("floor", 0.0), "log1p": ("floor", -1.0), "asinh": ("scale", 0.0)}
    if name in lower:
        key, bound = lower[name]
        if min(step[key]) <= bound:
            raise UserError(
                f"normaliser step {name!r} has {key}={min(step[key])}: expected more than {bound}"
            )
    if name in ("linear", "percentile"):
        if not all(low < high for low, high in zip(step["low"], step["high"])):
            raise UserError(
                f"normaliser step {name!r} has low={step['low']}, high={step['high']}: expected "
                "low < high"
            )
    if name == "percentile" and not (min(step["low"]) >= 0 and max(step["high"]) <= 100):
        raise UserError(
            f"normaliser step 'percentile' has low={step['low']}, high={step['high']}: expected 0 "
            "... 100"
        )


def _fit_step(step: dict, values: np.ndarray, foreground: np.ndarray, vector: bool) -> dict:
    """The step with what it needs to know of values [N, C]."""
    name, channels = step["name"], range(values.shape[1])
    if name == "percentile":
        bounds = [
            np.percentile(values[:, c], (step["low"][c], step["high"][c])).tolist()
            for c in channels
        ]
        _refuse_constant(name, [b - a for a, b in bounds], values)
        return {**step, "a": [a for a, _ in bounds], "b": [b for _, b in bounds]}
    if name == "standardise":
        mean, std = values.mean(0), values.std(0)
        if vector:
            mean, rms = (
                np.zeros_like(mean),
                np.sqrt(np.mean(values.reshape(len(values), -1, 3) ** 2, (0, 2))),
            )
            std = np.repeat(rms, 3)
    elif name == "zscore_mask":
        observed = [values[foreground[:, c], c] for c in channels]
        if empty := [c for c in channels if not len(observed[c])]:
            raise UserError(
                f"step 'zscore_mask' found no voxel above 0 in channel {empty[0]}: give a mask, or "
                "use 'standardise'"
            )
        mean, std = (np.array([statistic(v) for v in observed]) for statistic in (np.mean, np.std))
    else:
        return step
    _refuse_constant(name, std, values)
    return {**step, "mean": mean.tolist(), "std": std.tolist()}


def _refuse_constant(name: str, widths, values: np.ndarray) -> None:
    for channel, width in enumerate(widths):
        size = np.abs(values[:, channel]).max()
        if width <= 1e-12 * size:  # the rounding of a float64 mean of equal numbers
            raise UserError(
                f"step {name!r} found no spread in channel {channel} (values near "
                f"{values[0, channel]:.6g}): expected data that vary; drop the channel, or use "
                "'linear' with a fixed range"
            )


def _floating(x):
    """The array namespace of x, and x in at least float32."""
    if isinstance(x, jax.Array):
        return jnp, x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = np.asarray(x)
    return np, x.astype(np.promote_types(x.dtype, np.float32), copy=False)


def _forward_step(step: Mapping, x, xp):
    number = {
        key: xp.asarray(value, x.dtype)
        for key, value in step.items()
        if isinstance(value, (list, tuple))
    }
    match step["name"]:
        case "standardise" | "zscore_mask":
            return (x - number["mean"]) / number["std"]
        case "log10":
            return xp.log10(xp.maximum(x, number["floor"]))
        case "log1p":
            return xp.log1p(xp.maximum(x, number["floor"]))
        case "asinh":
            return xp.arcsinh(x / number["scale"])
        case "linear":
            y = 2 * (x - number["low"]) / (number["high"] - number["low"]) - 1
            return xp.clip(y, -1, 1) if step["clip"] else y
        case "percentile":
            y = (x - number["a"]) / (number["b"] - number["a"])
            y = xp.clip(y, 0, 1) if step["clip"] else y
            return 2 * y - 1 if step["signed"] else y
    raise UserError(
        f"found the normaliser step {step['name']!r}: expected one of {', '.join(ARGUMENTS)}"
    )


def _inverse_step(step: Mapping, y, xp):
    number = {
        key: xp.asarray(value, y.dtype)
        for key, value in step.items()
        if isinstance(value, (list, tuple))
    }
    match step["name"]:
        case "standardise" | "zscore_mask":
            return y * number["std"] + number["mean"]
        case "log10":
            return xp.power(xp.asarray(10, y.dtype), y)
        case "log1p":
            return xp.expm1(y)
        case "asinh":
            return number["scale"] * xp.sinh(y)
        case "linear":
            return number["low"] + (y + 1) / 2 * (number["high"] - number["low"])
        case "percentile":
            y = (y + 1) / 2 if step["signed"] else y
            return number["a"] + y * (number["b"] - number["a"])
    raise UserError(
        f"found the normaliser step {step['name']!r}: expected one of {', '.join(ARGUMENTS)}"
    )
