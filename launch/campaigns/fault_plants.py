"""Plants: what brings a fault into a run.

A plant is a function without arguments that the child process calls before its run starts
(launch/campaigns/fault_lab.py).  It replaces one function of jaxvol, or of a library, by one that
does what the original does until the moment of the fault.
"""

from __future__ import annotations

import importlib
import itertools
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from launch.campaigns.fault_lab import LIMIT_S

Plant = Callable[[], None]


def die(*_) -> None:
    """SIGKILL to oneself: nothing is flushed, closed or tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


def replace(module: str, path: str, around: Callable[[Callable], Callable]) -> Plant:
    """A plant: the function `module.path` becomes `around(function)`."""

    def plant() -> None:
        owner, (*inner, name) = importlib.import_module(module), path.split(".")
        for part in inner:
            owner = getattr(owner, part)
        original = getattr(owner, name)
        if not callable(original):
            raise TypeError(f"{module}.{path} is no function: the plant has to be moved")
        setattr(owner, name, around(original))

    return plant


def on_call(
    module: str,
    path: str,
    number: int,
    before: bool = True,
    when: Callable[..., bool] = lambda *a, **k: True,
) -> Plant:
    """The process dies at the `number`-th call of module.path whose arguments fit.

    before: before the call is carried out, or after it.
    """

    def around(original: Callable) -> Callable:
        count = itertools.count(1)

        def dying(*arguments, **keywords):
            now = when(*arguments, **keywords) and next(count) == number
            if now and before:
                die()
            returned = original(*arguments, **keywords)
            if now:
                die()
            return returned

        return dying

    return replace(module, path, around)


def half_a_row(number: int) -> Plant:
    """The process dies after half of the `number`-th block of metrics.csv."""

    def around(scalars: Callable) -> Callable:
        count = itertools.count(1)

        def torn(self, step, values):
            if next(count) == number:
                self.metrics.write(f"{step},train/net/lo")
                self.metrics.flush()
                die()
            scalars(self, step, values)

        return torn

    return replace("jaxvol.runtime.writer", "Writer.scalars", around)


def in_background(number: int, seconds: float) -> Plant:
    """The process dies `seconds` after Orbax took the `number`-th save into its own threads."""

    def around(save: Callable) -> Callable:
        count = itertools.count(1)

        def saved(*arguments):
            returned = save(*arguments)
            if next(count) == number:
                time.sleep(seconds)
                die()
            return returned

        return saved

    return replace("jaxvol.training.checkpoint", "save", around)


def before_the_first_step() -> Plant:
    """The process dies where the state of a fresh run is made."""
    return on_call("jaxvol.training.handover", "start", 1)


def _step_appears(source, target=None, *_, **__) -> bool:
    """A rename that gives a checkpoint its final name."""
    return "checkpoints" in str(source) and target is not None and Path(str(target)).name.isdigit()


def _of_checkpoints(folder, *_, **__) -> bool:
    """A removal below checkpoints/."""
    return "checkpoints" in str(folder)


CHECKSUMS = ("jaxvol.training.checksums", "checksums")
# phase of a save -> (number of the save, seconds) -> plant
PHASES: dict[str, Callable[[int, float], Plant]] = {
    "before the checksums": lambda n, s: on_call(*CHECKSUMS, n),
    "after the checksums": lambda n, s: on_call(*CHECKSUMS, n, before=False),
    "while it is written": lambda n, s: in_background(n, s),
    "before the step appears": lambda n, s: on_call("os", "rename", n, when=_step_appears),
    "after the step appeared": lambda n, s: on_call(
        "os", "rename", n, before=False, when=_step_appears
    ),
    "in the removal of an old step": lambda n, s: on_call(
        "shutil", "rmtree", n, when=_of_checkpoints
    ),
    "between save and status.json": lambda n, s: on_call(
        "jaxvol.runtime.writer", "Writer.status", n + 1
    ),
    "in half a row of metrics.csv": lambda n, s: half_a_row(3 * n),
}


def while_resuming(cut: bool, before: bool) -> Plant:
    """The process dies when metrics.csv is cut to the restored step, or a checkpoint is read."""
    if not cut:
        return on_call("jaxvol.training.checkpoint", "read_state", 1, before)
    return on_call("os", "replace", 1, before, when=lambda a, b: "metrics.csv" in str(b))


def small_files() -> None:
    """A plant: files may not grow beyond 6 kB, less than metrics.csv needs."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))


def at_step(number: int, action: Callable[[dict], dict]) -> Plant:
    """`action(host batch)` returns the batch of the `number`-th update of this attempt."""

    def around(put: Callable) -> Callable:
        count = itertools.count(1)

        def changed(mesh, batch, size):
            training = "_mask" not in batch
            return put(mesh, action(batch) if training and next(count) == number else batch, size)

        return changed

    return replace("jaxvol.training.sharding", "put", around)


def huge(batch: dict) -> dict:
    """A batch that is finite itself and whose gradient is not."""
    return {**batch, "input": batch["input"] * 1e30}


def too_much_memory(batch: dict) -> dict:
    """A batch that asks for 32 TiB."""
    import jax.numpy as jnp

    return {**batch, "input": jnp.zeros((1 << 23, 1 << 20)).block_until_ready()}


def nan_in_training_files() -> Plant:
    """One plane of every training target is NaN."""
    import numpy as np

    def around(load: Callable) -> Callable:
        def poisoned(path, grid):
            example = load(path, grid)
            if path.name.startswith("train"):
                plane = np.arange(grid)[:, None, None, None] == 3
                example["target"] = np.where(plane, np.nan, example["target"])
            return example

        return poisoned

    return replace("jaxvol.data.simulation.cache", "load", around)


def read_that_hangs(number: int) -> Plant:
    """Every read after the `number`-th does not come back within the limit of a run."""

    def around(load: Callable) -> Callable:
        count = itertools.count(1)

        def hanging(path, grid):
            if next(count) > number:
                time.sleep(10 * LIMIT_S)
            return load(path, grid)

        return hanging

    return replace("jaxvol.data.simulation.cache", "load", around)


def jumping_clock(seed: float) -> Plant:
    """The wall clock jumps by up to a year, forth or back, at one batch in five."""
    offset = [0.0]

    def around(put: Callable) -> Callable:
        rng, real, real_ns = random.Random(seed), time.time, time.time_ns
        time.time = lambda: real() + offset[0]
        time.time_ns = lambda: real_ns() + int(offset[0] * 1e9)

        def jumped(*arguments):
            if rng.random() < 0.2:
                offset[0] = rng.uniform(-3e7, 3e7)
            return put(*arguments)

        return jumped

    return replace("jaxvol.training.sharding", "put", around)
