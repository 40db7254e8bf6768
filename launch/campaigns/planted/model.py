"""Faults of the networks: what is missing, bounded, displaced or blind."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.models import discriminator, fno, layers, transformer, vit3d, vnet
from jaxvol.ops import fourier, patches, pointwise, window
from jaxvol.tasks import scoring
from launch.campaigns.planted import Fault, replaced


def linear(slope: float):
    """gelu(x) is replaced by x / 2 + slope * |x|: no bend (0) or next to none."""
    bent = lambda old: lambda x: 0.5 * x + slope * jnp.abs(x)
    return {}, [replaced(pointwise, "gelu", bent)]


def octant(damping: float):
    """The spectral weights act on one Fourier octant; others get `damping` times their share."""

    def make(contract):
        def faulty(spectrum, core, factors, *rest):
            y = contract(spectrum, core, factors, *rest)
            # the third axis is half already
            keep = jnp.zeros(y.shape[1:3]).at[y.shape[1] // 2 :, y.shape[2] // 2 :].set(1.0)
            return (y * (damping + (1 - damping) * keep[None, :, :, None, None])).astype(y.dtype)

        return faulty

    return {}, [replaced(fourier, "contract_again", make)]


def bypassed(cls: type, attribute: str, gain: float, index: int = 1):
    """Block `index` gives its input and `gain` times what it adds."""

    def make(call):
        def faulty(self, x, *arguments, **keywords):
            y = call(self, x, *arguments, **keywords)
            return x + gain * (y - x) if self.name == f"block_{index}" and y.shape == x.shape else y

        return faulty

    return {}, [replaced(cls, attribute, make)]


def bounded(cls: type, function):
    """A function after the head."""

    def make(call):
        def faulty(self, *arguments, **keywords):
            return function(call(self, *arguments, **keywords))

        return faulty

    return {}, [replaced(cls, "__call__", make)]


def displaced(voxels: int):
    """Up-sampled features come back so many voxels away."""
    return {}, [
        replaced(vnet, "brought", lambda old: lambda x, *rest: jnp.roll(old(x, *rest), voxels, 2))
    ]


def permuted(change: str):
    """Patches, or the voxels within them, come back in another order."""

    def make(unpatchify):
        def faulty(tokens, patch):
            if change == "two patches":
                one, two = tokens[:, 0, 0, 0], tokens[:, 0, 0, 1]
                tokens = tokens.at[:, 0, 0, 0].set(two).at[:, 0, 0, 1].set(one)
            if change == "patches mirrored":
                tokens = jnp.flip(tokens, 2)
            if change == "axes exchanged":
                tokens = tokens.swapaxes(1, 3)
            return unpatchify(tokens, patch)

        return faulty

    return {}, [replaced(patches, "unpatchify", make)]


def ungrounded(share: float):
    """The gradient of the position table is cut (0) or only a part of it arrives."""

    def make(place):
        def faulty(self, tokens):
            y = place(self, tokens)
            return jax.lax.stop_gradient(y - tokens) * (1 - share) + tokens + share * (y - tokens)

        return faulty

    return {}, [replaced(vit3d.ViT3D, "place", make)]


def constant_judge(gain: float):
    """The discriminator's features are `gain` times what they should be."""

    def make(call):
        def faulty(self, x, train=False):
            return jax.tree.map(lambda v: gain * v, call(self, x, train))

        return faulty

    return {}, [replaced(discriminator.Discriminator, "__call__", make)]


def frozen_statistics(momentum: float):
    """Running means and variances move `momentum` of the way only."""
    return {}, [replaced(layers, "MOMENTUM", lambda old: momentum)]


def mixed(share: float):
    """Examples of a batch see each other's mean."""

    def make(network):
        def faulty(config, spec, model, group):
            predict = network(config, spec, model, group)

            def leaking(params, extra, batch):
                y, physical = predict(params, extra, batch)
                return y + share * y.mean(0, keepdims=True), physical

            return leaking

        return faulty

    return {}, [replaced(scoring, "network", make)]


def awake(rate: float):
    """Dropout stays active at evaluation."""

    def make(drop):
        def faulty(module, x, p, train):
            if train or p == 0:
                return drop(module, x, p, train)
            keep = jax.random.bernoulli(jax.random.key(0), 1 - p, x.shape)
            return jnp.where(keep, x / (1 - p), 0)

        return faulty

    return {"model.dropout": rate}, [replaced(transformer, "drop", make)]


