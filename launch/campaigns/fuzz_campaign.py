"""Thousands of damaged files for every reader: each is read, or gives one clear error, in bounded
time and memory, and runs nothing.

    python launch/campaigns/fuzz_campaign.py [--count=1000] [--seed=0] [--only=hdf5,npy]
    [--out=FILE.json]

Every reader first gets the hostile files of fuzz_hostile.py: nested codecs, lying offsets and
sizes, shared references, special files, hostile names.  Then mutants of these and of sound files: a
mutant has bytes flipped, cut, inserted, exchanged, its numbers replaced by absurd ones, or its
parts spliced with another file's.  They are read in a process of its own, so that a crash, a hang
or a file that claims terabytes is seen; each may take what it declares, one chunk and 64 MiB of
memory, and SECONDS of computing.  Counted: read, refused (one UserError that names the file), and
defects, which have to be 0.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np  # noqa: E402
from fuzz_hostile import HOSTILE  # noqa: E402
from fuzz_mutants import copied, mutant  # noqa: E402
from fuzz_readers import READERS, declared_bytes  # noqa: E402
from fuzz_seeds import SEEDS, SIDE  # noqa: E402

from jaxvol.types import UserError  # noqa: E402

# address space that reading may add to the process: JAX's threads need theirs
MEMORY = {"checkpoint": 8 << 30}
USUAL = 1 << 30
SLACK = 64 << 20  # bytes of memory beside what a file declares
# bytes of memory for each byte of a file: a row becomes a record, a number of a pickle an object
PER_BYTE = {"manifest": 120, "torch": 40, "hdf5": 20}
SECONDS = 10  # of computing for one file
WAITING = 6  # times as many by the clock: the machine may have other work
HOSTILE_SIZE = 1 << 27  # bytes that a hostile file tries to unfold to
HOSTILE_SHARE = 0.3  # of the mutants


def judge(name: str, path: Path, folder: Path) -> tuple[str, int, float]:
    """("read", "refused" or what was wrong; bytes of memory, seconds of computing)."""
    before = {p.name for p in folder.iterdir()}
    resident, began = _reset_peak(), time.process_time()
    try:
        READERS[name](path)
        verdict = "read"
    except UserError as error:
        text = str(error)
        clear = str(folder) in text and len(text) < 4000
        verdict = "refused" if clear else f"unclear: {text[:200]}"
    except MemoryError:
        verdict = "memory: " + traceback.format_exc().splitlines()[-3].strip()
    except Exception as error:
        verdict = (
            f"{type(error).__name__}: {str(error)[:150]} at "
            f"{traceback.format_exc().splitlines()[-3].strip()[:120]}"
        )
    seconds, memory = time.process_time() - began, max(0, _status("VmHWM") - resident)
    if created := sorted({p.name for p in folder.iterdir()} - before):
        verdict = f"wrote {created}"
    if seconds > SECONDS:
        verdict = f"slow: {seconds:.0f} s"
    if verdict in ("read", "refused") and name not in MEMORY:
        allowed = allowed_bytes(name, path)
        if memory > allowed:
            verdict = f"memory: {memory >> 20} MiB, {allowed >> 20} allowed ({verdict})"
    return verdict, memory, seconds


def allowed_bytes(name: str, path: Path) -> int:
    """Memory that reading the file may take: what it declares, its own size, and SLACK."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    size = sum(p.stat().st_blocks * 512 for p in files)
    per_byte = PER_BYTE[name] if name in PER_BYTE else 4
    return SLACK + per_byte * size + declared_bytes(name, path)


