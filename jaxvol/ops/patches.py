"""Patches, windows and positions of a grid of tokens.

Shapes: volumes [B, D, H, W, C], tokens [B, d, h, w, features] where D = d pd, H = h ph, W = w pw
for patches of (pd, ph, pw) voxels.  Only reshapes and permutations whose shapes are known before
anything runs; the batch stays the first axis.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxvol.types import UserError

Array = jax.Array
Triple = tuple[int, int, int]
Flags = tuple[bool, bool, bool]
# logit of a pair of tokens that may not see each other; finite, so that no row is NaN
MASKED = -1e9


def grid_of(shape: Triple, patch: Triple) -> Triple:
    """Tokens along D, H, W.  Raises UserError when the patch does not divide the volume."""
    if any(p < 1 or n % p for n, p in zip(shape, patch)):
        raise UserError(
            f"found a volume of {' x '.join(map(str, shape))} voxels and patches of "
            f"{' x '.join(map(str, patch))}: expected each side to be a multiple of the patch's; "
            "choose another config.model.patch, or crop or pad the volumes (config.predict.tile "
            "cuts them while predicting)."
        )
    return tuple(n // p for n, p in zip(shape, patch))


def steps(patch: Triple) -> list[Triple]:
    """Factors of the patch, in twos as long as there are any.

    (4, 4, 4) -> [(2, 2, 2), (2, 2, 2)], (1, 6, 6) -> [(1, 2, 2), (1, 3, 3)].
    """
    factors = []
    while any(p > 1 for p in patch):
        factors.append(tuple(2 if p % 2 == 0 else p for p in patch))
        patch = tuple(p // f for p, f in zip(patch, factors[-1]))
    return factors or [(1, 1, 1)]


def patchify(x: Array, patch: Triple) -> Array:
    """[B, D, H, W, C] -> [B, d, h, w, pd ph pw C], features in the order (pd, ph, pw, C).

    Raises UserError as `grid_of`.
    """
    b, c = x.shape[0], x.shape[-1]
    (d, h, w), (pd, ph, pw) = grid_of(x.shape[1:4], patch), patch
    return (
        x.reshape(b, d, pd, h, ph, w, pw, c)
        .transpose(0, 1, 3, 5, 2, 4, 6, 7)
        .reshape(b, d, h, w, pd * ph * pw * c)
    )


def unpatchify(tokens: Array, patch: Triple) -> Array:
    """The inverse of `patchify`: [B, d, h, w, pd ph pw C] -> [B, D, H, W, C]."""
    b, d, h, w, _ = tokens.shape
    pd, ph, pw = patch
    x = tokens.reshape(b, d, h, w, pd, ph, pw, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, d * pd, h * ph, w * pw, -1)


def windows(tokens: Array, size: int, shift: int) -> Array:
    """[B, d, h, w, C] -> [B n, size^3, C]: cubes of size^3 tokens.

    First the grid is moved back by `shift` tokens, around its ends.  Raises UserError when `size`
    does not divide the grid.
    """
    grid = tokens.shape[1:4]
    if any(n % size for n in grid):
        raise UserError(
            f"found a grid of {' x '.join(map(str, grid))} tokens and windows of {size}: expected "
            "config.model.window to divide each side; choose another window (0 = none) or patch."
        )
    moved = jnp.roll(tokens, (-shift,) * 3, (1, 2, 3)) if shift else tokens
    cut = patchify(moved, (size,) * 3)
    return cut.reshape(-1, size**3, tokens.shape[-1])


def unwindows(cubes: Array, grid: Triple, size: int, shift: int) -> Array:
    """The inverse of `windows`: [B n, size^3, C] -> [B, d, h, w, C]."""
    d, h, w = (n // size for n in grid)
    tokens = unpatchify(cubes.reshape(-1, d, h, w, size**3 * cubes.shape[-1]), (size,) * 3)
    return jnp.roll(tokens, (shift,) * 3, (1, 2, 3)) if shift else tokens


def window_mask(grid: Triple, size: int, shift: int, periodic: Flags) -> np.ndarray | None:
    """Logits [n, size^3, size^3] that keep apart what a moved grid brings together.

    No window then joins the two ends of an axis that does not wrap: 0 between tokens that may see
    each other, MASKED otherwise; None where all may.  Eq. 3 and figure 4 of Swin
    (arXiv:2103.14030).
    """
    if not shift or all(periodic):
        return None
    ends = [
        np.zeros(n, int) if wraps else (np.roll(np.arange(n), -shift) < shift).astype(int)
        for n, wraps in zip(grid, periodic)
    ]
    label = ends[0][:, None, None] * 4 + ends[1][None, :, None] * 2 + ends[2]
    d, h, w = (n // size for n in grid)
    cubes = (
        label.reshape(d, size, h, size, w, size).transpose(0, 2, 4, 1, 3, 5).reshape(-1, size**3)
    )
    return np.where(cubes[:, :, None] == cubes[:, None, :], 0.0, MASKED).astype(np.float32)


def sincos(grid: Triple, trained: Triple, periodic: Flags, features: int) -> np.ndarray:
    """Fixed positions [d, h, w, features] of amplitude 1.

    A third of the features belongs to each axis, half sines, half cosines.  An axis that wraps has
    the waves that fit into it, 2 pi k (i + 1/2) / n for k = 1, 2, ..., n_trained / 2; any other the
    angles s / 10000^(j / count) of arXiv:1706.03762, s the place of the token's centre on the grid
    of training: positions stretch with the grid.  Features that are left over hold no place.
    """
    count = features // 6
    parts = []
    for axis, (n, base, wraps) in enumerate(zip(grid, trained, periodic)):
        place = (np.arange(n) + 0.5) / n
        if wraps:
            wave = np.arange(1, count + 1)
            angle = 2 * np.pi * place[:, None] * wave * (wave <= base // 2)
        else:
            angle = (place * base - 0.5)[:, None] / 10000 ** (np.arange(count) / max(count, 1))
        line = np.concatenate([np.sin(angle), np.cos(angle)], -1).reshape(
            [n if a == axis else 1 for a in range(3)] + [2 * count]
        )
        parts.append(np.broadcast_to(line, (*grid, 2 * count)))
    rest = np.zeros((*grid, features - 6 * count))
    return np.concatenate([*parts, rest], -1).astype(np.float32)


def offsets(n: int, trained: int, wraps: bool) -> np.ndarray:
    """[n, n]: which entry of a table of relative positions holds token j as seen from token i.

    The table has `offset_count` entries.  Offsets j - i count tokens, so that a kernel keeps its
    physical size on another grid; around the ends of an axis that wraps they are the shorter way.
    Those beyond the table read its ends.
    """
    step = np.arange(n)[None, :] - np.arange(n)[:, None]
    if wraps:
        step = (step + n // 2) % n - n // 2
        return np.clip(step, -(trained // 2), trained - 1 - trained // 2) + trained // 2
    return np.clip(step, 1 - trained, trained - 1) + trained - 1


def offset_count(trained: int, wraps: bool) -> int:
    """Entries of the table that `offsets` points into."""
    return trained if wraps else 2 * trained - 1


def offset_at(trained: int, wraps: bool) -> np.ndarray:
    """The offset, in tokens, of each entry of that table."""
    return np.arange(trained) - trained // 2 if wraps else np.arange(1 - trained, trained)


def one_hot_places(grid: Triple) -> np.ndarray:
    """[T, d + h + w], T = d h w: ones where a token lies along each axis."""
    place = np.array(list(itertools.product(*map(range, grid))))
    return np.concatenate([np.eye(n, dtype=np.float32)[place[:, a]] for a, n in enumerate(grid)], 1)


def spread(rows: tuple[Array, Array, Array]) -> Array:
    """Three arrays [N, n_a, n_a], one per axis a -> [N, T, d + h + w].

    Each says what the place along its axis adds for each place of the other token.  The product
    with `one_hot_places` is the sum of the three for every pair of tokens, [N, T, T], without ever
    holding it.
    """
    grid = tuple(x.shape[1] for x in rows)
    parts = [
        jnp.broadcast_to(
            x.reshape([-1, *(n if a == axis else 1 for a in range(3)), n]), (x.shape[0], *grid, n)
        )
        for axis, (x, n) in enumerate(zip(rows, grid))
    ]
    return jnp.concatenate(parts, -1).reshape(rows[0].shape[0], -1, sum(grid))
