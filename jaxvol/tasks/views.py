"""What a discriminator is shown of an image: beside its input, with noise, shifted, re-lit."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxvol.ops import adversarial, masked
from jaxvol.types import Array, Key, Spec

# image [B, D, H, W, K] -> what the discriminator is shown
View = Callable[[Array], Array]


def make_view(
    config: ConfigDict, spec: Spec, x: Array, mask: Array | None, step: Array, key: Key
) -> View:
    """image [B, D, H, W, K] -> (x, image) side by side, [B, D, H, W, channels].

    Missing voxels are 0 in every image, instance noise of standard deviation
    std max(0, 1 - step / steps) is added to it (Sonderby et al. 2017, arXiv:1610.04490), and the
    pair is translated and its intensity changed (DiffAugment, Zhao et al. 2020, arXiv:2006.10738).
    Real and generated images get the same draw: what is matched voxel by voxel stays matched.
    """
    task, keys = config.task, jax.random.split(key, 3)
    std = jnp.asarray(task.noise.std, jnp.float32)
    if task.noise.steps > 0:
        std = std * jnp.maximum(0.0, 1.0 - step / task.noise.steps).astype(jnp.float32)

    def view(image: Array) -> Array:
        image = masked.fill(image, mask)
        if task.noise.std > 0:
            noise = jax.random.normal(keys[0], image.shape, image.dtype)
            image = image + std.astype(image.dtype) * noise
        pair = adversarial.pair(x.astype(image.dtype), image, task.channel_balance)
        if task.augment.translation > 0:
            shift = random_shift(keys[1], pair.shape, task.augment.translation)
            pair = translate(pair, shift, spec.periodic)
        if task.augment.intensity > 0:
            pair = change_intensity(pair, keys[2], task.augment.intensity)
        return pair

    return view


def random_shift(key: Key, shape: tuple[int, ...], fraction: float) -> Array:
    """Whole voxels along D, H, W, uniform in +-round(fraction n), for each example, [B, 3]."""
    reach = jnp.array([round(fraction * n) for n in shape[1:4]])
    return jax.random.randint(key, (shape[0], 3), -reach, reach + 1)


def translate(x: Array, shift: Array, periodic: tuple[bool, bool, bool]) -> Array:
    """x [B, D, H, W, C] with voxel i moved to i + shift [B, 3].

    It wraps along periodic axes; the others are filled with 0.
    """
    for axis, wraps in enumerate(periodic):
        n = x.shape[axis + 1]
        if n > 1:
            source = jnp.arange(n) - shift[:, axis, None]
            x = jax.vmap(lambda volume, index, axis=axis: jnp.take(volume, index, axis))(
                x, source % n
            )
            if not wraps:
                inside = ((source >= 0) & (source < n)).reshape(
                    -1, *(n if a == axis else 1 for a in range(4))
                )
                x = jnp.where(inside, x, 0)
    return x


def change_intensity(x: Array, key: Key, strength: float) -> Array:
    """(1 + c)(x - mean) + mean + b, c and b uniform in +-strength for each example."""
    c, b = jax.random.uniform(key, (2, x.shape[0], 1, 1, 1, 1), x.dtype, -strength, strength)
    mean = jnp.mean(x, (1, 2, 3), keepdims=True)
    return (1 + c) * (x - mean) + mean + b