def _reset_peak() -> int:
    """Bytes resident now, from which the peak counts."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    """A number of bytes that Linux keeps on the process; 0 elsewhere."""
    if not Path("/proc/self/status").exists():
        return 0
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field)]
    return int(line.split()[1]) << 10


def prepare(name: str, folder: Path) -> None:
    """Write the sound files, read them, write the hostile ones, and a list of both."""
    sound = SEEDS[name](folder / "sound")
    for path in sound:
        READERS[name](path)  # what is sound is read
    hostile = {}
    for number, (case, build) in enumerate(HOSTILE[name].items() if name in HOSTILE else ()):
        place = folder / "hostile" / str(number) / "in"
        place.mkdir(parents=True)
        hostile[case] = str(build(place, HOSTILE_SIZE))
    sound = [str(p) for p in sorted((folder / "sound").iterdir()) if p.suffix not in SIDE[name]]
    (folder / "list.json").write_text(json.dumps({"sound": sound, "hostile": hostile}))


def work(name: str, first: int, count: int, seed: int, folder: Path, report: Path) -> None:
    """Read the files numbered first .. first + count - 1, hostile ones before mutants, and append
    one line each; runs in a process of its own, which may die.
    """
    limit = _status("VmSize") + (MEMORY[name] if name in MEMORY else USUAL)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout = sys.stderr = open(os.devnull, "w")
    os.dup2(sys.stderr.fileno(), 2)
    listed = json.loads((folder / "list.json").read_text())
    hostile = [(case, Path(path)) for case, path in listed["hostile"].items()]
    sound = [Path(path) for path in listed["sound"]]
    sources = [path for _, path in hostile if copied(path)]
    with report.open("a") as file:
        for number in range(first, first + count):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
            with tempfile.TemporaryDirectory(prefix="jaxvol-fuzz-") as temporary:
                if number < len(hostile):
                    label, path = hostile[number]
                else:
                    room = Path(temporary) / "in"
                    room.mkdir()
                    few = rng.random() < HOSTILE_SHARE and sources
                    label, path = number, mutant(room, sources if few else sound, rng)
                signal.setitimer(signal.ITIMER_PROF, SECONDS + 1)
                signal.alarm(WAITING * SECONDS)
                file.write(json.dumps([label, *judge(name, path, path.parent)]) + "\n")
                file.flush()
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)


def campaign(name: str, count: int, seed: int, folder: Path) -> dict:
    """All files of one reader; a process that dies is a defect of the file it was at, and another
    goes on behind it.
    """
    report, folder = folder / f"{name}.log", folder / name
    folder.mkdir()
    # the parent never uses JAX, threads or the readers: none of it survives a fork
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            prepare(name, folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f"{name}: the sound files cannot be read")
    hostile = list(json.loads((folder / "list.json").read_text())["hostile"])
    tally: dict = {"reader": name, "mutants": count, "hostile": len(hostile), "read": 0}
    tally |= {"refused": 0, "defects": [], "cases": {}, "memory": [0, ""], "seconds": [0.0, ""]}
    done, total = 0, len(hostile) + count
    while done < total:
        report.write_text("")
        pid = os.fork()
        if pid == 0:
            try:
                work(name, done, total - done, seed, folder, report)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        for label, verdict, memory, seconds in lines:
            if verdict in ("read", "refused"):
                tally[verdict] += 1
            else:
                tally["defects"].append([label, verdict])
            if isinstance(label, str):
                tally["cases"][label] = verdict
            tally["memory"] = max(tally["memory"], [memory, str(label)])
            tally["seconds"] = max(tally["seconds"], [seconds, str(label)])
        done += len(lines)
        if done < total:
            code = os.waitstatus_to_exitcode(status)
            hangs = code in (-signal.SIGALRM, -signal.SIGPROF)
            label = hostile[done] if done < len(hostile) else done
            tally["defects"].append([label, "hangs" if hangs else f"process ended with {code}"])
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
            (memory, largest), (seconds, slowest) = row["memory"], row["seconds"]
            print(
                f"| {name:12s} | {row['hostile']:3d} + {row['mutants']:5d} | {row['read']:6d} | "
                f"{row['refused']:6d} | {len(row['defects']):3d} | {memory >> 20:5d} MiB "
                f"({largest}) | {seconds:.1f} s ({slowest}) |   {time.monotonic() - began:.0f} s",
                flush=True,
            )
            for label, verdict in row["defects"][:12]:
                print(f"    {label}: {verdict}", flush=True)
    total = sum(row["hostile"] + row["mutants"] for row in rows)
    print(f"seed {chosen.seed}, {total} files, {sum(len(row['defects']) for row in rows)} defects")
    if chosen.out:
        Path(chosen.out).write_text(
            json.dumps({"seed": chosen.seed, "rows": rows}, indent=1) + "\n"
        )
    return int(any(row["defects"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
