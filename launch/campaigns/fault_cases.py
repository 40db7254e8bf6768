"""The faults of one process: each function injects one kind of fault into runs of a lab, `tries`
times, and says what came of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_lab import STEPS, Child, Lab, Try, newest, step_of

SMALL_DISK = 8 << 20  # bytes of the file system that fills up


def die() -> None:
    """SIGKILL to oneself: nothing is flushed, closed or tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(
    module: str,
    path: str,
    number: int,
    before: bool = True,
    when: Callable[..., bool] = lambda *a, **k: True,
) -> Callable[[], None]:
    """A plant: the process dies at the `number`-th call of module.path whose arguments fit, before
    or after it is carried out.
    """

    def plant() -> None:
        import importlib

        owner, (*inner, name), count = importlib.import_module(module), path.split("."), [0]
        for part in inner:
            owner = getattr(owner, part)
        original = getattr(owner, name)

        def dying(*arguments, **keywords):
            fits = when(*arguments, **keywords)
            count[0] += fits
            if fits and count[0] == number and before:
                die()
            found = original(*arguments, **keywords)
            if fits and count[0] == number:
                die()
            return found

        setattr(owner, name, dying)

    return plant


def _step_folder(source, target=None, *_, **__) -> bool:
    return "checkpoints" in str(source) and target is not None and Path(str(target)).name.isdigit()


def half_a_row(number: int) -> Callable[[], None]:
    """A plant: the process dies after half of the `number`-th block of metrics.csv."""

    def plant() -> None:
        from jaxvol.runtime import writer

        original, count = writer.Writer.scalars, [0]

        def torn(self, step, values):
            count[0] += 1
            if count[0] == number:
                self.metrics.write(f"{step},train/net/lo")
                self.metrics.flush()
                die()
            original(self, step, values)

        writer.Writer.scalars = torn

    return plant


def in_background(number: int, seconds: float) -> Callable[[], None]:
    """A plant: the process dies `seconds` after Orbax took the `number`-th save and went on in its
    own threads.
    """

    def plant() -> None:
        from jaxvol.training import checkpoint

        original, count = checkpoint.save, [0]

        def save(*arguments):
            found = original(*arguments)
            count[0] += 1
            if count[0] == number:
                time.sleep(seconds)
                die()
            return found

        checkpoint.save = save

    return plant


PHASES: dict[str, Callable[[int, float], Callable[[], None]]] = {
    "before the checksums": lambda n, s: on_call("jaxvol.training.checkpoint", "checksums", n),
    "after the checksums": lambda n, s: on_call(
        "jaxvol.training.checkpoint", "checksums", n, before=False
    ),
    "while it is written": lambda n, s: in_background(n, s),
    "before the step appears": lambda n, s: on_call("os", "rename", n, when=_step_folder),
    "after the step appeared": lambda n, s: on_call(
        "os", "rename", n, before=False, when=_step_folder
    ),
    "in the removal of an old step": lambda n, s: on_call(
        "shutil", "rmtree", n, when=lambda p, *a, **k: "checkpoints" in str(p)
    ),
    "between save and status.json": lambda n, s: on_call(
        "jaxvol.runtime.writer", "Writer.status", n + 1
    ),
    "in half a row of metrics.csv": lambda n, s: half_a_row(3 * n),
}


def sigkill_in_a_save(lab: Lab, tries: int) -> Iterator[Try]:
    """Every phase of a save in turn; the first, second or a later one of the run."""
    for number in range(tries):
        phase = list(PHASES)[number % len(PHASES)]
        run = lab.fresh("kill-in-save")
        child = lab.start(run, plant=PHASES[phase](lab.rng.randint(2, 5), lab.rng.uniform(0, 0.03)))
        status = child.wait()
        note = "" if status == -signal.SIGKILL else f"{phase}: was not reached (status {status})"
        yield lab.goes_on(run, note=note)
        lab.tidy(run)


def sigkill_while_resuming(lab: Lab, tries: int) -> Iterator[Try]:
    """While metrics.csv is cut, or a checkpoint read."""
    for number in range(tries):
        run = lab.fresh("kill-in-resume")
        lab.broken(run, 8)
        where = (
            on_call(
                "os", "replace", 1, before=number % 4 < 2, when=lambda a, b: "metrics.csv" in str(b)
            )
            if number % 2
            else on_call("jaxvol.training.checkpoint", "read_state", 1, before=number % 4 < 2)
        )
        status = lab.start(run, plant=where).wait()
        yield lab.goes_on(
            run,
            must="resumed from step",
            note="" if status == -signal.SIGKILL else f"was not killed (status {status})",
        )
        lab.tidy(run)


def sigkill_at_random(lab: Lab, tries: int) -> Iterator[Try]:
    """A run is killed again and again, a few steps after each start and at a random moment; then it
    has to end with the same bits.
    """
    kills = 0
    while kills < tries:
        run, pending = lab.fresh("kill"), []
        while kills < tries and newest(run) < STEPS - 12:
            reached = newest(run)
            child = lab.start(run)
            lab.until_step(child, run, max(reached, 0) + lab.rng.randint(4, 10))
            before = child.began
            time.sleep(lab.rng.uniform(0, 0.05))
            child.kill(signal.SIGKILL)
            if child.wait() == -signal.SIGKILL:
                kills += 1
                pending.append(time.monotonic() - before)
        last = lab.goes_on(run)
        yield from (last._replace(seconds=last.seconds) for _ in pending)
        lab.tidy(run)


