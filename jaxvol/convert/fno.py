"""Weights of the `neuraloperator` package -> jaxvol/models/fno.py and its spectral convolution.

Version 2.0.0, postactivation blocks.  The original keeps `n_modes` frequencies per axis:
-(n // 2) .. n - n // 2 - 1, and 0 .. n // 2 on the last one.  Its models of planes become models of
volumes of depth 1.  Factorised spectral weights (Tucker, CP) are multiplied out: the result is
equal, its number of parameters that of the dense model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.convert import names
from jaxvol.models import fno as model
from jaxvol.ops import fourier
from jaxvol.types import Array, Field, Spec, UserError

Tensors = Mapping[str, np.ndarray]
DEFAULTS = {  # of the original's constructor, for what its hyper-parameters leave out
    "lifting_channel_ratio": 2,
    "projection_channel_ratio": 2,
    "channel_mlp_expansion": 0.5,
    "fno_skip": "linear",
    "channel_mlp_skip": "soft-gating",
    "norm": None,
    "positional_embedding": "grid",
    "factorization": None,
}
SAME = {  # options that the converted model has one value of
    "non_linearity": ("gelu",),
    "complex_data": (False,),
    "use_channel_mlp": (True,),
    "resolution_scaling_factor": (None,),
    "domain_padding": (None, 0),
    "stabilizer": (None,),
    "max_n_modes": (None,),
    "separable": (False,),
    "preactivation": (False,),
    "norm": (None, "instance_norm"),
    "positional_embedding": ("grid", None),
    "factorization": (None, "dense", "tucker", "cp"),
}
SKIPS = {"linear": "linear", "identity": "identity", "soft-gating": "soft_gating", None: "none"}


def config(original: Mapping[str, Any]) -> ConfigDict:
    """Fields of `config.model` that reproduce the original.

    original: `n_modes, hidden_channels, n_layers` and any other argument of the original's
              constructor, spelled as there.
    Raises UserError for options that jaxvol's FNO does not have.
    """
    _known(original)
    has = {**DEFAULTS, **original}
    m, modes = base.model("fno"), _modes(original)
    m.width, m.layers = original["hidden_channels"], original["n_layers"]
    m.modes = tuple(n // 2 for n in modes)
    m.window = "one_sided" if any(n % 2 == 0 for n in modes[:2]) else "symmetric"
    m.lifting_ratio, m.projection_ratio = (
        float(has["lifting_channel_ratio"]),
        float(has["projection_channel_ratio"]),
    )
    m.channel_mlp_ratio = float(has["channel_mlp_expansion"])
    m.bypass, m.channel_mlp_skip = SKIPS[has["fno_skip"]], SKIPS[has["channel_mlp_skip"]]
    m.norm = "instance" if has["norm"] else "none"
    m.coordinates = "all" if has["positional_embedding"] else "none"
    return m


def fno(tensors: Tensors, original: Mapping[str, Any]) -> tuple[nn.Module, dict]:
    """(module, variables) of `neuralop.models.FNO` or `TFNO`.

    The module goes from [B, D, H, W, in_channels] to [B, D, H, W, out_channels].  Complex tensors
    may be split in `<name>.real` and `<name>.imag`.  Raises UserError for options that are not
    supported and for tensors that do not fit.
    """
    chosen, modes = config(original), _modes(original)
    tensors = _complex(tensors)
    names.check("fno", tensors, expected(original, tensors))
    shape = tuple(
        1 if i == 0 and len(original["n_modes"]) == 2 else max(2 * m, 2)
        for i, m in enumerate(chosen.modes)
    )
    fields = {
        name: Field(tuple(f"{name}_{i}" for i in range(original[f"{way}_channels"])))
        for name, way in (("input", "in"), ("target", "out"))
    }
    module = model.make(
        ConfigDict({"precision": "f32", "model": chosen}), Spec(fields, shape, (1.0,) * 3)
    )
    params = {"lifting": _mlp(tensors, "lifting"), "projection": _mlp(tensors, "projection")}
    for i in range(original["n_layers"]):
        params[f"block_{i}"] = _block(tensors, f"fno_blocks.{{}}.{i}", len(modes), chosen)
    # axes of even and odd n_modes have windows of their own
    return module.clone(frequencies=_window(modes)), {"params": params}


def spectral_conv(tensors: Tensors, original: Mapping[str, Any]) -> tuple[nn.Module, dict]:
    """(module, variables) of `SpectralConv`, whose bias is optional.

    [B, D, H, W, in_channels] -> [B, D, H, W, out_channels].
    module.apply(variables, x, output_shape=(D', H', W')) evaluates the result on another grid.
    """
    _known(original)
    modes, tensors = _modes(original), _complex(tensors)
    widths = original["in_channels"], original["out_channels"]
    expected = _weight_shapes("", original, tensors, *widths)
    if "bias" in tensors:
        expected["bias"] = (widths[1], *(1,) * len(original["n_modes"]))
    names.check("spectral_conv", tensors, expected)
    params = _spectral(tensors, "", len(modes))
    if "bias" in tensors:
        params["bias"] = tensors["bias"].ravel()
    return SpectralConv(widths[1], _window(modes), "bias" in tensors), {"params": params}


class SpectralConv(nn.Module):
    """y = K x + b with the spectral convolution K of `jaxvol.ops.fourier`.

    [B, D, H, W, C] -> [B, D, H, W, features].
    """

    features: int
    frequencies: fourier.Window
    use_bias: bool

    @nn.compact
    def __call__(
        self, x: Array, train: bool = False, output_shape: tuple[int, int, int] | None = None
    ) -> Array:
        shape = (*fourier.window_size(self.frequencies), x.shape[-1], self.features)
        init = nn.initializers.normal(x.shape[-1] ** -0.5)
        kernel = tuple(self.param(f"kernel_{part}", init, shape) for part in ("real", "imag"))
        y = fourier.spectral_conv(x, kernel, (), self.frequencies, output_shape=output_shape)
        return (
            y + self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else y
        )


def _known(original: Mapping[str, Any]) -> None:
    """UserError for options that change what the original computes and that jaxvol's FNO lacks."""
    wrong = [
        f"{name}={original[name]!r} (known: {', '.join(map(repr, known))})"
        for name, known in SAME.items()
        if name in original
        and (original[name].lower() if isinstance(original[name], str) else original[name])
        not in known
    ]
    if len(original["n_modes"]) not in (2, 3):
        wrong.append(f"n_modes={original['n_modes']!r} (known: two or three axes)")
    if wrong:
        raise UserError(f"this fno was made with {'; '.join(wrong)}: it cannot be converted")


def _modes(original: Mapping[str, Any]) -> tuple[int, ...]:
    """n_modes along D, H, W; planes have depth 1."""
    return (*(1,) * (3 - len(original["n_modes"])), *original["n_modes"])


def _window(modes: tuple[int, ...]) -> fourier.Window:
    return (*((-(n // 2), n - n // 2 - 1) for n in modes[:2]), (0, modes[2] // 2))


def _complex(tensors: Tensors) -> dict[str, np.ndarray]:
    """Pairs `<name>.real`, `<name>.imag` joined under `<name>`."""
    joined = {}
    for name, value in tensors.items():
        stem, _, part = name.rpartition(".")
        if part == "real" and f"{stem}.imag" in tensors:
            joined[stem] = value + 1j * tensors[f"{stem}.imag"]
        elif not (part == "imag" and f"{stem}.real" in tensors):
            joined[name] = value
    return joined


def _weight_shapes(
    prefix: str, original: Mapping[str, Any], tensors: Tensors, inputs: int, outputs: int
) -> dict[str, tuple]:
    """Names and shapes of the spectral weight.

    The ranks of a factorised one are read from its tensors.
    """
    modes = original["n_modes"]
    sizes = (inputs, outputs, *modes[:-1], modes[-1] // 2 + 1)
    kind = str({**DEFAULTS, **original}["factorization"]).lower()
    if kind in ("none", "dense"):
        return {f"{prefix}weight.tensor": sizes}
    head = f"{prefix}weight.{'core' if kind == 'tucker' else 'weights'}"
    ranks = np.shape(tensors[head]) if head in tensors else ()
    ranks = (
        ranks
        if len(ranks) == (len(sizes) if kind == "tucker" else 1)
        else (1,) * (len(sizes) if kind == "tucker" else 1)
    )
    each = ranks if kind == "tucker" else ranks * len(sizes)
    return {head: ranks} | {
        f"{prefix}weight.factors.factor_{i}": (n, r) for i, (n, r) in enumerate(zip(sizes, each))
    }


def expected(original: Mapping[str, Any], tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the original."""
    has, axes = {**DEFAULTS, **original}, len(original["n_modes"])
    width = original["hidden_channels"]
    shapes = {}

    def mlp(name: str, *widths: int) -> None:
        for i, (a, b) in enumerate(zip(widths, widths[1:])):
            shapes[f"{name}.fcs.{i}.weight"], shapes[f"{name}.fcs.{i}.bias"] = (b, a, 1), (b,)

    def skip(name: str, kind: str | None) -> None:
        if kind == "linear":
            shapes[f"{name}.conv.weight"] = (width, width, 1)
        elif kind == "soft-gating":
            shapes[f"{name}.weight"] = (1, width, *(1,) * axes)

    lifting = int(has["lifting_channel_ratio"] * width)
    inputs = original["in_channels"] + (axes if has["positional_embedding"] else 0)
    mlp("lifting", inputs, *((lifting,) if lifting else ()), width)
    mlp("projection", width, int(has["projection_channel_ratio"] * width), original["out_channels"])
    for i in range(original["n_layers"]):
        shapes |= _weight_shapes(f"fno_blocks.convs.{i}.", original, tensors, width, width)
        shapes[f"fno_blocks.convs.{i}.bias"] = (width, *(1,) * axes)
        skip(f"fno_blocks.fno_skips.{i}", has["fno_skip"])
        mlp(
            f"fno_blocks.channel_mlp.{i}", width, round(has["channel_mlp_expansion"] * width), width
        )
        skip(f"fno_blocks.channel_mlp_skips.{i}", has["channel_mlp_skip"])
    return shapes


def _mlp(tensors: Tensors, name: str, prefix: str = "") -> dict[str, np.ndarray]:
    """Pointwise layers: [out, in, 1] -> [in, out]."""
    layers = {}
    for i in range(2 if f"{name}.fcs.1.weight" in tensors else 1):
        layers[f"{prefix}kernel_{i}"] = tensors[f"{name}.fcs.{i}.weight"][..., 0].T
        layers[f"{prefix}bias_{i}"] = tensors[f"{name}.fcs.{i}.bias"]
    return layers


def _block(tensors: Tensors, pattern: str, axes: int, chosen: ConfigDict) -> dict:
    """Parameters of one block."""
    spectral = pattern.format("convs") + "."
    # an instance norm takes the bias before it away, and has no parameters in the original
    bias = tensors[f"{spectral}bias"].ravel()
    params = {
        "spectral": _spectral(tensors, spectral, axes),
        "bias": bias if chosen.norm == "none" else np.zeros_like(bias),
        **_mlp(tensors, pattern.format("channel_mlp"), "channel_mlp_"),
    }
    for name, theirs in (("bypass", "fno_skips"), ("channel_mlp_skip", "channel_mlp_skips")):
        if chosen[name] == "linear":
            params[name] = tensors[pattern.format(theirs) + ".conv.weight"][..., 0].T
        elif chosen[name] == "soft_gating":
            params[name] = tensors[pattern.format(theirs) + ".weight"].ravel()
    if chosen.norm == "instance":
        for name in ("norm", "channel_mlp_norm"):
            params[name] = {"scale": np.ones_like(bias), "bias": np.zeros_like(bias)}
    return params


def _spectral(tensors: Tensors, prefix: str, axes: int) -> dict[str, np.ndarray]:
    """The dense weight [in, out, k...] -> real and imaginary part, [kd, kh, kw, in, out]."""
    if f"{prefix}weight.tensor" in tensors:
        weight = tensors[f"{prefix}weight.tensor"]
    else:
        factors = [
            tensors[f"{prefix}weight.factors.factor_{i}"]
            for i in range(sum(name.startswith(f"{prefix}weight.factors.") for name in tensors))
        ]
        letters = "abcde"[: len(factors)]
        ranks = letters.upper() if f"{prefix}weight.core" in tensors else "Z" * len(factors)
        head = (
            tensors[f"{prefix}weight.core"]
            if f"{prefix}weight.core" in tensors
            else tensors[f"{prefix}weight.weights"]
        )
        terms = [
            ranks if f"{prefix}weight.core" in tensors else "Z",
            *(a + r for a, r in zip(letters, ranks)),
        ]
        weight = np.einsum(f"{','.join(terms)}->{letters}", head, *factors, optimize=True)
    weight = weight.reshape(
        *weight.shape[:2], *(1,) * (2 + axes - weight.ndim), *weight.shape[2:]
    ).transpose(2, 3, 4, 0, 1)
    return {"kernel_real": weight.real, "kernel_imag": weight.imag}
