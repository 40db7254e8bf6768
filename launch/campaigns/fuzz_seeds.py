"""Sound files to start from: (folder) -> paths of the files that it was given."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

# imported before the readers' memory is limited
import h5py  # noqa: E402
import nibabel  # noqa: E402
import numpy as np
import safetensors.numpy  # noqa: E402
import zarr  # noqa: E402

from jaxvol.config import base
from jaxvol.runtime import provenance

# of arrays, tensors, columns
NAMES = ("../../x", "/etc/passwd", "a\nb", "\x1b[31mred", "<script>", "\u202egnp", "'\"")
NAMES += ("x" * 60_000,)


def volume() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)


def hdf5(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / "plain.h5", folder / "chunked.h5", folder / "new.h5"]
    for path, options in zip(
        paths,
        ({}, {"chunks": (2, 3, 7), "compression": "gzip", "shuffle": True, "fletcher32": True}, {}),
    ):
        with h5py.File(path, "w", libver="latest" if path.stem == "new" else None) as file:
            node = file.create_dataset("group/rho", data=volume(), **options)
            node.attrs["spacing"] = (1.0, 2.0, 3.0)
            file.attrs["origin"] = "simulated"
    return paths


def npy(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    for name, array in (
        ("a", volume()),
        ("b", np.asfortranarray(volume().astype(">f8"))),
        ("c", np.arange(60, dtype=np.int16)),
    ):
        np.save(folder / f"{name}.npy", array)
    return sorted(folder.iterdir())


def npz(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    np.savez(folder / "a.npz", rho=volume(), boxsize=64.0)
    np.savez_compressed(folder / "b.npz", rho=volume())
    return sorted(folder.iterdir())


def nifti(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    for name, kind in (
        ("a.nii", nibabel.Nifti1Image),
        ("b.nii.gz", nibabel.Nifti1Image),
        ("c.nii", nibabel.Nifti2Image),
    ):
        nibabel.save(kind(volume(), np.diag([1.0, 2.0, 3.0, 1.0])), folder / name)
    return sorted(folder.iterdir())


def zarrs(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    for name, version in (("a.zarr", 3), ("b.zarr", 2)):
        root = zarr.open_group(str(folder / name), mode="w", zarr_format=version)
        node = root.create_array("group/rho", shape=(5, 6, 7), chunks=(2, 3, 7), dtype="f4")
        node[...] = volume()
        node.attrs["spacing"] = [1.0, 2.0, 3.0]
    return sorted(folder.iterdir())


def manifests(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    for name in "abcdef":
        np.save(folder / f"{name}.npy", volume())
    rows = "".join(
        f"{name}.npy,{name}.npy,p{i},{split}\n"
        for i, (name, split) in enumerate(
            zip("abcdef", ("train", "train", "train", "val", "test", "test"))
        )
    )
    (folder / "m.csv").write_text("input,target,patient,split\n" + rows)
    (folder / "q.csv").write_text(
        '﻿input,target,patient,split\n"' + rows.replace(",", '","').replace("\n", '"\n"')[:-1],
        encoding="utf-8",
    )
    return [folder / "m.csv", folder / "q.csv"]


def safetensor_files(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(
        {"w": volume(), "b": np.zeros(3, np.float16)}, folder / "a.safetensors"
    )
    return [folder / "a.safetensors"]


def torch_files(folder: Path) -> list[Path]:
    """What torch.save writes for a state dict, made without torch: a zip archive with a protocol-2
    pickle and the storages.
    """
    folder.mkdir(parents=True)

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def tensor(key: str, kind: str, shape: tuple, strides: tuple) -> bytes:
        count = int(np.prod(shape))
        storage = (
            b"("
            + text("storage")
            + f"ctorch\n{kind}\n".encode()
            + text(key)
            + text("cpu")
            + number(count)
            + b"tQ"
        )
        sizes = (
            b"("
            + b"".join(map(number, shape))
            + b"t"
            + b"("
            + b"".join(map(number, strides))
            + b"t"
        )
        return (
            b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + number(0)
            + sizes
            + b"\x89ccollections\nOrderedDict\n)RtR"
        )

    program = (
        b"\x80\x02ccollections\nOrderedDict\n)Rq\x00("
        + text("w")
        + tensor("0", "FloatStorage", (5, 42), (42, 1))
        + text("b")
        + tensor("1", "HalfStorage", (3,), (1,))
        + b"u."
    )
    for name, suffix in (("a.pt", b""), ("b.pth", b"\0" * 64)):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/byteorder", "little")
            archive.writestr("archive/data/0", volume().tobytes())
            archive.writestr("archive/data/1", np.zeros(3, np.float16).tobytes() + suffix)
            archive.writestr("archive/version", "3\n")
    return sorted(folder.iterdir())


def config_files(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "format_version": provenance.FORMAT_VERSION,
                "config": json.loads(base.common().to_json()),
            }
        )
    )
    return [folder / "config.json"]


def state(value: int):
    """A state whose every leaf is known."""
    import jax
    import jax.numpy as jnp

    from jaxvol.types import TrainState

    net = {
        "w": jax.random.normal(jax.random.key(value), (16, 32)),
        "n": jnp.arange(5),
        "half": jnp.full((3,), 1.5, jnp.bfloat16),
    }
    extra = {"stats": {"net": {}}, "monitor": {"value": jnp.float32(1), "count": jnp.int32(0)}}
    return TrainState(
        jnp.int32(value),
        {"net": net},
        extra,
        {"net": (net["w"] * 2, (jnp.int32(3),))},
        {"ema": {"params": {"net": net}, "stats": {"net": {}}}},
    )


def checkpoints(folder: Path) -> list[Path]:
    """A workdir with two steps."""
    from jaxvol.training import checkpoint

    store = checkpoint.open_store(folder / "run")
    for step in (10, 20):
        checkpoint.save(store, state(step), {"progress": {"best_step": 10}, "phase": 0}, {10})
        store.manager.wait_until_finished()
    store.manager.close()
    return [folder / "run"]


SEEDS: dict[str, Callable[[Path], list[Path]]] = {
    "hdf5": hdf5,
    "npy": npy,
    "npz": npz,
    "nifti": nifti,
    "zarr": zarrs,
    "manifest": manifests,
    "weights-npz": npz,
    "safetensors": safetensor_files,
    "torch": torch_files,
    "config": config_files,
    "checkpoint": checkpoints,
}
# files beside those that are damaged
SIDE = {name: {".npy"} if name == "manifest" else set() for name in SEEDS}
