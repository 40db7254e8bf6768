"""A small ViT3D and its variables, for the tests of it and of its parts."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.models import vit3d
from jaxvol.types import Field, Spec

PLAIN = {"embed": "linear", "head": "linear", "position": "learned"}


def build(shape=(8, 8, 8), periodic=True, precision="f32", inputs=1, **overrides):
    """A small ViT3D for the given grid."""
    config = ConfigDict({"precision": precision, "model": base.model("vit3d")})
    config.model.update(
        {
            "width": 12,
            "layers": 1,
            "heads": 2,
            "head_features": 8,
            "stem_width": 4,
            "stem_layers": 1,
            "patch": (2, 2, 2),
            **overrides,
        }
    )
    fields = {"input": Field(tuple(f"x{i}" for i in range(inputs))), "target": Field(("y",))}
    periodic = (periodic,) * 3 if isinstance(periodic, bool) else periodic
    return vit3d.make(config, Spec(fields, shape, (1.0,) * 3, periodic=periodic))


def field(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def start(model, x):
    """Variables of the scale they have at the start, without compiling anything.

    But no biases are zero, no scales one and no tables equal.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)

    def value(path, leaf):
        name = path[-1].key
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if name == "kernel" else 0.2
        return jnp.asarray(
            (name == "scale")
            + scale * field(sum(map(ord, str(path))) + leaf.size, *leaf.shape, dtype=leaf.dtype)
        )

    return jax.tree_util.tree_map_with_path(value, shapes)


def apply(model):
    return jax.jit(model.apply, static_argnames=("train", "mutable"))
