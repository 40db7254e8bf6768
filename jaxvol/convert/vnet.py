"""Weights of the dm2ics U-Net (`UNet3D`) -> jaxvol/models/vnet.py with `layout="original"`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.convert import names
from jaxvol.models import vnet as model
from jaxvol.types import Field, Spec

WIDTHS = (32, 64, 128, 256, 512)  # of the published class, which has no argument for them


def config(original: Mapping[str, Any]) -> ConfigDict:
    """Fields of `config.model` that reproduce the original; `widths` is optional."""
    m = base.model("vnet")
    m.layout, m.norm, m.padding, m.head, m.fit, m.bias_before_norm = (
        "original",
        "batch",
        "replicate",
        "norm_relu",
        "crop",
        True,
    )
    m.widths = tuple(original["widths"] if "widths" in original else WIDTHS)
    return m


def vnet(tensors: Mapping[str, np.ndarray], original: Mapping[str, Any]) -> tuple[nn.Module, dict]:
    """(module, variables) of the original: [B, D, H, W, in_channels] -> [B, D, H, W, out_channels].

    original: `in_channels, out_channels`, and `widths` where they are not the published ones.
    Raises UserError when the tensors are not those of this network.
    """
    m, expected, variables = config(original), {}, {"params": {}, "batch_stats": {}}
    blocks = list(_blocks(m.widths, original["in_channels"], original["out_channels"]))
    for theirs, _, inputs, outputs, size in blocks:
        expected |= {
            f"{theirs}.conv.weight": (outputs, inputs, size, size, size),
            f"{theirs}.conv.bias": (outputs,),
        }
        expected |= {
            f"{theirs}.bn.{leaf}": (outputs,)
            for leaf in ("weight", "bias", "running_mean", "running_var")
        }
    names.check("vnet", tensors, expected)
    for theirs, ours, *_ in blocks:
        conv = {
            "kernel": tensors[f"{theirs}.conv.weight"].transpose(2, 3, 4, 1, 0),
            "bias": tensors[f"{theirs}.conv.bias"],
        }
        scale = {"scale": tensors[f"{theirs}.bn.weight"], "bias": tensors[f"{theirs}.bn.bias"]}
        stats = {
            "mean": tensors[f"{theirs}.bn.running_mean"],
            "var": tensors[f"{theirs}.bn.running_var"],
        }
        if ours == "head":
            variables["params"] |= {"head": conv, "head_norm": scale}
            variables["batch_stats"]["head_norm"] = stats
        else:
            variables["params"][ours] = {"entry": conv, "norm": scale}
            variables["batch_stats"][ours] = {"norm": stats}
    fields = {
        name: Field(tuple(f"{name}_{i}" for i in range(original[count])))
        for name, count in (("input", "in_channels"), ("target", "out_channels"))
    }
    spec = Spec(fields, (2 ** len(m.widths),) * 3, (1.0,) * 3)
    return model.make(ConfigDict({"precision": "f32", "model": m}), spec), variables


def _blocks(
    widths: tuple[int, ...], inputs: int, outputs: int
) -> Iterator[tuple[str, str, int, int, int]]:
    """Each convolution in order.

    (name there, name here, channels in, channels out, kernel size)
    """
    levels = len(widths)
    above = (inputs, *widths)
    for i in range(levels):
        yield f"enc{i + 1}", f"block_{i}", above[i], above[i + 1], 5
    for i in range(1, levels):
        at = levels - i
        yield f"dec{at}", f"block_{levels - 1 + i}", above[at + 1] + above[at], above[at], 3
    yield "out", "head", above[1] + inputs, outputs, 3
