"""Files of `torch.save` that are small and stand for endless work: shared references in a pickle,
storages over the same bytes.  Made without torch.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from fuzz_seeds import NAMES

Builder = Callable[[Path, int], Path]
DEPTH = 80  # tuples of two inside one another: 2^80 leaves


def overlapping(path: Path, names: list[str], data: bytes, others: dict[str, bytes]) -> Path:
    """A zip archive whose entries `names` all have the same bytes; `others` lie by themselves."""
    headers, place = [], 0
    lengths = [30 + len(name) for name in names]
    start = sum(lengths)
    crc = zlib.crc32(data)
    parts, central = [], []
    for name, length in zip(names, lengths, strict=True):
        # what lies between a header and the data is a field that readers skip
        extra = start - place - length
        fixed = struct.pack("<HHHHHIII", 20, 0, 0, 0, 33, crc, len(data), len(data))
        parts.append(b"PK\3\4" + fixed + struct.pack("<HH", len(name), extra) + name.encode())
        headers.append((name, place, fixed))
        place += length
    body = b"".join(parts) + data
    for name, content in others.items():
        fixed = struct.pack(
            "<HHHHHIII", 20, 0, 0, 0, 33, zlib.crc32(content), len(content), len(content)
        )
        headers.append((name, len(body), fixed))
        body += b"PK\3\4" + fixed + struct.pack("<HH", len(name), 0) + name.encode() + content
    for name, offset, fixed in headers:
        tail = struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, offset)
        central.append(b"PK\1\2" + struct.pack("<H", 20) + fixed + tail + name.encode())
    index = b"".join(central)
    end = struct.pack("<HHHHIIH", 0, 0, len(headers), len(headers), len(index), len(body), 0)
    path.write_bytes(body + index + b"PK\5\6" + end)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def storage(key: str = "0", count: int = 12, kind: str = "Float") -> bytes:
    name = f"ctorch\n{kind}Storage\n".encode()
    return b"(" + text("storage") + name + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(size: bytes, stride: bytes, where: bytes = b"") -> bytes:
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    rest = b"\x89ccollections\nOrderedDict\n)RtR"
    return rebuild + (where or storage()) + number(0) + size + stride + rest


def row(count: int) -> bytes:
    """Size (count,) and strides (1,) of a tensor."""
    return b"(" + number(count) + b"t" + b"(" + number(1) + b"t"


def nested() -> bytes:
    """A tuple of two references to a tuple of two references ..., on the stack."""
    pairs = (b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(DEPTH))
    return b")q\0" + b"".join(pairs)


def entries(values: bytes) -> bytes:
    return b"}(" + values + b"u"


def program(body: bytes, storages: Callable[[int], dict[str, bytes]] | None = None) -> Builder:
    """A file with this pickle and twelve numbers, or other storages."""

    def build(folder: Path, size: int) -> Path:
        with zipfile.ZipFile(folder / "a.pt", "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
            contents = storages(size) if storages else {"0": bytes(48)}
            for key, data in contents.items():
                archive.writestr(f"archive/data/{key}", data)
        return folder / "a.pt"

    return build


def shared_halves(folder: Path, size: int) -> Path:
    """One storage of half-precision numbers under three hundred names."""
    count = size // 600
    where = storage(count=count, kind="Half")
    names = b"".join(text(f"w{i}") + tensor(row(count), b"", where) for i in range(300))
    return program(entries(names), lambda n: {"0": bytes(2 * count)})(folder, size)


def shared_bytes(folder: Path, size: int) -> Path:
    """Two hundred storages over the same bytes of the archive."""
    count = size // 800
    tensors = b"".join(
        text(f"w{i}") + tensor(row(count), b"", storage(str(i), count)) for i in range(200)
    )
    names = [f"archive/data/{i}" for i in range(200)]
    others = {"archive/data.pkl": b"\x80\x02" + entries(tensors) + b"."}
    return overlapping(folder / "a.pt", names, bytes(4 * count), others)


SOUND = text("w") + tensor(row(12), b"")
IDENTITY = b"(" + text("storage") + nested() + text("0") + text("cpu") + number(1) + b"tQ"
PAIRS = b"](" + b"".join(b"]" + b"(" + number(i) + b"Ne" for i in range(20_000)) + b"eq\1"
COPIES = b"ccollections\nOrderedDict\nq\2" + b"h\2h\1\x85R" * 20_000
AXES = b"(" + b"K\1" * 200_000 + b"tq\1"
NAME = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\1"
HUGE = b"\x8b" + struct.pack("<i", 1 << 18) + b"\x7f" * (1 << 18) + b"q\1"
TORCH: dict[str, Builder] = {
    "nested identity": program(entries(text("w") + IDENTITY)),
    "nested size": program(entries(text("w") + tensor(nested(), b"(" + number(1) + b"t"))),
    "nested key": program(entries(nested() + b"N" + SOUND)),
    "nested pair": program(b"ccollections\nOrderedDict\n](](" + nested() + b"Nee\x85R"),
    "pairs copied": program(PAIRS + COPIES),
    "many axes": program(
        AXES + entries(b"".join(text(f"w{i}") + tensor(b"h\1", b"h\1") for i in range(100)))
    ),
    "names": program(entries(b"".join(text(n) + tensor(row(12), b"") for n in NAMES))),
    "two dicts": program(
        entries(b"".join(text(n) + entries(text(n) + tensor(row(12), b"")) for n in NAMES))
    ),
    "long names": program(NAME + b"h\1h\1\x93" * 2000),
    "huge keys": program(HUGE + b"}h\1Ns" * 20_000),
    "shared halves": shared_halves,
    "shared bytes": shared_bytes,
}