def signals(lab: Lab, tries: int) -> Iterator[Try]:
    """SIGTERM and SIGUSR1: save, status 75, the step in status.json."""
    for number in range(tries):
        run, kind = lab.fresh("signal"), (signal.SIGTERM, signal.SIGUSR1)[number % 2]
        child = lab.start(run)
        lab.until_step(child, run, lab.rng.randint(5, 40))
        child.kill(kind)
        status, said = child.wait(), child.said()
        saved = json.loads((run / "status.json").read_text())
        good = (
            status == 75
            and saved["reason"] == f"signal {kind.name}"
            and saved["step"] == newest(run)
            and "run the same command" in said
        )
        yield lab.goes_on(
            run,
            must=f"resumed from step {saved['step']}",
            note="" if good else f"status {status}: {said[-200:]}",
        )
        lab.tidy(run)


def budget(lab: Lab, tries: int) -> Iterator[Try]:
    """config.max_hours is spent."""
    for _ in range(tries):
        run = lab.fresh("budget")
        child = lab.start(run, f"--config.max_hours={lab.rng.uniform(2, 4) / 3600}")
        status = child.wait()
        yield lab.goes_on(
            run, note="" if status == 75 and "budget of" in child.said() else f"status {status}"
        )
        lab.tidy(run)


def tmpfs(folder: Path, *options: str) -> bool:
    """Mount a real small file system; False where that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            ",".join((f"size={SMALL_DISK}", *options)),
            "tmpfs",
            str(folder),
        ],
        capture_output=True,
    )
    return done.returncode == 0


def disk_full(lab: Lab, tries: int) -> Iterator[Try]:
    """A file system of 8 MB fills up at a random moment, is given room again, and the run goes on;
    else a limit on files.
    """
    for _ in range(tries):
        folder = lab.fresh("disk")
        mounted = tmpfs(folder)
        run, filler = folder / "run", folder / "filler"
        child = lab.start(run, plant=None if mounted else small_files)
        if mounted:
            lab.until_step(child, run, lab.rng.randint(5, 30))
            file = os.open(filler, os.O_CREAT | os.O_WRONLY)
            with contextlib.suppress(OSError):
                while True:
                    os.write(file, b"x" * 4096)
            os.close(file)
        status, said = child.wait(), child.said()
        told = (
            status == 1
            and ("no space left" in said or "may not grow" in said)
            and "Traceback" not in said.split("jaxvol:")[-1]
        )
        if mounted:
            os.remove(filler)
        yield lab.goes_on(run, note="" if told else f"status {status}: {said[-400:]}")
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def small_files() -> None:
    """A plant where nothing can be mounted: files may not grow beyond 6 kB, less than metrics.csv
    needs.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))


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
        status, said = child.wait(), child.said()
        told = status == 1 and "cannot be written" in said and "Traceback" not in said
        if mounted:
            subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        run.chmod(0o700)
        yield lab.goes_on(
            run,
            must="resumed from step",
            note=""
            if told or (not mounted and os.getuid() == 0)
            else f"status {status}: {said[-300:]}",
        )
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def files_of(run: Path, step: int, largest: bool) -> Path:
    """The largest data file of a checkpoint, or a random small one."""
    found = sorted(
        (p for p in (run / "checkpoints" / str(step) / "state").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    return found[-1] if largest else next(p for p in found if p.name == "_METADATA")


def damaged_checkpoint(lab: Lab, tries: int) -> Iterator[Try]:
    """The newest checkpoint is truncated, has a flipped bit, lacks a file: the one before it is
    used, and that is said.
    """
    for number in range(tries):
        run = lab.fresh("damage")
        lab.broken(run, 16)
        step = newest(run)
        kind = ("truncated", "flipped", "missing file", "missing folder")[number % 4]
        if kind == "missing folder":
            shutil.rmtree(run / "checkpoints" / str(step) / "state")
        else:
            file = files_of(run, step, kind != "missing file")
            data = bytearray(file.read_bytes())
            if kind == "flipped":
                data[lab.rng.randrange(len(data) // 4, len(data))] ^= 1 << lab.rng.randrange(8)
            file.write_bytes(data[: len(data) // 2] if kind == "truncated" else data)
            if kind == "missing file":
                file.unlink()
        # a flipped bit may lie in no leaf
        yield lab.goes_on(run, must="" if kind == "flipped" else f"{step} IS NOT SOUND")
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
        status, said = child.wait(), child.said()
        refused = status == 1 and "resume=fresh" in said and step_of(run) >= 12
        yield lab.goes_on(
            run, "--config.resume=fresh", note="" if refused else f"status {status}: {said[-300:]}"
        )
        lab.tidy(run)


def two_runs(lab: Lab, tries: int) -> Iterator[Try]:
    """A second run in the workdir of a running one is refused with 4, and the first is not
    disturbed.
    """
    for _ in range(tries):
        run = lab.fresh("two")
        child = lab.start(run)
        lab.until_step(child, run, 5)
        began = time.monotonic()
        second = Child(
            [
                "--config=tests/tiny.py:slow".replace(
                    "tests", str(Path(__file__).parents[2] / "tests")
                ),
                f"--workdir={run}",
                f"--config.data.cache_dir={lab.cache}",
            ],
            lab.folder / "second.log",
        )
        status = second.wait()
        seconds = time.monotonic() - began
        first = child.wait()
        found = lab.goes_on(
            run,
            note=""
            if (status, first) == (4, 0) and "in use by another run" in second.said()
            else f"{status}, {first}",
        )
        yield found._replace(seconds=seconds)
        lab.tidy(run)
