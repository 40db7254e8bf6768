"""Files of `torch.save`: a zip archive with a pickle and the bytes of the storages.

Entries are stored, not packed, and lie side by side, so that what is read is no more than the
file; the pickle is followed without being run (jaxvol/data/io/pickle_program.py).
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

from jaxvol.data.io import pickle_program, torch_tensors
from jaxvol.data.io.archive import check_entries
from jaxvol.data.io.pickle_program import Global
from jaxvol.data.io.torch_tensors import STORAGES, Storage, short
from jaxvol.runtime.regular_files import open_regular
from jaxvol.types import UserError

MAX_PROGRAM = 1 << 26  # bytes of the pickle, which is followed at a few megabytes in a second


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, as nested dicts, lists and arrays.

    Raises UserError for an older format, a TorchScript program, packed entries, a pickle that does
    what no state dict needs, and anything else on a damaged file.
    """
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            raise UserError(
                "it is no zip archive: torch before 1.6, or "
                "_use_new_zipfile_serialization=False, wrote it.  Load it with "
                "torch.load(file, weights_only=True) and save it again, with torch.save or as "
                ".safetensors"
            )
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, os.fstat(file.fileno()).st_size)


def _read_archive(archive: zipfile.ZipFile, size: int) -> Any:
    names = set(archive.namelist())
    for info in archive.infolist():
        # torch never packs; what is stored cannot outgrow the file
        if info.compress_type != zipfile.ZIP_STORED:
            raise UserError(
                f"its entry {short(info.filename)} is compressed, which torch.save does not do; "
                "save it again"
            )
    check_entries(archive, size, (zipfile.ZIP_STORED,))
    programs = [n for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(programs) != 1:
        raise UserError(
            f"found {len(programs)} entries */data.pkl in the archive, expected one; is it a "
            "file of torch.save?"
        )
    root = programs[0].removesuffix("data.pkl")
    if any(name.startswith(f"{root}code/") for name in names):
        raise UserError("it is a TorchScript program; save model.state_dict() instead")
    order = f"{root}byteorder"
    big = order in names and archive.read(order).strip() == b"big"
    storages: dict[str, Storage] = {}

    def storage(identity: Any) -> Storage:
        type_, key, count = _identity(identity)
        dtype = STORAGES[type_.name]
        if key not in storages:
            data = archive.read(f"{root}data/{key}")
            storages[key] = torch_tensors.storage(data, dtype, count, big, key)
        if storages[key].itemsize != dtype.itemsize:
            raise UserError(f"storage {key} is used as {storages[key].values.dtype} and as {dtype}")
        return storages[key]

    if archive.getinfo(programs[0]).file_size > MAX_PROGRAM:
        raise UserError(f"its pickle has more than {MAX_PROGRAM} bytes")
    return pickle_program.result(archive.read(programs[0]), storage)


def _identity(identity: Any) -> tuple[Global, str, Any]:
    """Type, key and count of a storage; UserError for any other persistent identity."""
    if (
        not isinstance(identity, tuple)
        or len(identity) != 5
        or identity[0] != "storage"
        or not isinstance(identity[1], Global)
        or identity[1].name not in STORAGES
        or not isinstance(identity[2], str)
        or not re.fullmatch(r"\d{1,20}", identity[2], re.ASCII)
    ):
        raise UserError(
            f"found the storage {short(identity)}, expected one of {', '.join(STORAGES)}"
        )
    return identity[1], identity[2], identity[4]
