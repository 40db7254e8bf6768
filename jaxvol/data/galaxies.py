"""One random half of the galaxies in a periodic box -> the density of the other half, in crops
(jaxvol/data/crops.py).

Binomial thinning: every galaxy goes to the input with probability p, to the target otherwise:

    input ~ B(counts, p),   target = counts - input

Given the underlying density, the two halves of a Poisson sample are independent: what can be
learned of one from the other is structure, never noise.
"""

from __future__ import annotations

import os
import struct

import numpy as np
from ml_collections import ConfigDict

from jaxvol.data import crops, pipeline
from jaxvol.data.crops import Box
from jaxvol.data.io import files
from jaxvol.data.io.files import FileError
from jaxvol.data.source import Source, digest
from jaxvol.types import Dataset, Field, UserError

ORIGIN = (
    "the file theory/tests/data/gals_Mr19.ff of the source distribution of the Python package "
    "corrfunc (`pip download --no-deps --no-binary :all: corrfunc`), or counts [n, n, n] and "
    "`boxsize` in an .npz made of it"
)


def fields() -> ConfigDict:
    """Density of one random half of a galaxy catalogue -> that of the other half
    (jaxvol/data/galaxies.py), periodic box.
    """
    config = crops.fields()
    config.name = "galaxies"
    # counts (.npz: counts, boxsize) or a Corrfunc catalogue (.ff)
    config.path = ""
    config.grid = 128  # cells along an axis
    config.thinning_fraction = 0.5  # probability that a galaxy goes to the input
    config.thinning_seed = 0  # of the two halves
    config.crop = (16, 32, 32)
    config.periodic = (True, True, True)
    config.unit = "Mpc/h"
    config.input_normaliser = (("log1p", {"floor": 0.0}), ("standardise", {}))
    return config


def make(config) -> Dataset:
    """Dataset of crops of the two halves, each in units of its mean (1 + delta); UserError when the
    file is not given.
    """
    return pipeline.dataset(source(config), config)


def source(config) -> Source:
    """Thin the counts of config.data.path once, with config.data.thinning_seed, and cut crops from
    the two halves.
    """
    data = config.data
    path = os.path.expanduser(data.path)
    if not path:
        raise UserError(f"data.path is empty; expected the path of {ORIGIN}")
    if not os.path.isfile(path):
        raise UserError(
            f"data.path='{path}' is no file, seen from {os.getcwd()}; expected {ORIGIN}"
        )
    counts, box_size = read_counts(path, data.grid)
    halves = thin(counts, data.thinning_fraction, data.thinning_seed)
    densities = {
        leaf: (half / half.mean()).astype(np.float32)[..., None]
        for leaf, half in zip(("input", "target"), halves)
    }
    readers = {
        leaf: (lambda piece, values=values: values[piece]) for leaf, values in densities.items()
    }
    fields = {leaf: Field(channels=("galaxies",), unit="1 + delta") for leaf in densities}
    identity = digest(
        [(leaf, int(half.sum()), hash_of(half)) for leaf, half in zip(densities, halves)], box_size
    )
    spacing = (box_size / data.grid,) * 3
    return crops.crops([Box("galaxies", readers)], counts.shape, spacing, fields, data, identity)


def hash_of(counts: np.ndarray) -> str:
    """Digest of the values of an integer array."""
    return digest(np.ascontiguousarray(counts, np.int64).tobytes())


