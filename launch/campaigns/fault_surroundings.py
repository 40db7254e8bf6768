"""The faults of a run's surroundings: numbers, memory, clock, display, home, input.

As in fault_kills.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

from launch.campaigns import fault_plants as plants
from launch.campaigns.fault_lab import Lab, Try, newest


def nan_in_a_gradient(lab: Lab, tries: int) -> Iterator[Try]:
    """A batch that makes the gradient overflow: status 3, the tensors are named.

    The last checkpoint is from before.
    """
    for _ in range(tries):
        run, step = lab.fresh("nan"), lab.rng.randint(6, 20)
        child = lab.start(run, plant=plants.at_step(step, plants.huge))
        status, output = child.wait(), child.output()
        good = (
            status == 3
            and "was refused because something is not finite" in output
            and 0 <= newest(run) < step
        )
        note = "" if good else f"status {status}: {output[-300:]}"
        yield lab.goes_on(run, must="resumed from step", note=note)
        lab.tidy(run)


def nan_in_data(lab: Lab, tries: int) -> Iterator[Try]:
    """A NaN in a file of the data: status 1 with file and voxel; mended, the run goes on."""
    for _ in range(tries):
        run, cache = lab.fresh("nan-data"), lab.fresh("cache")
        shutil.copytree(lab.cache, cache)
        lab.broken(run, 9)
        child = lab.start(run, plant=plants.nan_in_training_files(), cache=cache)
        status, output = child.wait(), child.output()
        good = status == 1 and "non-finite values, the first at" in output
        note = "" if good else f"status {status}: {output[-300:]}"
        yield lab.goes_on(run, must="resumed from step", note=note, cache=cache)
        lab.tidy(run)


def out_of_memory(lab: Lab, tries: int) -> Iterator[Try]:
    """More memory than there is, asked for in the middle of a run, or when its state is made.

    The message says what, how much, and which fields help.
    """
    words = ("Memory ran out", "asked for", "are free", "batch_size", "model.remat")
    for number in range(tries):
        run, at_start = lab.fresh("memory"), bool(number % 2)
        if at_start:
            child = lab.start(run, "--config.model.width=3000000")
        else:
            step = lab.rng.randint(6, 20)
            child = lab.start(run, plant=plants.at_step(step, plants.too_much_memory))
        status, output = child.wait(), child.output()
        good = status == 1 and all(word in output for word in words)
        if at_start:
            shutil.rmtree(run)
        else:
            good = good and "largest batch that fits is about" in output and newest(run) >= 0
        yield lab.goes_on(run, note="" if good else f"status {status}: {output[-500:]}")
        lab.tidy(run)


def clock_jumps(lab: Lab, tries: int) -> Iterator[Try]:
    """The wall clock jumps by up to a year, forth or back, every few steps.

    The run ends with the same bits, or with 75 and goes on.
    """
    for _ in range(tries):
        run = lab.fresh("clock")
        child = lab.start(run, plant=plants.jumping_clock(lab.rng.random()))
        status = child.wait()
        note = "" if status in (0, 75) else f"status {status}: {child.output()[-300:]}"
        yield lab.goes_on(run, note=note)
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
        child = lab.start(run, "--config.evaluate.figures=True", env=env)
        lab.until_step(child, run, 1)
        seconds = time.monotonic() - child.began
        status = child.wait()
        good = status == 0 and list((run / "images").glob("*.png"))
        note = "" if good else f"status {status}: {child.output()[-300:]}"
        yield lab.goes_on(run, note=note)._replace(seconds=seconds)
        lab.tidy(run)


def stalled_input(lab: Lab, tries: int) -> Iterator[Try]:
    """A read that never comes back: said after config.stall_minutes, status 75 after twice that.

    The save before it is whole.
    """
    for _ in range(tries):
        run, reads = lab.fresh("stall"), 30 + lab.rng.randint(20, 60)
        plant = plants.read_that_hangs(reads)
        child = lab.start(run, "--config.stall_minutes=0.03", plant=plant)
        status, output = child.wait(), child.output()
        good = status == 75 and "THE INPUT IS STALLED" in output and "did not come within" in output
        yield lab.goes_on(run, note="" if good else f"status {status}: {output[-300:]}")
        lab.tidy(run)
