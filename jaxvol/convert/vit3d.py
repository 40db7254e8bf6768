"""Weights of the published ViT3D -> jaxvol/models/vit3d.py.

The original (models/vit/model.py of mmingyeong/dm2ics_model_benchmark, commit c010620) is the plain
ViT: patches, layer norm, linear, layer norm, learned positions, pre-norm blocks, layer norm,
linear.  Its patches have `frame_patch_size` voxels along D, `image_patch_size` along H and W,
features in the order (pd, ph, pw, channel) going in and (channel, pd, ph, pw) coming out.  Its
dropout acts on the attention weights as well, jaxvol's does not: trained further, the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.convert import names
from jaxvol.models import vit3d as model
from jaxvol.types import Field, Spec

Tensors = Mapping[str, np.ndarray]
# what hyper-parameters may leave out
DEFAULTS = {"in_channels": 1, "out_channels": 1, "dim_head": 64, "dropout": 0.1}


def config(original: Mapping[str, Any]) -> ConfigDict:
    """Fields of `config.model` that reproduce the original.

    original: `image_size, frames, image_patch_size, frame_patch_size, dim, depth, heads, mlp_dim`
              and any other argument of the original's constructor, spelled as there
    """
    has, m = {**DEFAULTS, **original}, base.model("vit3d")
    m.patch = _patch(original)
    m.width, m.layers, m.heads, m.head_features = (
        original["dim"],
        original["depth"],
        original["heads"],
        has["dim_head"],
    )
    m.mlp_ratio = original["mlp_dim"] / original["dim"]
    m.embed, m.head, m.position, m.dropout = "linear", "linear", "learned", float(has["dropout"])
    return m


def vit3d(tensors: Tensors, original: Mapping[str, Any]) -> tuple[nn.Module, dict]:
    """(module, variables) of the original.

    [B, frames, image_size, image_size, in_channels] -> [.., out_channels].  Raises UserError when
    the patches do not divide the volume, and for tensors that are missing, superfluous or
    misshapen.
    """
    module = network(original)
    names.check("vit3d", tensors, expected(original))
    width, inner = original["dim"], module.heads * module.head_features

    def norm(name: str) -> dict:
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def linear(name: str) -> dict:
        return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}

    voxels = math.prod(module.patch)
    last = tensors["to_voxel_patch.1.weight"].reshape(module.channels, voxels, width)
    params = {
        "patch_norm": norm("to_patch_embedding.1"),
        "patch": linear("to_patch_embedding.2"),
        "embed_norm": norm("to_patch_embedding.3"),
        "position": tensors["pos_embedding"].reshape(*module.grid, width),
        "head_norm": norm("to_voxel_patch.0"),
        "head": {
            "kernel": last.transpose(2, 1, 0).reshape(width, -1),
            "bias": tensors["to_voxel_patch.1.bias"].reshape(module.channels, voxels).T.ravel(),
        },
    }
    for i in range(module.layers):
        theirs = f"transformer.layers.{i}"
        params[f"block_{i}"] = {
            "attention_norm": norm(f"{theirs}.0.norm"),
            "mlp_norm": norm(f"{theirs}.1.net.0"),
            "attention": {
                "qkv": {"kernel": tensors[f"{theirs}.0.to_qkv.weight"].T},
                "out": linear(f"{theirs}.0.to_out.0")
                if _projects(module)
                else {
                    "kernel": np.eye(inner, dtype=np.float32),
                    "bias": np.zeros(width, np.float32),
                },
            },
            "mlp_in": linear(f"{theirs}.1.net.1"),
            "mlp_out": linear(f"{theirs}.1.net.4"),
        }
    return module, {"params": params}


def network(original: Mapping[str, Any]) -> model.ViT3D:
    """The module alone."""
    has = {**DEFAULTS, **original}
    fields = {
        name: Field(tuple(f"{name}_{i}" for i in range(has[f"{way}_channels"])))
        for name, way in (("input", "in"), ("target", "out"))
    }
    shape = (original["frames"], original["image_size"], original["image_size"])
    return model.make(
        ConfigDict({"precision": "f32", "model": config(original)}), Spec(fields, shape, (1.0,) * 3)
    )


def expected(original: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the original."""
    module, channels = network(original), {**DEFAULTS, **original}["in_channels"]
    width, hidden, inner, voxels = (
        original["dim"],
        original["mlp_dim"],
        module.heads * module.head_features,
        math.prod(module.patch),
    )
    shapes = {"pos_embedding": (1, math.prod(module.grid), width)}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    layer("to_patch_embedding.1", voxels * channels)
    layer("to_patch_embedding.2", width, voxels * channels)
    layer("to_patch_embedding.3", width)
    for i in range(module.layers):
        name = f"transformer.layers.{i}"
        layer(f"{name}.0.norm", width)
        shapes[f"{name}.0.to_qkv.weight"] = (3 * inner, width)
        if _projects(module):
            layer(f"{name}.0.to_out.0", width, inner)
        layer(f"{name}.1.net.0", width)
        layer(f"{name}.1.net.1", hidden, width)
        layer(f"{name}.1.net.4", width, hidden)
    layer("to_voxel_patch.0", width)
    layer("to_voxel_patch.1", voxels * module.channels, width)
    return shapes


def _projects(module: model.ViT3D) -> bool:
    """The original has no projection after a single head that is as wide as the tokens."""
    return module.heads > 1 or module.head_features != module.width


def _patch(original: Mapping[str, Any]) -> tuple[int, int, int]:
    return original["frame_patch_size"], original["image_patch_size"], original["image_patch_size"]
