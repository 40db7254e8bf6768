"""Small files that promise what they cannot keep: nested codecs, lying offsets and sizes, shared
references, special files, hostile names.

HOSTILE: reader -> name of the case -> (folder, size) -> path.  `size` is how many bytes the file
tries to unfold to; what it declares is 840 bytes of voxels or less, so a reader that keeps to what
is declared does not notice how large it is.
"""

from __future__ import annotations

import gzip
import io
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from fuzz_chunks import HDF5, ZARR
from fuzz_seeds import NAMES, manifests, volume
from fuzz_torch import TORCH, overlapping

Builder = Callable[[Path, int], Path]
PACKED_NPY = {"bz2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    """The header of an .npy file without any values."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def npz(method: str) -> Builder:
    """A header, then zeros for ever, packed by what NumPy never uses."""

    def build(folder: Path, size: int) -> Path:
        with zipfile.ZipFile(folder / "a.npz", "w", PACKED_NPY[method]) as archive:
            with archive.open("rho.npy", "w") as file:
                file.write(npy_header((size // 4,)))
                for _ in range(size >> 20):
                    file.write(bytes(1 << 20))
        return folder / "a.npz"

    return build


def npz_text(folder: Path, size: int) -> Path:
    """A sound array beside one text of many letters, which counts as one value."""
    np.savez_compressed(folder / "a.npz", rho=volume(), note=np.array("a" * (size // 4)))
    return folder / "a.npz"


def npz_header(folder: Path, size: int) -> Path:
    """A header of version 2 that is itself as long as memory."""
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        text = b"\x93NUMPY\x02\x00" + struct.pack("<I", size) + b" " * size
        archive.writestr("rho.npy", text)
    return folder / "a.npz"


def npz_overlap(folder: Path, size: int) -> Path:
    """Two hundred arrays over the same bytes of the archive."""
    data = npy_bytes(np.zeros(size // 400, np.float16))
    return overlapping(folder / "a.npz", [f"x{i}.npy" for i in range(200)], data, {})


def npz_names(folder: Path, size: int) -> Path:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        for name in NAMES:
            archive.writestr(f"{name}.npy", npy_bytes(volume()))
    return folder / "a.npz"


def nifti_bytes(offset: float = 352, flag: int = 0) -> bytes:
    """A header, and the flag that extensions follow."""
    header = nibabel.Nifti1Image(volume(), np.eye(4)).header.copy()
    header["vox_offset"], header["magic"] = offset, b"n+1"
    return header.binaryblock + bytes([flag, 0, 0, 0])


def nifti_offset(folder: Path, size: int) -> Path:
    (folder / "a.nii.gz").write_bytes(gzip.compress(nifti_bytes(size) + bytes(size + 840), 1))
    return folder / "a.nii.gz"


def nifti_extension(folder: Path, size: int) -> Path:
    """An extension that claims to be long, though the voxels begin before its end."""
    text = struct.pack("<ii", size, 6) + bytes(size)
    (folder / "a.nii.gz").write_bytes(gzip.compress(nifti_bytes(1024, 1) + text, 1))
    return folder / "a.nii.gz"


def nifti_tail(folder: Path, size: int) -> Path:
    data = nifti_bytes() + volume().tobytes() + bytes(size)
    (folder / "a.nii.gz").write_bytes(gzip.compress(data, 1))
    return folder / "a.nii.gz"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    # the name of a socket is at most 107 characters long
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    finally:
        os.chdir(here)


SPECIAL = {"pipe": pipe, "device": device, "socket": listening}


def special(name: str) -> dict[str, Builder]:
    """What is no regular file, under the name of one."""

    def builder(make: Callable[[Path], None]) -> Builder:
        def build(folder: Path, size: int) -> Path:
            make(folder / name)
            return folder / name

        return build

    return {kind: builder(make) for kind, make in SPECIAL.items()}


def manifest(change: Callable[[str], str], make: Callable[[Path], None] | None = None) -> Builder:
    """A manifest whose text is changed; `make` puts something at the place of one of its files."""

    def build(folder: Path, size: int) -> Path:
        path = manifests(folder / "in")[0]
        path.write_text(change(path.read_text()))
        if make:
            (path.parent / "c.npy").unlink()
            make(path.parent / "c.npy")
        return path

    return build


def many_rows(text: str) -> str:
    """200,000 rows, all but one of the same patient."""
    return text + "".join(f"a.npy,b.npy,p0{i},train\n" for i in range(200_000))


HOSTILE: dict[str, dict[str, Builder]] = {
    "hdf5": HDF5 | special("a.h5"),
    "npy": special("a.npy"),
    "npz": {
        "bz2": npz("bz2"),
        "lzma": npz("lzma"),
        "text": npz_text,
        "long header": npz_header,
        "shared bytes": npz_overlap,
        "names": npz_names,
    }
    | special("a.npz"),
    "nifti": {"offset": nifti_offset, "extension": nifti_extension, "tail": nifti_tail}
    | special("a.nii")
    | {f"{name} of gzip": build for name, build in special("a.nii.gz").items()},
    "zarr": ZARR | special("a.zarr"),
    "manifest": {
        "NUL": manifest(lambda text: text.replace("c.npy", "c\0.npy")),
        "digits": manifest(lambda text: text.replace("p2", "9" * 6000)),
        "digits in a name": manifest(lambda text: text.replace("c.npy", "9" * 6000)),
        "rows": manifest(many_rows),
    }
    | {f"{name} in a cell": manifest(str, make) for name, make in SPECIAL.items()}
    | special("m.csv"),
    "weights-npz": {"bz2": npz("bz2"), "shared bytes": npz_overlap} | special("a.npz"),
    "safetensors": special("a.safetensors"),
    "torch": TORCH | special("a.pt"),
    "config": special("config.json"),
    "checkpoint": {},
}
