"""What reads the files of fuzz_seeds.py: (path) -> anything, raising nothing but UserError."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz_seeds import state
from ml_collections import ConfigDict

from jaxvol.config import base
from jaxvol.data import volumes
from jaxvol.data.io import files, open_files, weights
from jaxvol.data.io.numpy_files import open_npz
from jaxvol.data.io.opened import array_bytes
from jaxvol.runtime import provenance

MOST_READ = 100  # arrays of one file


def read_array(path: Path) -> None:
    """Header, values, a piece, attributes, as the datasets do, of the first arrays."""
    for key, (shape, _) in list(files.inspect(str(path)).items())[:MOST_READ]:
        files.header(str(path), key)
        files.read(str(path), key)
        if shape:
            files.read(str(path), key, (0,))
        files.metadata(str(path), key)


def declared_bytes(name: str, path: Path) -> int:
    """Bytes of the arrays that a file declares, and of a chunk of each; nibabel scales voxels to
    float64, and half precision in weights becomes float32.
    """
    try:
        opened = open_files.open_file(str(path)) if READERS[name] is read_array else None
        if name == "weights-npz":
            opened = open_npz(str(path))
    except Exception:
        return 0
    if opened is None:
        return 0
    total = 0
    for key, (shape, dtype) in list(opened.arrays.items())[:MOST_READ]:
        values = array_bytes(shape, dtype)
        wider = {"nifti": 8 * math.prod(shape), "weights-npz": 2 * values}
        try:
            chunk = opened.chunks(key).size
        except Exception:
            chunk = 0
        total += values + (wider[name] if name in wider else 0) + 2 * chunk
    return total


def read_manifest(path: Path) -> None:
    """The items of a manifest, and their headers, with the sound volumes of its own folder."""
    config = ConfigDict(
        {"data": base.data("volumes"), "seed": 0, "batch_size": 1, "precision": "f32"}
    )
    config.data.layout, config.data.ndim = "single", 3
    config.data.manifest.path, config.data.manifest.group, config.data.manifest.split = (
        str(path),
        "patient",
        "split",
    )
    volumes.source(config)


def read_checkpoint(path: Path) -> None:
    """The newest sound step; its leaves have to be those that were saved under that number."""
    import jax

    from jaxvol.training import checkpoint

    logging.disable(logging.CRITICAL)
    store = checkpoint.open_store(path)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here),
        checkpoint.as_dict(jax.eval_shape(lambda: state(0))),
    )
    restored = checkpoint.restore_newest(store, lambda meta: template)
    if restored is None:
        raise AssertionError("a folder with two steps was taken for an empty one")
    jax.tree.map(
        np.testing.assert_array_equal,
        restored[0],
        checkpoint.as_dict(state(restored[1]["step"])),
    )
    store.manager.close()


READERS: dict[str, Callable[[Path], object]] = {
    "hdf5": read_array,
    "npy": read_array,
    "npz": read_array,
    "nifti": read_array,
    "zarr": read_array,
    "manifest": read_manifest,
    "weights-npz": weights.read,
    "safetensors": weights.read,
    "torch": weights.read,
    "config": provenance.read_config,
    "checkpoint": read_checkpoint,
}
