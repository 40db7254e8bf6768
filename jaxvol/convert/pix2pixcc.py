"""Weights of the 3D Pix2PixCC port and of pix2pixHD -> models/pix2pixcc.py, discriminator.py.

Generator:      `GeneratorPix2PixCC3D` with InstanceNorm3d or BatchNorm3d, trilinear or transposed
                up-sampling
Discriminators: the port's `MultiScaleDiscriminator3D`, and the two-dimensional
                `MultiscaleDiscriminator` with spectral norm, whose images become volumes of depth 1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.convert import names
from jaxvol.models import discriminator as patches
from jaxvol.models import pix2pixcc
from jaxvol.types import Field, Spec, UserError

Tensors = Mapping[str, np.ndarray]
NORMS = {"InstanceNorm3d": "instance", "BatchNorm3d": "batch"}
PADDINGS = {"replication": "replicate", "reflection": "reflect", "zero": "zero"}
STRIDES = (2, 2, 2, 1, 1)  # of the published discriminators
# a side that leaves every scale some voxels; the module checks the volumes it is given
AMPLE = 256


class Step(NamedTuple):
    """A convolution of the published generator."""

    theirs: str  # name of the module in the original
    ours: tuple[str, ...]  # path of the convolution here
    shape: tuple[int, ...]  # of its weight in torch's layout
    outputs: int
    norm: str  # the original's norm after it, "" = none
    our_norm: tuple[str, ...]


def config(original: Mapping[str, Any]) -> ConfigDict:
    """Fields of `config.model` that reproduce the original generator.

    original: `input_ch, target_ch, n_gf, n_downsample, n_residual, norm_type, padding_type,
              trans_conv`
    Raises UserError for a norm or a padding that is not known.
    """
    for name, known in (("norm_type", NORMS), ("padding_type", PADDINGS)):
        if original[name] not in known:
            raise UserError(
                f"this generator was made with {name}={original[name]!r}: expected one of "
                f"{', '.join(known)}; another one cannot be converted"
            )
    model = base.model("pix2pixcc")
    model.width, model.downs, model.blocks = (
        original["n_gf"],
        original["n_downsample"],
        original["n_residual"],
    )
    model.norm, model.padding = NORMS[original["norm_type"]], PADDINGS[original["padding_type"]]
    model.upsampling = "transposed" if original["trans_conv"] else "trilinear"
    model.skips, model.down_padding, model.bias_before_norm = "none", "zero", True
    return model


def generator(tensors: Tensors, original: Mapping[str, Any]) -> tuple[nn.Module, dict]:
    """(module, variables) of the generator: [B, D, H, W, input_ch] -> [B, D, H, W, target_ch].

    Raises UserError when the tensors are not those of this generator.
    """
    model, steps = config(original), list(_steps(original))
    batch, expected = model.norm == "batch", {}
    for step in steps:
        expected |= {f"{step.theirs}.weight": step.shape, f"{step.theirs}.bias": (step.outputs,)}
        if batch and step.norm:
            expected |= {
                f"{step.norm}.{leaf}": (step.outputs,)
                for leaf in ("weight", "bias", "running_mean", "running_var")
            }
    names.check("generator", tensors, expected)
    variables = {"params": {}, "batch_stats": {}} if batch else {"params": {}}
    for step in steps:
        transposed = step.shape[2] == 3 and original["trans_conv"] and step.ours[0].startswith("up")
        axes = (2, 3, 4, 0, 1) if transposed else (2, 3, 4, 1, 0)
        _put(
            variables["params"],
            step.ours,
            {
                "kernel": tensors[f"{step.theirs}.weight"].transpose(axes),
                "bias": tensors[f"{step.theirs}.bias"],
            },
        )
        if batch and step.norm:
            for room, leaves in (
                ("params", {"scale": "weight", "bias": "bias"}),
                ("batch_stats", {"mean": "running_mean", "var": "running_var"}),
            ):
                _put(
                    variables[room],
                    step.our_norm,
                    {ours: tensors[f"{step.norm}.{leaf}"] for ours, leaf in leaves.items()},
                )
    fields = {
        name: Field(tuple(f"{name}_{i}" for i in range(original[count])))
        for name, count in (("input", "input_ch"), ("target", "target_ch"))
    }
    spec = Spec(fields, (AMPLE,) * 3, (1.0,) * 3)
    return pix2pixcc.make(ConfigDict({"precision": "f32", "model": model}), spec), variables


def discriminator_config(original: Mapping[str, Any]) -> ConfigDict:
    """Fields of `config.task.discriminator` that reproduce the original.

    original: `n_df, n_D` of Pix2PixCC in 3D; `ndf, num_D, n_layers` (3) of the two-dimensional one
    """
    block, flat = patches.fields(), _is_flat(original)
    if flat and original["n_layers"] != len(STRIDES) - 2:
        raise UserError(
            f"this discriminator was made with n_layers={original['n_layers']}: expected "
            f"{len(STRIDES) - 2}; another number cannot be converted"
        )
    block.width, block.scales = (
        (original["ndf"], original["num_D"]) if flat else (original["n_df"], original["n_D"])
    )
    block.max_width, block.strides, block.padding, block.norm = (
        8 * block.width,
        STRIDES,
        "zero",
        "instance",
    )
    block.pad_width, block.spectral_norm, block.count_padding = (
        (2, True, False) if flat else (1, False, True)
    )
    return block


def discriminator(tensors: Tensors, original: Mapping[str, Any]) -> tuple[nn.Module, dict]:
    """(module, variables) of the discriminator: condition and image -> features of every scale.

    The pair is [B, D, H, W, C], of the two-dimensional discriminator [B, 1, H, W, C]; its channels
    are read from the first weight.  Raises UserError when the tensors do not fit.
    """
    block, flat = discriminator_config(original), _is_flat(original)
    names_of = [
        [
            f"discriminator_{s}.layer{i}.0" if flat else f"scale_{s}.blocks.{i}.0"
            for i in range(len(STRIDES))
        ]
        for s in range(block.scales)
    ]
    leaf, cube = (
        ("weight_orig", (patches.KERNEL,) * 2) if flat else ("weight", (patches.KERNEL,) * 3)
    )
    first = (
        np.shape(tensors[f"{names_of[0][0]}.{leaf}"])
        if f"{names_of[0][0]}.{leaf}" in tensors
        else (0, 0)
    )
    widths = [first[1], *(block.width * 2**i for i in range(len(STRIDES) - 1)), 1]
    expected = {}
    for name, a, b in (
        (name, a, b) for scale in names_of for name, a, b in zip(scale, widths, widths[1:])
    ):
        expected |= {f"{name}.{leaf}": (b, a, *cube), f"{name}.bias": (b,)}
        if flat:
            expected |= {f"{name}.weight_u": (b,), f"{name}.weight_v": (a * int(np.prod(cube)),)}
    names.check("discriminator", tensors, expected)
    params, stats = {}, {}
    for s, scale in enumerate(names_of):
        for i, name in enumerate(scale):
            weight = tensors[f"{name}.{leaf}"]
            kernel = weight.transpose(*range(2, weight.ndim), 1, 0)
            params[f"scale_{s}_block_{i}"] = {
                "kernel": kernel[None] if flat else kernel,
                "bias": tensors[f"{name}.bias"],
            }
            if flat:
                v = tensors[f"{name}.weight_v"].reshape(weight.shape[1:])
                stats[f"scale_{s}_block_{i}"] = {
                    "u": tensors[f"{name}.weight_u"],
                    "v": np.moveaxis(v, 0, -1).ravel(),
                }
    spec = Spec(
        {"input": Field(("x",)), "target": Field(("y",))},
        (1 if flat else AMPLE, AMPLE, AMPLE),
        (1.0,) * 3,
    )
    variables = {"params": params, "batch_stats": stats} if flat else {"params": params}
    return patches.discriminator(block, spec, "f32"), variables


def _is_flat(original: Mapping[str, Any]) -> bool:
    return "ndf" in original


def _steps(original: Mapping[str, Any]) -> Iterator[Step]:
    """The convolutions in order; the original is one Sequential, whose layers are numbered."""
    width, downs, blocks = original["n_gf"], original["n_downsample"], original["n_residual"]
    yield _step("1", "2", "first", (original["input_ch"], width), pix2pixcc.OUTER)
    at = 4
    for i in range(downs):
        widths = width * 2**i, width * 2 ** (i + 1)
        yield _step(f"{at}", f"{at + 1}", f"down_{i}", widths, pix2pixcc.DOWN)
        at += 3
    wide = width * 2**downs
    for i in range(blocks):
        for j in (0, 1):
            conv, norm = f"{at}.block.{4 * j + 1}", f"{at}.block.{4 * j + 2}"
            yield _step(conv, norm, f"block_{i}", (wide, wide), pix2pixcc.INNER, f"_{j}")
        at += 1
    transposed = original["trans_conv"]
    # layers before the convolution, and of the step up
    before, length = (0, 3) if transposed else (2, 5)
    for i in reversed(range(downs)):
        conv, norm, widths = (
            f"{at + before}",
            f"{at + before + 1}",
            (width * 2 ** (i + 1), width * 2**i),
        )
        yield _step(conv, norm, f"up_{i}", widths, pix2pixcc.INNER, transposed=transposed)
        at += length
    last = _step(f"{at + 1}", "", "last", (width, original["target_ch"]), pix2pixcc.OUTER)
    yield last._replace(ours=("last",), our_norm=())


def _step(
    conv: str,
    norm: str,
    block: str,
    widths: tuple[int, int],
    size: int,
    suffix: str = "",
    transposed: bool = False,
) -> Step:
    """The Step of the original's layers `conv` and `norm`, which are those of `block` here."""
    return Step(
        f"model.{conv}",
        (block, f"conv{suffix}"),
        (widths if transposed else widths[::-1]) + (size,) * 3,
        widths[1],
        norm and f"model.{norm}",
        (block, f"norm{suffix}"),
    )


def _put(tree: dict, path: tuple[str, ...], leaves: dict[str, np.ndarray]) -> None:
    for name in path:
        tree = tree.setdefault(name, {})
    tree.update(leaves)