def beyond_nyquist(modes: int):
    """More modes than the grid has; those that it has not are left out without a word."""

    def make(build):
        return lambda config, spec: build(
            config, dataclasses.replace(spec, shape=tuple(4 * n for n in spec.shape))
        )

    return {"model.modes": (modes,) * 3}, [replaced(fno, "make", make)]


def wrong_slope(factor: float):
    """A custom derivative that is off by a factor."""

    def make(gelu):
        @jax.custom_jvp
        def faulty(x):
            return gelu(x)

        @faulty.defjvp
        def _(primals, tangents):
            value, tangent = jax.jvp(gelu, primals, tangents)
            return value, factor * tangent

        return faulty

    return {}, [replaced(pointwise, "gelu", make)]


def loud(gain: float):
    """First predictions that are `gain` times too large."""
    return {}, [replaced(fno, "OUTPUT_GAIN", lambda old: old * gain)]


def holes(place: str):
    """Tiles that leave voxels out, or that weigh nothing at their rims."""
    if place == "between tiles":
        return {}, [replaced(window, "positions", lambda old: lambda *a: old(*a)[::8])]
    rimless = lambda old: lambda *a: np.where(old(*a) > 2e-3, old(*a), 0.0)
    return {}, [replaced(window, "gaussian", rimless)]


FAULTS = (
    Fault(
        "activations removed", "fno", "structure", (3e-5, 0.0), linear, ("overfit", "prediction")
    ),
    Fault(
        "one Fourier octant only", "fno-dense", "spectra", (0.2, 0.0), octant, ("structure", "fno")
    ),
    Fault(
        "block output dropped (FNO)",
        "fno",
        "structure",
        (0.0,),
        lambda s: bypassed(fno.Block, "__call__", s),
        ("gradients",),
    ),
    Fault(
        "block output dropped (ViT3D)",
        "vit3d",
        "structure",
        (0.0,),
        lambda s: bypassed(transformer.Block, "__call__", s),
        ("gradients",),
    ),
    Fault(
        "norm and ReLU after the head",
        "vnet",
        "structure",
        ("norm_relu",),
        lambda s: ({"model.head": s}, []),
        ("overfit", "prediction", "baselines", "vnet", "numerics", "gradients"),
    ),
    Fault(
        "output bounded",
        "vit3d",
        "structure",
        (2.0, 1.0),
        lambda s: bounded(vit3d.ViT3D, lambda y: s * jnp.tanh(y / s)),
        ("overfit",),
    ),
    Fault(
        "position table not in the loss",
        "vit3d-linear",
        "gradients",
        (0.0,),
        ungrounded,
        ("structure",),
    ),
    Fault("decoder features displaced", "vnet", "vnet", (1, 2), displaced, ()),
    Fault(
        "patches permuted on reassembly",
        "vit3d-linear",
        "vit3d",
        ("two patches", "patches mirrored", "axes exchanged"),
        permuted,
        ("overfit", "baselines", "prediction", "structure"),
    ),
    Fault(
        "collapsed discriminator",
        "pix2pixcc",
        "adversarial",
        (1e-6, 0.0),
        constant_judge,
        ("gradients", "structure"),
    ),
    Fault(
        "batch statistics frozen",
        "vnet-batch",
        "vnet",
        (1e-9, 0.0),
        frozen_statistics,
        ("baselines", "prediction", "overfit"),
    ),
    Fault("examples of a batch mixed", "fno", "structure", (0.02, 0.5), mixed, ("numerics",)),
    Fault("dropout active at evaluation", "vit3d", "structure", (0.02, 0.3), awake),
    Fault("wrong derivative", "fno", "gradients", (1.2, 2.0), wrong_slope, ("overfit",)),
    Fault(
        "first predictions too large",
        "fno",
        "numerics",
        (300.0, 3000.0),
        loud,
        ("overfit", "baselines", "prediction", "gradients", "lr_range", "fno", "spectra"),
    ),
    Fault(
        "modes beyond Nyquist", "fno", "fno", (9, 12), beyond_nyquist, ("structure", "gradients")
    ),
    Fault(
        "tiles that do not cover the volume",
        "fno",
        "tiling",
        ("between tiles", "at the rims"),
        holes,
    ),
)
