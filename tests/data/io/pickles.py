"""Files as torch.save writes them, out of pickle instructions, made without torch."""

import struct
import zipfile
from typing import NamedTuple

import numpy as np


class Named(NamedTuple):
    name: str  # "module attribute"


class Call(NamedTuple):
    name: str
    arguments: tuple


class Persistent(NamedTuple):
    identity: tuple


def opcodes(value):
    """The pickle instructions, protocol 2, that make `value`."""
    if isinstance(value, Named):
        return b"c" + value.name.replace(" ", "\n").encode() + b"\n"
    if isinstance(value, Call):
        return opcodes(Named(value.name)) + opcodes(value.arguments) + b"R"
    if isinstance(value, Persistent):
        return opcodes(value.identity) + b"Q"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
    if isinstance(value, (tuple, list)):
        first, last = (b"(", b"t") if isinstance(value, tuple) else (b"](", b"e")
        return first + b"".join(map(opcodes, value)) + last
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return value  # instructions as they are
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, int) and not isinstance(value, bool):
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    return {None: b"N", True: b"\x88", False: b"\x89"}[value]


def tensor(kind, key, count, size, stride, offset=0):
    storage = Persistent(("storage", Named(f"torch {kind}Storage"), key, "cpu", count))
    return Call(
        "torch._utils _rebuild_tensor_v2",
        (storage, offset, size, stride, False, Call("collections OrderedDict", ())),
    )


def save(path, tree, compression=zipfile.ZIP_STORED, **storages):
    """A file as torch.save writes it; storages: d0 = array, ..."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + opcodes(tree) + b".")
        archive.writestr("archive/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key[1:]}", np.ascontiguousarray(array).tobytes())
    return path
