"""Weights of the two published Chebyshev KANs -> jaxvol/models/cheb_kan.py.

    tanh:        `ChebKAN_Network` of sfaroughi3/Pub_Scaled_cPIKAN: Cheb_layers.<i>.cheby_coeffs
                 (in, out, K + 1), layer_widths
    layer_norm:  `Scaled_cPIKAN` of StreoCalibration/Scaled-cPIKANs: network.<3 i>.cheby_coeffs
                 (out, in, K + 1), layers_dims

The first leaves the scaling of the domain to its caller: its module here takes coordinates that are
scaled already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.convert import names
from jaxvol.models import cheb_kan as model
from jaxvol.types import Field, Spec


def config(original: Mapping[str, Any]) -> ConfigDict:
    """Fields of `config.model` that reproduce the original.

    The key `layer_widths` or `layers_dims` tells which one it is.
    """
    m = base.model("cheb_kan")
    published = "layer_widths" in original
    widths = original["layer_widths"] if published else original["layers_dims"]
    m.widths, m.degree = (
        tuple(widths[1:-1]),
        original["degree"] if published else original["cheby_order"],
    )
    m.form, m.init, m.scaling = (
        ("tanh", "xavier", "none") if published else ("layer_norm", "kaiming", "affine")
    )
    return m


def cheb_kan(
    tensors: Mapping[str, np.ndarray], original: Mapping[str, Any]
) -> tuple[nn.Module, dict]:
    """(module, variables) of the original: coordinates [.., d] -> [.., channels].

    original: `layer_widths, degree`, or `layers_dims, cheby_order`.  Raises UserError when the
              tensors are not those of this network.
    """
    m, published = config(original), "layer_widths" in original
    widths = tuple(original["layer_widths"] if published else original["layers_dims"])
    step, expected, params = 1 if published else 3, {}, {}
    prefix = "Cheb_layers" if published else "network"
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        shape = (inputs, outputs) if published else (outputs, inputs)
        expected[f"{prefix}.{step * i}.cheby_coeffs"] = (*shape, m.degree + 1)
        if not published and i < len(widths) - 2:
            expected |= {f"network.{3 * i + 1}.{leaf}": (outputs,) for leaf in ("weight", "bias")}
    if not published:
        expected |= dict.fromkeys(("domain_min", "domain_max"), (widths[0],))
    names.check(
        "Chebyshev KAN", {k: v for k, v in tensors.items() if not k.endswith(".arange")}, expected
    )
    for i in range(len(widths) - 1):
        params[f"layer_{i}"] = tensors[f"{prefix}.{step * i}.cheby_coeffs"].transpose(
            (2, 0, 1) if published else (2, 1, 0)
        )
        if not published and i < len(widths) - 2:
            params |= {
                f"norm_{i}_{ours}": tensors[f"network.{3 * i + 1}.{theirs}"]
                for ours, theirs in (("scale", "weight"), ("bias", "bias"))
            }
    bounds = [
        np.asarray(tensors[f"domain_{side}"], float).tolist() if not published else [at] * widths[0]
        for side, at in (("min", -1.0), ("max", 1.0))
    ]
    scaled = {"name": "linear", "low": bounds[0], "high": bounds[1], "clip": False}
    fields = {
        "input": Field(
            tuple(f"x{i}" for i in range(widths[0])), "coordinates", normaliser=(scaled,)
        ),
        "target": Field(tuple(f"u{i}" for i in range(widths[-1]))),
    }
    return model.make(
        ConfigDict({"precision": "f32", "model": m}), Spec(fields, (1, 1, 1), (1.0,) * 3)
    ), {"params": params}
