"""Thousands of damaged files for every reader: each is read, or gives one clear error, in bounded
time and memory, and runs nothing.

    python launch/campaigns/fuzz_campaign.py [--count=1000] [--seed=0] [--only=hdf5,npy]
    [--out=FILE.json]

Every reader starts from sound files; a mutant has bytes flipped, cut, inserted, exchanged, its
numbers replaced by absurd ones, or its parts spliced with another file's.  Mutants are read in a
process of its own with limits on memory and time, so that a crash, a hang or a file that claims
terabytes is seen.  Counted: read, refused (one UserError that names the file), and defects, which
have to be 0.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np  # noqa: E402
from fuzz_seeds import READERS, SEEDS, SIDE  # noqa: E402

from jaxvol.types import UserError  # noqa: E402

# address space that reading may add to the process: JAX's threads need theirs
MEMORY = {"checkpoint": 8 << 30}
USUAL = 1 << 30
SECONDS = 20  # for one mutant
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


def mutant(folder: Path, seeds: list[Path], rng: np.random.Generator) -> Path:
    """A damaged copy of one of the sound files (of a folder: one file in it is damaged, now and
    then removed).
    """
    source, target = seeds[int(rng.integers(len(seeds)))], folder
    path = target / source.name
    if source.is_dir():
        shutil.copytree(source, path)
        files = sorted(p for p in path.rglob("*") if p.is_file())
        victim = files[int(rng.integers(len(files)))]
    else:
        shutil.copy(source, path)
        victim = path
        for volume in source.parent.glob("*.npy") if source.suffix == ".csv" else ():
            shutil.copy(volume, target)  # the files that a manifest names
    other = seeds[int(rng.integers(len(seeds)))]
    spliced = other.read_bytes() if other.is_file() else rng.bytes(256)
    if source.is_dir() and rng.random() < 0.1:
        victim.unlink()
    else:
        victim.write_bytes(
            (inside if rng.random() < 0.6 else mutate)(victim.read_bytes(), spliced or b"x", rng)
        )
    return path


def judge(read: Callable[[Path], object], path: Path, folder: Path) -> str:
    """ "read", "refused", or what was wrong."""
    before = {p.name for p in folder.iterdir()}
    began = time.monotonic()
    try:
        read(path)
        found = "read"
    except UserError as error:
        text = str(error)
        found = "refused" if str(folder) in text and len(text) < 4000 else f"unclear: {text[:200]}"
    except MemoryError:
        found = "memory: " + traceback.format_exc().splitlines()[-3].strip()
    except Exception as error:
        found = (
            f"{type(error).__name__}: {str(error)[:150]} at "
            f"{traceback.format_exc().splitlines()[-3].strip()[:120]}"
        )
    if {p.name for p in folder.iterdir()} - before:
        found = f"wrote {sorted({p.name for p in folder.iterdir()} - before)}"
    return (
        found if time.monotonic() - began < SECONDS else f"slow: {time.monotonic() - began:.0f} s"
    )


def work(name: str, first: int, count: int, seed: int, seeds: list[Path], report: Path) -> None:
    """Read mutants first .. first + count - 1 and append one line each; runs in a process of its
    own, which may die.
    """
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if Path("/proc/self/statm").exists()
        else 1 << 32
    )
    resource.setrlimit(
        resource.RLIMIT_AS, (used + (MEMORY[name] if name in MEMORY else USUAL),) * 2
    )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout = sys.stderr = open(os.devnull, "w")
    os.dup2(sys.stderr.fileno(), 2)
    with report.open("a") as file:
        for number in range(first, first + count):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
            with tempfile.TemporaryDirectory(prefix="jaxvol-fuzz-") as folder:
                room = Path(folder) / "in"
                room.mkdir()
                path = mutant(room, seeds, rng)
                signal.alarm(SECONDS)
                file.write(json.dumps([number, judge(READERS[name], path, room)]) + "\n")
                file.flush()
                signal.alarm(0)


def campaign(name: str, count: int, seed: int, folder: Path) -> dict:
    """All mutants of one reader; a process that dies is a defect of the mutant it was at, and
    another goes on behind it.
    """
    report, done = folder / f"{name}.log", 0
    # the parent never uses JAX, threads or the readers: none of it survives a fork
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for path in SEEDS[name](folder / name):
                READERS[name](path)  # what is sound is read
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f"{name}: the sound files cannot be read")
    seeds = sorted(p for p in (folder / name).iterdir() if p.suffix not in SIDE[name])
    tally: dict = {"reader": name, "mutants": count, "read": 0, "refused": 0, "defects": []}
    while done < count:
        report.write_text("")
        pid = os.fork()
        if pid == 0:
            try:
                work(name, done, count - done, seed, seeds, report)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        for number, verdict in lines:
            if verdict in ("read", "refused"):
                tally[verdict] += 1
            else:
                tally["defects"].append([number, verdict])
        done += len(lines)
        if done < count:
            code = os.waitstatus_to_exitcode(status)
            tally["defects"].append(
                [done, "hangs" if code == -signal.SIGALRM else f"process ended with {code}"]
            )
            done += 1
    return tally


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--count", type=int, default=1000, help="mutants per reader")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", default="")
    arguments.add_argument("--out", default="")
    chosen = arguments.parse_args()
    names = [n for n in chosen.only.split(",") if n] or list(READERS)
    rows = []
    with tempfile.TemporaryDirectory(prefix="jaxvol-fuzz-") as folder:
        for name in names:
            began = time.monotonic()
            row = campaign(name, chosen.count, chosen.seed, Path(folder))
            rows.append(row)
            print(
                f"| {name:12s} | {row['mutants']:6d} | {row['read']:6d} | {row['refused']:6d} | "
                f"{len(row['defects']):3d} |"
                f"   {time.monotonic() - began:.0f} s",
                flush=True,
            )
            for number, verdict in row["defects"][:12]:
                print(f"    mutant {number}: {verdict}", flush=True)
    total = sum(row["mutants"] for row in rows)
    print(
        f"seed {chosen.seed}, {total} mutants, {sum(len(row['defects']) for row in rows)} defects"
    )
    if chosen.out:
        Path(chosen.out).write_text(
            json.dumps({"seed": chosen.seed, "rows": rows}, indent=1) + "\n"
        )
    return int(any(row["defects"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
