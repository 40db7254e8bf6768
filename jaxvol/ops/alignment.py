"""Do two fields belong together?  Pairing, orientation and offset of input and target.

All functions take numpy volumes [N, D, H, W], examples of both; nothing is assumed about the
relation but that it has no preferred direction.
"""

from __future__ import annotations

import numpy as np

from jaxvol.ops import rotations


def standardised(x: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance per example; a constant example becomes zero."""
    axes = tuple(range(1, x.ndim))
    x = x.astype(np.float64) - x.mean(axes, keepdims=True, dtype=np.float64)
    scale = np.sqrt((x**2).mean(axes, keepdims=True))
    return x / np.where(scale > 0, scale, 1.0)


def roughness(x: np.ndarray) -> np.ndarray:
    """Squared gradient by central differences, periodic."""
    return sum((np.roll(x, 1, a) - np.roll(x, -1, a)) ** 2 for a in (1, 2, 3))


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of every x_i with every y_j, [N, N]."""
    x, y = (standardised(v).reshape(len(v), -1) for v in (x, y))
    return x @ y.T / x.shape[1]


def pairing(x: np.ndarray, y: np.ndarray) -> float:
    """How much better examples correlate with their own target than with others'.

    In standard errors: the best of x, x^2 and |grad x|^2 against y and y^2; 0 when there are fewer
    than three examples.
    """
    if len(x) < 3:
        return 0.0
    best = 0.0
    for a in (x, x.astype(np.float64) ** 2, roughness(x)):
        for b in (y, y.astype(np.float64) ** 2):
            r = correlations(a, b)
            paired, others = np.diag(r), r[~np.eye(len(r), dtype=bool)]
            # the mean of n pairs against the scatter of what is not paired
            error = max(others.std(), 1e-6) / np.sqrt(len(paired))
            best = max(best, abs(paired.mean() - others.mean()) / error)
    return float(best)


def unpaired(x: np.ndarray, y: np.ndarray) -> float | None:
    """Share of the examples that are no more like their own target than like others'.

    None unless most examples are, by six deviations.
    """
    if len(x) < 4:
        return None
    r = correlations(x, y)
    others = r[~np.eye(len(r), dtype=bool)]
    z = (np.diag(r) - others.mean()) / max(others.std(), 1e-6)
    z = z * np.sign(z[np.abs(z).argmax()])
    return float((z < 2).mean()) if np.quantile(z, 0.75) > 6 else None


def orientation(x: np.ndarray, y: np.ndarray, least: float = 0.1) -> float | None:
    """|correlation| as given minus the best one with y turned or mirrored.

    In standard errors over examples; negative: another orientation fits better.  Only symmetries
    that keep the shape are tried.  None if no orientation reaches a correlation of `least`: there
    is nothing to tell them apart by.
    """
    x, y = standardised(x), standardised(y)
    scores = {}
    for element in rotations.ELEMENTS:
        if tuple(y.shape[1:][a] for a in element.axes) == y.shape[1:]:
            turned = np.stack(
                [np.asarray(rotations.apply(element, v[..., None], "scalar"))[..., 0] for v in y]
            )
            scores[element] = (x * turned).mean((1, 2, 3))
    if max(abs(r.mean()) for r in scores.values()) < least:
        return None
    as_given = scores.pop(rotations.IDENTITY)
    sign = np.sign(as_given.mean()) or 1.0
    others = max(scores.values(), key=lambda r: abs(r.mean()), default=np.zeros_like(as_given))
    difference = sign * as_given - np.abs(others.mean())
    error = difference.std() / np.sqrt(max(len(as_given) - 1, 1))
    return float(difference.mean() / max(error, 1e-9))


def coherence(x: np.ndarray, y: np.ndarray) -> float:
    """|sum X* Y|^2 / (sum |X|^2 sum |Y|^2) over examples, mean of the low frequencies (|k| <= 3).

    It is 1 / N if the fields are unrelated.
    """
    cross, power = spectra(x, y)
    return float((np.abs(cross) ** 2 / np.where(power > 0, power, 1.0)).mean())


def offset(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """By how many voxels y lags x along each axis; NaN on short axes.

    It is the slope of the phase of their cross spectrum.  Without a preferred direction the phase
    is 0 or pi at every k; angles are doubled, so that a change of sign does not count.
    """
    lags = np.full(3, np.nan)
    cross, _ = spectra(x, y)
    for axis in range(3):
        n = x.shape[axis + 1]
        if n < 8:
            continue
        low = [slice(None)] * 3
        high = [slice(None)] * 3
        low[axis], high[axis] = slice(0, -1), slice(1, None)
        step = cross[tuple(high)] * np.conj(cross[tuple(low)])
        lags[axis] = (
            -np.angle((step**2 / np.where(np.abs(step) > 0, np.abs(step), 1.0)).sum())
            / 2
            * n
            / (2 * np.pi)
        )
    return lags


def spectra(x: np.ndarray, y: np.ndarray, reach: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Cross spectrum and product of powers over examples, in the cube |k| <= reach.

    The lowest frequency comes first.
    """
    x, y = standardised(x), standardised(y)
    cubes = []
    for v in (x, y):
        f = np.fft.fftn(v, axes=(1, 2, 3))
        for axis in (1, 2, 3):
            n = f.shape[axis]
            top = min(reach, (n - 1) // 2)
            f = np.take(f, np.arange(-top, top + 1) % n, axis)
        cubes.append(f)
    return (np.conj(cubes[0]) * cubes[1]).sum(0), (np.abs(cubes[0]) ** 2).sum(0) * (
        np.abs(cubes[1]) ** 2
    ).sum(0)


def runs(x: np.ndarray, length: int = 8, varied: bool = False) -> np.ndarray:
    """Hashes of all runs of `length` voxels of [N, D, H, W], along every axis, in both directions.

    varied: leave out runs of fewer than four different values (backgrounds, padding), which say
    nothing
    """
    weights = np.random.default_rng(length).integers(0, 2**64, length, np.uint64) | np.uint64(1)
    hashes = [np.zeros(0, np.uint64)]
    for axis in (a for a in (1, 2, 3) if x.shape[a] >= length):
        window = np.lib.stride_tricks.sliding_window_view(
            x.astype(np.float32), length, axis
        ).reshape(-1, length)
        if varied:
            window = window[(np.diff(np.sort(window, 1), axis=1) != 0).sum(1) >= 3]
        bits = window.view(np.uint32).astype(np.uint64)
        hashes += [bits @ weights, bits @ weights[::-1]]
    return np.concatenate(hashes)


def overlap(known: list[np.ndarray], new: np.ndarray, limit: int = 20000) -> float:
    """Share of the runs of voxels in `new` that occur, bit by bit, in one of the volumes `known`.

    At most `limit` of them are looked up.
    """
    hashes = np.random.default_rng(0).permutation(np.unique(runs(new, varied=True)))[:limit]
    if not len(hashes):
        return 0.0
    seen = np.zeros(len(hashes), bool)
    for volume in known:
        seen |= np.isin(hashes, runs(volume))
    return float(seen.mean())
