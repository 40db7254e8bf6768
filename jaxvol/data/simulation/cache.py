"""Simulated boxes on disk: one .npz file each, written whole or not at all, checked when read."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from absl import logging

from jaxvol.runtime import atomic
from jaxvol.types import UserError


def folder(cache_dir: str) -> Path:
    """The folder `cache_dir`, made if needed; when it cannot be written, one in the temporary
    folder, with a message.

    Raises UserError when neither can be written.
    """
    first, second = Path(cache_dir).expanduser(), Path(tempfile.gettempdir()) / "jaxvol"
    for place in (first, second):
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                return place
        except (OSError, RuntimeError) as error:
            reason = error
            if place == first:
                logging.warning(
                    "data.cache_dir %s cannot be written (%s): simulated boxes go to %s",
                    first,
                    error,
                    second,
                )
    raise UserError(
        f"neither data.cache_dir {first} nor {second} can be written ({reason}): "
        "set data.cache_dir to a folder that can"
    )


def name(split: str, index: int) -> str:
    """The name of a box's file."""
    return f"{split}-{index:05d}.npz"


def load(path: Path, grid: int) -> dict[str, np.ndarray]:
    """The fields of one box, [n, n, n, 1] float32; the zip checksum of each is verified by the
    read.

    Raises OSError, ValueError and zipfile.BadZipFile on a damaged file.
    """
    with np.load(path, allow_pickle=False) as file:
        if sorted(file.files) != ["input", "target"]:
            raise ValueError(f"{path} holds {sorted(file.files)}, expected input and target")
        box = {leaf: file[leaf] for leaf in file.files}
    for leaf, values in box.items():
        if (
            values.shape != (grid, grid, grid)
            or values.dtype != np.float32
            or not np.isfinite(values).all()
        ):
            raise ValueError(
                f"{path}, {leaf}: found {values.dtype} {values.shape}, expected finite float32 "
                f"{(grid,) * 3}"
            )
    return {leaf: values[..., None] for leaf, values in box.items()}


def missing(place: Path, sizes: dict[str, int], grid: int) -> list[tuple[str, int]]:
    """(split, index) of every box that the folder `place` lacks or holds damaged; the latter with a
    message.

    sizes: boxes per split
    """
    boxes = []
    for split, size in sizes.items():
        for index in range(size):
            try:
                load(place / name(split, index), grid)
            except FileNotFoundError:
                boxes.append((split, index))
            # damaged bytes raise anything, from SyntaxError to BadZipFile
            except Exception as error:
                logging.warning(
                    "cached box %s is damaged and is simulated again (%s)",
                    place / name(split, index),
                    error,
                )
                boxes.append((split, index))
    return boxes


def save(path: Path, **fields: np.ndarray) -> None:
    """Write one box atomically: another process sees it whole or not at all.

    Raises UserError when it cannot be written.
    """
    try:
        with atomic.replacing(path) as temporary:
            np.savez(temporary, **fields)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error}): free some space or set data.cache_dir to another "
            "folder"
        ) from None
