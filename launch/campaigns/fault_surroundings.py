"""The faults of a run's surroundings: numbers, memory, clock, display, home, input, the other
process.  As in fault_cases.py.
"""

from __future__ import annotations

import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fault_cases import die
from fault_lab import LIMIT_S, Child, Lab, Try, newest, step_of

BOUND_S = 90  # within which a process ends after another one died


def at_step(number: int, action: Callable) -> Callable[[], None]:
    """A plant: `action(host batch)` returns the batch of the `number`-th update of this attempt."""

    def plant() -> None:
        from jaxvol.training import sharding

        original, count = sharding.put, [0]

        def put(mesh, batch, size):
            if "_mask" not in batch:
                count[0] += 1
                batch = action(batch) if count[0] == number else batch
            return original(mesh, batch, size)

        sharding.put = put

    return plant


def huge(batch: dict) -> dict:
    """A batch that is finite itself and whose gradient is not."""
    return {**batch, "input": batch["input"] * 1e30}


def nan_in_a_gradient(lab: Lab, tries: int) -> Iterator[Try]:
    """A batch that makes the gradient overflow: status 3, the tensors are named, the last
    checkpoint is from before.
    """
    for _ in range(tries):
        run, step = lab.fresh("nan"), lab.rng.randint(6, 20)
        child = lab.start(run, plant=at_step(step, huge))
        status, said = child.wait(), child.said()
        good = (
            status == 3
            and "was refused because something is not finite" in said
            and 0 <= newest(run) < step
        )
        yield lab.goes_on(
            run, must="resumed from step", note="" if good else f"status {status}: {said[-300:]}"
        )
        lab.tidy(run)


def nan_in_data(lab: Lab, tries: int) -> Iterator[Try]:
    """A NaN in a file of the data: status 1 with file and voxel; mended, the run goes on."""
    import numpy as np

    for _ in range(tries):
        run, cache = lab.fresh("nan-data"), lab.fresh("cache")
        shutil.copytree(lab.cache, cache)
        lab.broken(run, 9)

        def poison() -> None:
            from jaxvol.data import cosmology

            original = cosmology._load

            def load(path, grid):
                found = original(path, grid)
                if path.name.startswith("train"):
                    found["target"] = np.where(
                        np.arange(grid)[:, None, None, None] == 3, np.nan, found["target"]
                    )
                return found

            cosmology._load = load

        child = lab.start(run, plant=poison, cache=cache)
        status, said = child.wait(), child.said()
        good = status == 1 and "non-finite values, the first at" in said
        yield lab.goes_on(
            run,
            must="resumed from step",
            note="" if good else f"status {status}: {said[-300:]}",
            cache=cache,
        )
        lab.tidy(run)


