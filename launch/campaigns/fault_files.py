"""The faults of files and disks: full, read-only, damaged, missing, in use.

As in fault_kills.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from launch.campaigns.fault_lab import Lab, Try, newest, step_of
from launch.campaigns.fault_plants import small_files

SMALL_DISK = 8 << 20  # bytes of the file system that fills up


def tmpfs(folder: Path) -> bool:
    """Mount a real small file system; False where that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    """Take the small file system away."""
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(file: Path) -> None:
    """Write into `file` until the disk is full."""
    handle = os.open(file, os.O_CREAT | os.O_WRONLY)
    with contextlib.suppress(OSError):
        while True:
            os.write(handle, b"x" * 4096)
    os.close(handle)


def disk_full(lab: Lab, tries: int) -> Iterator[Try]:
    """A file system of 8 MB fills up at a random moment, gets room again, and the run goes on.

    Where nothing can be mounted there is a limit on the size of files instead.
    """
    for _ in range(tries):
        folder = lab.fresh("disk")
        mounted = tmpfs(folder)
        run, filler = folder / "run", folder / "filler"
        child = lab.start(run, plant=None if mounted else small_files)
        if mounted:
            lab.until_step(child, run, lab.rng.randint(5, 30))
            fill(filler)
        status, output = child.wait(), child.output()
        explained = (
            status == 1
            and ("no space left" in output or "may not grow" in output)
            and "Traceback" not in output.split("jaxvol:")[-1]
        )
        if mounted:
            os.remove(filler)
        yield lab.goes_on(run, note="" if explained else f"status {status}: {output[-400:]}")
        if mounted:
            unmount(folder)


def read_only(lab: Lab, tries: int) -> Iterator[Try]:
    """The workdir becomes read-only between two starts."""
    for _ in range(tries):
        folder = lab.fresh("read-only")
        mounted = tmpfs(folder)
        run = folder / "run"
        lab.broken(run, 8)
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        else:
            run.chmod(0o500)
        child = lab.start(run)
        status, output = child.wait(), child.output()
        explained = status == 1 and "cannot be written" in output and "Traceback" not in output
        if mounted:
            subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        run.chmod(0o700)
        all_may_write = not mounted and os.getuid() == 0  # no permission stops root
        note = "" if explained or all_may_write else f"status {status}: {output[-300:]}"
        yield lab.goes_on(run, must="resumed from step", note=note)
        if mounted:
            unmount(folder)


def file_of(run: Path, step: int, largest: bool) -> Path:
    """The largest data file of a checkpoint, or the small one that describes it."""
    folder = run / "checkpoints" / str(step) / "state"
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    return files[-1] if largest else next(p for p in files if p.name == "_METADATA")


def damaged_checkpoint(lab: Lab, tries: int) -> Iterator[Try]:
    """The newest checkpoint is truncated, has a flipped bit, lacks a file or a folder.

    The one before it is used, and that is said.
    """
    for number in range(tries):
        run = lab.fresh("damage")
        lab.broken(run, 16)
        step = newest(run)
        damage = ("truncated", "flipped", "missing file", "missing folder")[number % 4]
        if damage == "missing folder":
            shutil.rmtree(run / "checkpoints" / str(step) / "state")
        else:
            file = file_of(run, step, largest=damage != "missing file")
            data = bytearray(file.read_bytes())
            if damage == "flipped":
                data[lab.rng.randrange(len(data) // 4, len(data))] ^= 1 << lab.rng.randrange(8)
            file.write_bytes(data[: len(data) // 2] if damage == "truncated" else data)
            if damage == "missing file":
                file.unlink()
        # a flipped bit may lie in no leaf
        yield lab.goes_on(run, must="" if damage == "flipped" else f"{step} IS NOT SOUND")
        lab.tidy(run)


def no_checkpoint_left(lab: Lab, tries: int) -> Iterator[Try]:
    """All checkpoints are gone or damaged: refused, and only --config.resume=fresh starts over."""
    for number in range(tries):
        run = lab.fresh("none-left")
        lab.broken(run, 12)
        # what was being saved stays: half a step is none
        for step in [p for p in (run / "checkpoints").iterdir() if p.name.isdigit()]:
            shutil.rmtree(step if number % 2 == 0 else step / "state")
        child = lab.start(run)
        status, output = child.wait(), child.output()
        refused = status == 1 and "resume=fresh" in output and step_of(run) >= 12
        note = "" if refused else f"status {status}: {output[-300:]}"
        yield lab.goes_on(run, "--config.resume=fresh", note=note)
        lab.tidy(run)


def two_runs(lab: Lab, tries: int) -> Iterator[Try]:
    """A second run in the workdir of a running one is refused with 4 and does not disturb it."""
    for _ in range(tries):
        run = lab.fresh("two")
        child = lab.start(run)
        lab.until_step(child, run, 5)
        began = time.monotonic()
        second = lab.start(run, log=lab.folder / "second.log")
        status = second.wait()
        seconds = time.monotonic() - began
        first = child.wait()
        good = (status, first) == (4, 0) and "in use by another run" in second.output()
        outcome = lab.goes_on(run, note="" if good else f"{status}, {first}")
        yield outcome._replace(seconds=seconds)
        lab.tidy(run)


def corrupted_cache(lab: Lab, tries: int) -> Iterator[Try]:
    """Simulated boxes in the cache are truncated, flipped or missing.

    They are simulated again, bit for bit.
    """
    for number in range(tries):
        run, cache = lab.fresh("cache-run"), lab.fresh("cache")
        shutil.copytree(lab.cache, cache)
        lab.broken(run, 9)
        boxes = sorted(cache.rglob("*.npz"))
        box = boxes[lab.rng.randrange(len(boxes))]
        data = bytearray(box.read_bytes())
        damage = ("truncated", "flipped", "missing")[number % 3]
        if damage == "truncated":
            box.write_bytes(data[: len(data) // 3])
        elif damage == "flipped":
            data[len(data) // 2] ^= 4
            box.write_bytes(data)
        else:
            box.unlink()
        message = "simulating 1 boxes" if damage == "missing" else "damaged and is simulated again"
        yield lab.goes_on(run, must=message, cache=cache)
        lab.tidy(run)
