"""Damage to files: bytes flipped, cut, inserted, exchanged, numbers replaced by absurd ones, parts
spliced with another file's.
"""

from __future__ import annotations

import gzip
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np

LARGEST = 1 << 20  # bytes of a file that is damaged
ABSURD = (
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x00",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
    b"\x00" * 8,
    b"\xff" * 7 + b"\x7f",
)
WORDS = (
    b"99999999999",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b"../../../x",
    b"/etc/passwd",
    b"\x00",
    b"'" * 50,
    b"<script>",
    b'"',
    b",,,,",
    b"\r",
    "é".encode("utf-16"),
)


def mutate(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One to four random changes of `data`; `other` is spliced in."""
    out = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3, 4]))):
        if not out:
            break
        # headers decide most: half of all changes are in the first or last kilobyte
        size = len(out)
        place = (
            int(rng.integers(size)) if rng.random() < 0.5 else int(rng.integers(min(size, 1024)))
        )
        place = size - 1 - place if rng.random() < 0.2 else place
        kind = int(rng.choice([0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 5, 6, 6, 7]))
        if kind == 0:
            out[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[place] = int(rng.integers(256))
        elif kind == 2:
            del out[place:]
        elif kind == 3:
            del out[place : place + int(rng.integers(1, 64))]
        elif kind == 4:
            out[place:place] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == 5:
            value = ABSURD[int(rng.integers(len(ABSURD)))]
            out[place : place + len(value)] = value
        elif kind == 6:
            value = WORDS[int(rng.integers(len(WORDS)))]
            out[place : place + int(rng.integers(0, 12))] = value
        else:
            start = int(rng.integers(len(other)))
            piece = other[start : start + int(rng.integers(1, 256))]
            out[place : place + len(piece)] = piece
    return bytes(out)


def inside(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A zip archive or gzip stream that is sound itself, around a damaged content; any other file
    is damaged as it is.
    """
    if data[:2] == b"\x1f\x8b":
        return gzip.compress(mutate(gzip.decompress(data), other, rng), mtime=0)
    if data[:2] != b"PK":
        return mutate(data, other, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        victim = int(rng.integers(len(old.infolist())))
        for number, info in enumerate(old.infolist()):
            content = old.read(info)
            name = zipfile.ZipInfo(info.filename)
            name.compress_type = info.compress_type
            new.writestr(name, mutate(content, other, rng) if number == victim else content)
    return out.getvalue()


def mutant(folder: Path, sources: list[Path], rng: np.random.Generator) -> Path:
    """A damaged copy of one of the files (of a folder: one file in it is damaged, now and then
    removed).
    """
    source, target = sources[int(rng.integers(len(sources)))], folder
    path = target / source.name
    if source.is_dir():
        shutil.copytree(source, path)
        files = sorted(p for p in path.rglob("*") if p.is_file())
        victim = files[int(rng.integers(len(files)))]
    else:
        shutil.copy(source, path)
        victim = path
        # the files that a manifest names, but nothing that never ends
        for volume in source.parent.glob("*.npy") if source.suffix == ".csv" else ():
            if copied(volume):
                shutil.copy(volume, target)
    other = sources[int(rng.integers(len(sources)))]
    spliced = other.read_bytes() if other.is_file() else rng.bytes(256)
    if source.is_dir() and rng.random() < 0.1:
        victim.unlink()
    else:
        # what unfolds to a hundred megabytes is damaged as it is
        change = inside if rng.random() < 0.6 and "hostile" not in source.parts else mutate
        victim.write_bytes(change(victim.read_bytes(), spliced or b"x", rng))
    return path


def copied(path: Path) -> bool:
    """Whether a file, or all in a folder, can be copied to be damaged."""
    files = list(path.rglob("*")) if path.is_dir() else [path]
    sizes = [p.stat().st_size for p in files if p.is_file() and not p.is_symlink()]
    others = [p for p in files if p.is_symlink() or not (p.is_file() or p.is_dir())]
    return bool(sizes) and not others and sum(sizes) <= LARGEST