def thin(counts: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(first half, second half) of non-negative integer counts [n, n, n].

    Each galaxy goes to the first half with probability `fraction`; their sum is `counts`.
    UserError when a half is empty.
    """
    if not 0 < fraction < 1:
        raise UserError(f"data.thinning_fraction={fraction}; expected a number between 0 and 1")
    first = np.random.default_rng(seed).binomial(counts.astype(np.int64), fraction)
    if not 0 < first.sum() < counts.sum():
        raise UserError(
            f"thinning {counts.sum()} galaxies left one half empty; expected a catalogue with "
            "galaxies"
        )
    return first, counts - first


def read_counts(path: str, grid: int) -> tuple[np.ndarray, float]:
    """Counts [grid, grid, grid] (int64) of a periodic box and its size in Mpc/h, from an .npz or a
    Corrfunc .ff catalogue.
    """
    if path.lower().endswith(".ff"):
        positions, box_size = read_fastfood(path)
        return count(positions, box_size, grid), box_size
    counts, size = files.read(path, "counts", ndim=(3,)), files.read(path, "boxsize")
    if counts.shape != (grid,) * 3:
        raise FileError(
            f"{path}, key 'counts': found shape {counts.shape}; expected {(grid,) * 3} "
            f"(data.grid={grid})"
        )
    if counts.dtype.kind not in "iu" or counts.min() < 0:
        raise FileError(
            f"{path}, key 'counts': found {counts.dtype} with minimum {counts.min()}; expected "
            "whole numbers >= 0"
        )
    if size.size != 1 or not 0 < float(size) < np.inf:
        raise FileError(
            f"{path}, key 'boxsize': found {size}; expected one positive number (Mpc/h)"
        )
    return counts.astype(np.int64), float(size)


def count(positions: np.ndarray, box_size: float, grid: int) -> np.ndarray:
    """Galaxies per cell (nearest grid point), [grid, grid, grid], of positions [n, 3] in the
    periodic box.
    """
    cells = np.floor(positions / box_size * grid).astype(np.int64) % grid
    flat = np.ravel_multi_index(tuple(cells.T), (grid,) * 3)
    return np.bincount(flat, minlength=grid**3).reshape((grid,) * 3)


def read_fastfood(path: str) -> tuple[np.ndarray, float]:
    """Positions [n, 3] (float64) and box size of a Corrfunc "fast food" file.

    Fortran records, each between two 4-byte lengths: int32[5] (the second is n), float32[9] (the
    first is the box size), float32[1] (redshift), then x, y and z, float32[n] or float64[n] each;
    what follows (weights) is not read.  FileError where a record or a value does not fit.
    """
    with open(path, "rb") as file:
        records = fortran_records(path, file.read())
    sizes = [len(record) for record in records]
    n = struct.unpack("<5i", records[0])[1] if sizes[:1] == [20] else -1
    if len(sizes) < 6 or sizes[1] != 36 or n < 1 or sizes[3:6] not in ([4 * n] * 3, [8 * n] * 3):
        raise FileError(
            f"{path}: found Fortran records of {sizes[:8]} bytes; expected 20, 36, 4 or 8, and "
            "three of 4 n or 8 n bytes for n galaxies"
        )
    box_size = float(struct.unpack("<9f", records[1])[0])
    dtype = "<f4" if sizes[3] == 4 * n else "<f8"
    axes = [np.frombuffer(record, dtype) for record in records[3:6]]
    positions = np.stack(axes, 1).astype(np.float64)
    if not 0 < box_size < np.inf or not np.isfinite(positions).all():
        raise FileError(
            f"{path}: found box size {box_size} and positions of which "
            f"{np.isfinite(positions).mean():.1%} are finite; expected a positive size and finite "
            "positions"
        )
    return positions, box_size


def fortran_records(path: str, content: bytes) -> list[bytes]:
    """The records of an unformatted Fortran file; FileError where a length does not close one."""
    records, place = [], 0
    while place < len(content):
        size = int.from_bytes(content[place : place + 4], "little", signed=True)
        end = place + 4 + size
        if size < 0 or content[end : end + 4] != content[place : place + 4]:
            raise FileError(
                f"{path}: Fortran record {len(records)} at byte {place} declares {size} bytes and "
                f"is not closed by that length in a file of {len(content)} bytes; the file is "
                "truncated or no fast-food file"
            )
        records.append(content[place + 4 : end])
        place = end + 4
    return records
