"""Phase-shifting interferometry with several wavelengths: fringe images of a surface, and back.

    I_ws = a + b cos(phi_w + delta_s),    phi_w = 4 pi h / lambda_w    (light passes h twice)
    phi_w = atan2(I_3 - I_1, I_0 - I_2)   for delta = 0, pi/2, pi, 3 pi/2  (four-step algorithm)

An image tells phi_w up to whole turns: h up to multiples of lambda_w / 2.  A combination of the
wavelengths' phases with whole numbers n is the phase of an equivalent wavelength, whose turns are
longer (beats, synthetic wavelengths):

    sum_w n_w phi_w = 4 pi h / Lambda,   1 / Lambda = sum_w n_w / lambda_w
    n = (1, -1):    |Lambda| / 2 = lambda_1 lambda_2 / (2 |lambda_2 - lambda_1|)

Lambda / 2 is the unambiguous range: heights that differ by a multiple of it look alike in that
combination, and no algorithm that reads it alone tells them apart.  The noise of the combined phase
grows with sqrt(sum n_w^2).

Wavelengths 5, 5.5, 6.05 and 6.655 um: the beats of neighbours have ranges of 27.5, 30.25 and 33.275
um, (1, -2, 1, 0) and (0, 1, -2, 1) of 302.5 and 332.75 um, and all sixteen images together repeat
after 3327.5 um.

Four-step algorithm: Creath (1988), Progress in Optics 26, 349.  Beats: Cheng and Wyant (1985),
Applied Optics 24, 804.  Unwrapping from the longest to the shortest: Huntley and Saldner (1993),
Applied Optics 32, 3047.  Arrays are numpy's or JAX's; heights and wavelengths share one unit;
images [.., W S] run over the steps first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxvol.types import Array, UserError

STEPS = (0.0, math.pi / 2, math.pi, 3 * math.pi / 2)
Combination = tuple[int, ...]


def check(
    wavelengths: Sequence[float], modulation: float, size: int, noise: float, bits: int
) -> None:
    """UserError for settings of an interferometer or a simulated camera that make no sense."""
    if len(wavelengths) < 2 or min(wavelengths) <= 0:
        raise UserError(
            f"wavelengths is {tuple(wavelengths)}; expected two or more positive numbers in um."
        )
    if size < 3 or bits not in range(17) or noise < 0 or modulation <= 0:
        raise UserError(
            f"found size={size}, bits={bits}, noise={noise}, modulation={modulation} for the "
            "fringe images; expected size >= 3, bits 0 to 16, noise >= 0, modulation > 0."
        )


def render(
    height: Array, wavelengths: Sequence[float], background: float, modulation: float
) -> Array:
    """Images [.., 4 W] in grey levels of heights [..].

    Channel 4 w + s has wavelength w and phase step s.
    """
    xp = np if isinstance(height, np.ndarray) else jnp
    phase = 4 * math.pi * height[..., None] / xp.asarray(wavelengths, height.dtype)
    images = background + modulation * xp.cos(phase[..., None] + xp.asarray(STEPS, height.dtype))
    return images.reshape(*height.shape, -1)


def phases(images: Array) -> Array:
    """Wrapped phases [.., W] in (-pi, pi] of images [.., 4 W].

    They do not depend on background and modulation.
    """
    xp = np if isinstance(images, np.ndarray) else jnp
    steps = images.reshape(*images.shape[:-1], -1, len(STEPS))
    return xp.arctan2(steps[..., 3] - steps[..., 1], steps[..., 0] - steps[..., 2])


def equivalent(wavelengths: Sequence[float], combination: Combination) -> float:
    """Lambda of a combination, with its sign.

    Raises UserError for another number of entries than there are wavelengths, and for one whose
    phase does not change with h.
    """
    if len(combination) != len(wavelengths):
        raise UserError(
            f"the combination {tuple(combination)} has {len(combination)} entries, but there are "
            f"{len(wavelengths)} wavelengths ({', '.join(map(str, wavelengths))}); give one whole "
            "number for each."
        )
    slope = sum(n / wavelength for n, wavelength in zip(combination, wavelengths))
    if abs(slope) < 1e-9 / max(wavelengths):
        raise UserError(
            f"the phases combined by {tuple(combination)} cancel at wavelengths "
            f"{', '.join(map(str, wavelengths))}: they do not depend on the height; choose "
            "another combination."
        )
    return 1 / slope


def reach(wavelengths: Sequence[float], combination: Combination) -> float:
    """Unambiguous range |Lambda| / 2 of a combination."""
    return abs(equivalent(wavelengths, combination)) / 2


def beats(wavelengths: Sequence[float]) -> tuple[Combination, ...]:
    """The chain of `unwrap`: beats of two wavelengths from the longest range to the shortest.

    Those that are longer than a fringe.  From one range to another that is r times shorter a pixel
    goes wrong where the combined phase is off by more than pi / r, so all of them are used.
    """
    count = len(wavelengths)
    pairs = [
        tuple((i == a) - (i == b) for i in range(count)) for a in range(count) for b in range(a)
    ]
    longer = [n for n in pairs if reach(wavelengths, n) > max(wavelengths) / 2]
    return tuple(sorted(longer, key=lambda n: -reach(wavelengths, n)))


def combined(wrapped: Array, combination: Combination) -> Array:
    """sum_w n_w phi_w [..], not wrapped again."""
    xp = np if isinstance(wrapped, np.ndarray) else jnp
    return wrapped @ xp.asarray(combination, wrapped.dtype)


def nearest(near: Array, phase: Array, wavelength: float) -> Array:
    """The height with that phase modulo whole turns that is nearest to `near`.

    h = Lambda (phase + 2 pi m) / 4 pi
    """
    xp = np if isinstance(phase, np.ndarray) else jnp
    turns = xp.round(2 * near / wavelength - phase / (2 * math.pi))
    return wavelength * (phase / (2 * math.pi) + turns) / 2


def unwrap(
    images: Array, wavelengths: Sequence[float], centre: float, chain: tuple[Combination, ...] = ()
) -> Array:
    """Heights [..] of images [.., 4 W] by temporal unwrapping, every pixel alone.

    The first combination gives a height within half its range of `centre`, each further one the
    height with its phase that is nearest to the one before, each single wavelength likewise; the
    mean over those is weighted by 1 / lambda^2, the inverse variance under equal noise.  A height
    outside of [centre - reach / 2, centre + reach / 2), reach being that of the first combination,
    comes out about a whole number of such ranges off: the chain leaves the offset open, and
    `centre` has to be known.  (1, -2, 1, 0) in front of it widens the range tenfold, for eleven
    times less room for noise.
    chain: () = `beats(wavelengths)`.
    """
    wrapped, height = phases(images), centre
    for combination in chain or beats(wavelengths):
        height = nearest(
            height, combined(wrapped, combination), equivalent(wavelengths, combination)
        )
    total = sum(1 / w**2 for w in wavelengths)
    return (
        sum(nearest(height, wrapped[..., i], w) / w**2 for i, w in enumerate(wavelengths)) / total
    )


def compared(
    images: Array, wavelengths: Sequence[float], match: tuple[Combination, ...], modulation: float
) -> Array:
    """What of images [.., 4 W] is compared with a height, [.., k].

    It is scaled so that squares summed over k are a mean over images.
    match = (): the images themselves, the published loss; every fringe is a local minimum of it.
    match = combinations n: b cos(psi_n), b sin(psi_n) of their phases psi_n, so that the squared
    difference is

        b^2 / 2 mean_n |exp(4 pi i h / Lambda_n) - exp(i psi_n)|^2

    unimodal within the range Lambda_n / 2; for n = unit vectors it is the images' but for noise
    that no height explains.
    """
    if not match:
        return images / math.sqrt(images.shape[-1])
    wrapped = phases(images)
    return waves([combined(wrapped, n) for n in match], modulation)


def modelled(
    height: Array,
    wavelengths: Sequence[float],
    match: tuple[Combination, ...],
    background: float,
    modulation: float,
) -> Array:
    """What `compared` gives for images of the heights [..] without noise, [.., k]."""
    if not match:
        return render(height, wavelengths, background, modulation) / math.sqrt(
            len(STEPS) * len(wavelengths)
        )
    return waves([4 * math.pi / equivalent(wavelengths, n) * height for n in match], modulation)


def waves(psi: Sequence[Array], modulation: float) -> Array:
    """[.., 2 n]: b / sqrt(2 n) [cos psi_1 .. cos psi_n, sin psi_1 .. sin psi_n] of n phases."""
    xp = np if isinstance(psi[0], np.ndarray) else jnp
    stacked = xp.stack(psi, -1)
    return (
        xp.concatenate([xp.cos(stacked), xp.sin(stacked)], -1)
        * modulation
        / math.sqrt(2 * len(psi))
    )


def smoothed(height: Array) -> Array:
    """Heights [.., H, W] averaged with the weights 1, 4, 6, 4, 1 along both axes.

    That leaves 0.27 of their noise.  Beyond the edges the surface goes on as its point reflection,
    so that a plane stays one.
    """
    xp = np if isinstance(height, np.ndarray) else jnp
    for axis in (-2, -1):
        inner = xp.moveaxis(height, axis, -1)
        before, behind = (
            2 * inner[..., :1] - inner[..., 2:0:-1],
            2 * inner[..., -1:] - inner[..., -2:-4:-1],
        )
        wide, n = xp.concatenate([before, inner, behind], -1), inner.shape[-1]
        height = xp.moveaxis(
            sum(c * wide[..., i : i + n] for i, c in enumerate((1, 4, 6, 4, 1))) / 16, -1, axis
        )
    return height


def stencil(height: Array) -> Array:
    """Five-point Laplacian of heights [.., H, W] per squared pixel, [.., H - 2, W - 2]."""
    inner = height[..., 1:-1, 1:-1]
    return (
        height[..., 2:, 1:-1]
        + height[..., :-2, 1:-1]
        + height[..., 1:-1, 2:]
        + height[..., 1:-1, :-2]
        - 4 * inner
    )


def expose(
    rng: np.random.Generator,
    height: np.ndarray,
    wavelengths: Sequence[float],
    background: float,
    modulation: float,
    noise: float,
    bits: int,
) -> np.ndarray:
    """What a camera records, [.., 4 W] float64 in grey levels of 0 .. 255.

    That is `render`, normal noise, then whole steps of 255 / (2^bits - 1).
    noise: standard deviation in grey levels.  bits: 0 = neither rounded nor clipped.
    """
    images = render(np.asarray(height, np.float64), wavelengths, background, modulation)
    images = images + noise * rng.normal(size=images.shape) if noise else images
    if not bits:
        return images
    step = 255 / (2**bits - 1)
    return np.clip(np.round(images / step) * step, 0, 255)


def fingerprint(images: np.ndarray, height: np.ndarray | None) -> str:
    """Hexadecimal digest of what was read."""
    digest = hashlib.blake2b(digest_size=16)
    for values in (images, *([] if height is None else [height])):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