def corrupted_cache(lab: Lab, tries: int) -> Iterator[Try]:
    """Simulated boxes in the cache are truncated, flipped or missing: they are simulated again, bit
    for bit.
    """
    for number in range(tries):
        run, cache = lab.fresh("cache-run"), lab.fresh("cache")
        shutil.copytree(lab.cache, cache)
        lab.broken(run, 9)
        boxes = sorted(p for p in cache.rglob("*.npz"))
        box = boxes[lab.rng.randrange(len(boxes))]
        data = bytearray(box.read_bytes())
        if number % 3 == 0:
            box.write_bytes(data[: len(data) // 3])
        elif number % 3 == 1:
            data[len(data) // 2] ^= 4
            box.write_bytes(data)
        else:
            box.unlink()
        yield lab.goes_on(
            run,
            must="is damaged and is simulated again" if number % 3 < 2 else "simulating 1 boxes",
            cache=cache,
        )
        lab.tidy(run)


def out_of_memory(lab: Lab, tries: int) -> Iterator[Try]:
    """More memory than there is, asked for in the middle of a run and when its state is made: what,
    how much, which fields.
    """
    for number in range(tries):
        run = lab.fresh("memory")
        if number % 2:
            child = lab.start(run, "--config.model.width=3000000")
        else:

            def asks_too_much(batch: dict) -> dict:
                import jax.numpy as jnp

                return {**batch, "input": jnp.zeros((1 << 23, 1 << 20)).block_until_ready()}

            child = lab.start(run, plant=at_step(lab.rng.randint(6, 20), asks_too_much))
        status, said = child.wait(), child.said()
        good = (
            status == 1
            and all(
                w in said
                for w in ("Memory ran out", "asked for", "are free", "batch_size", "model.remat")
            )
            and (number % 2 or ("largest batch that fits is about" in said and newest(run) >= 0))
        )
        if number % 2:
            shutil.rmtree(run)
        yield lab.goes_on(run, note="" if good else f"status {status}: {said[-500:]}")
        lab.tidy(run)


def clock_jumps(lab: Lab, tries: int) -> Iterator[Try]:
    """The wall clock jumps by up to a year, forth or back, every few steps: the run ends with the
    same bits, or with 75 and goes on.
    """
    for _ in range(tries):
        run, seed = lab.fresh("clock"), lab.rng.random()

        def jump() -> None:
            import random

            inner, real, real_ns, offset = random.Random(seed), time.time, time.time_ns, [0.0]
            time.time = lambda: real() + offset[0]
            time.time_ns = lambda: real_ns() + int(offset[0] * 1e9)
            from jaxvol.training import sharding

            original = sharding.put

            def put(*arguments):
                offset[0] = inner.uniform(-3e7, 3e7) if inner.random() < 0.2 else offset[0]
                return original(*arguments)

            sharding.put = put

        child = lab.start(run, plant=jump)
        status = child.wait()
        yield lab.goes_on(
            run, note="" if status in (0, 75) else f"status {status}: {child.said()[-300:]}"
        )
        lab.tidy(run)


def no_display_no_home(lab: Lab, tries: int) -> Iterator[Try]:
    """No display, a home folder that cannot be written, and pictures asked for."""
    for number in range(tries):
        run = lab.fresh("bare")
        env = {
            "DISPLAY": None,
            "WAYLAND_DISPLAY": None,
            "MPLBACKEND": ("TkAgg", None)[number % 2],
            "HOME": "/proc/nobody",
            "XDG_CACHE_HOME": None,
            "XDG_CONFIG_HOME": None,
            "MPLCONFIGDIR": None,
        }
        began = time.monotonic()
        child = lab.start(run, "--config.evaluate.figures=True", env=env)
        child.until(lambda: step_of(run) >= 1)
        seconds = time.monotonic() - began
        status = child.wait()
        pictures = list((run / "images").glob("*.png"))
        found = lab.goes_on(
            run, note="" if status == 0 and pictures else f"status {status}: {child.said()[-300:]}"
        )
        yield found._replace(seconds=seconds)
        lab.tidy(run)


def stalled_input(lab: Lab, tries: int) -> Iterator[Try]:
    """A read that never comes back: told after config.stall_minutes, status 75 after twice that,
    with the save before it whole.
    """
    for _ in range(tries):
        run, step = lab.fresh("stall"), lab.rng.randint(20, 60)

        def hang() -> None:
            from jaxvol.data import cosmology

            original, count = cosmology._load, [0]

            def load(path, grid):
                count[0] += 1
                if count[0] > 30 + step:
                    time.sleep(10 * LIMIT_S)
                return original(path, grid)

            cosmology._load = load

        child = lab.start(run, "--config.stall_minutes=0.03", plant=hang)
        status, said = child.wait(), child.said()
        good = status == 75 and "THE INPUT IS STALLED" in said and "did not come within" in said
        yield lab.goes_on(run, note="" if good else f"status {status}: {said[-300:]}")
        lab.tidy(run)


def pair(lab: Lab, run: Path, plants: tuple = (None, None)) -> list[Child]:
    """Two processes of one device each that train as one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        f"--config={Path(__file__).parents[2]}/tests/tiny.py:slow",
        f"--workdir={run}",
        f"--config.data.cache_dir={lab.cache}",
        f"--config.distributed.coordinator=127.0.0.1:{port}",
        "--config.distributed.processes=2",
        "--config.distributed.heartbeat_seconds=30",
    ]
    return [
        Child(
            [*arguments, f"--config.distributed.process={n}"],
            lab.folder / f"{run.name}.{n}.log",
            plants[n],
        )
        for n in (0, 1)
    ]


def alike(lab: Lab, run: Path) -> bool:
    """The run of two processes has the numbers of the undisturbed one to 1e-4 (sums over processes
    are rounded otherwise).
    """

    def values(text: bytes) -> dict:
        return {
            tuple(row.split(",")[:2]): float(row.split(",")[2])
            for row in text.decode().splitlines()[1:]
        }

    ours, theirs = values((run / "metrics.csv").read_bytes()), values(lab.expected[2])
    return set(ours) == set(theirs) and all(
        abs(ours[k] - theirs[k]) <= 1e-4 * abs(theirs[k]) + 1e-6 for k in ours
    )


def two_go_on(lab: Lab, run: Path, note: str) -> Try:
    """Both processes again; the result has to be like that of one."""
    began = time.monotonic()
    reached, again = step_of(run), pair(lab, run)
    again[0].until(lambda: step_of(run) > reached)
    seconds = time.monotonic() - began
    codes = [child.wait() for child in again]
    wrong = (
        note
        or ("" if codes == [0, 0] else f"{codes}: {again[0].said()[-200:]}")
        or ("" if alike(lab, run) else "other numbers")
    )
    return Try(not wrong, int(not alike(lab, run)), seconds, wrong)


def one_of_two_killed(lab: Lab, tries: int) -> Iterator[Try]:
    """Process 1, or process 0, is killed: the other ends within a bound with status 75, and says
    why.
    """
    for number in range(tries):
        run, victim = lab.fresh("pair"), 1 - number % 2
        both = pair(lab, run)
        both[0].until(lambda: step_of(run) >= lab.rng.randint(5, 15))
        both[victim].kill(signal.SIGKILL)
        began = time.monotonic()
        status, said = both[1 - victim].wait(), both[1 - victim].said()
        both[victim].wait()
        told = status == 75 and "another process of this run ended" in said
        late = time.monotonic() - began > BOUND_S
        yield two_go_on(lab, run, f"status {status}, {said[-300:]}" if late or not told else "")
        lab.tidy(run)


def both_killed(lab: Lab, tries: int) -> Iterator[Try]:
    """A node dies with all its processes, in a save or between."""
    for number in range(tries):
        run = lab.fresh("pair")
        from fault_cases import in_background

        plants = (in_background(3, 0.01), None) if number % 2 else (None, None)
        both = pair(lab, run, plants)
        both[0].until(lambda: step_of(run) >= lab.rng.randint(5, 15))
        for child in both:
            child.kill(signal.SIGKILL)
        for child in both:
            child.wait()
        yield two_go_on(lab, run, "")
        lab.tidy(run)


def nan_in_one_process(lab: Lab, tries: int) -> Iterator[Try]:
    """The rows of one process make the gradient overflow: both end with 3, none waits for the
    other.
    """
    for number in range(tries):
        run, step = lab.fresh("pair"), lab.rng.randint(6, 12)
        both = pair(
            lab,
            run,
            (None, at_step(step, huge)) if number % 2 == 0 else (at_step(step, huge), None),
        )
        both[0].until(lambda: step_of(run) >= step - 1)
        codes = [child.wait(BOUND_S) for child in both]
        good = (
            sorted(codes) in ([3, 3], [3, 75]) and "not finite" in both[0].said() + both[1].said()
        )
        yield two_go_on(lab, run, "" if good else f"{codes}: {both[0].said()[-200:]}")
        lab.tidy(run)


def killed_while_waiting(lab: Lab, tries: int) -> Iterator[Try]:
    """Process 1 dies while process 0 makes its state: nothing is saved yet, and the other ends."""
    for _ in range(tries):
        run = lab.fresh("pair")

        def plant() -> None:
            from jaxvol.training import loop

            loop.start = lambda parts: die()

        both = pair(lab, run, (None, plant))
        codes = [both[1].wait(), both[0].wait(BOUND_S)][::-1]
        yield two_go_on(
            lab, run, "" if codes[1] == -signal.SIGKILL and codes[0] == 75 else str(codes)
        )
        lab.tidy(run)
