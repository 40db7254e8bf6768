"""What machines do to a run, in words: a full disk, a device without memory, a process that is
gone.

`explain` is called once, where a training ends with an exception.  What it does not know stays as
it was raised.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxvol.types import Interrupted, UserError

DISK = {
    errno.ENOSPC: "there is no space left",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "it is read-only",
    errno.EFBIG: "a file may not grow further there (ulimit -f)",
    errno.EACCES: "writing there is not permitted",
    errno.EPERM: "writing there is not permitted",
    errno.EIO: "the disk reports an input/output error",
    errno.EMFILE: "too many files are open (ulimit -n)",
}
GONE = re.compile(
    r"gloo|connection (?:reset|closed|refused)|socket closed|heartbeat|coordination service|nccl|"
    r"broken pipe|peer|DEADLINE_EXCEEDED|UNAVAILABLE|CANCELLED|barrier",
    re.I,
)
MEMORY = re.compile(r"RESOURCE_EXHAUSTED|out of memory|std::bad_alloc|failed to allocate", re.I)
SIZE = re.compile(r"([\d.]+)\s*(bytes|[KMGT]i?B)", re.I)
UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
SAFE = 0.9  # of the memory that a step may plan with


def chain(error: BaseException) -> list[BaseException]:
    """The error, and those that led to it."""
    errors: list[BaseException] = []
    while error is not None and error not in errors:
        errors.append(error)
        error = error.__cause__ or error.__context__
    return errors


def explain(
    error: Exception,
    workdir: Path,
    saved: int | None,
    batch_sizes: Callable[[], tuple[int, str]] | None,
) -> Exception:
    """`error`, or what it means for people where that is known.

    saved:       newest step on disk, None for none.
    batch_sizes: () -> (the largest batch that fits, 0 for unknown; how that is known), called when
                 memory ran out.
    """
    checkpoint = (
        f"The checkpoint of step {saved} in {workdir} is sound"
        if saved is not None
        else f"Nothing had been saved in {workdir} yet"
    )
    for one in chain(error):
        if isinstance(one, (UserError, Interrupted)):
            return one
        if reason := disk(one):
            return UserError(
                f"{workdir} cannot be written: {reason}. {checkpoint}; free some space, or mend "
                "the permissions, and run the same command again."
            )
        if isinstance(one, TimeoutError):
            return Interrupted(
                f"a save took too long ({_short(one)}): the disk is very slow, or the clock "
                f"jumped. {checkpoint}; run the same command again."
            )
        if isinstance(one, (MemoryError, jax.errors.JaxRuntimeError)) and (
            isinstance(one, MemoryError) or MEMORY.search(str(one))
        ):
            return UserError(f"{memory(one, batch_sizes)} {checkpoint}.")
        if (
            isinstance(one, (jax.errors.JaxRuntimeError, ValueError, RuntimeError))
            and jax.process_count() > 1
            and GONE.search(str(one))
        ):
            return Interrupted(
                f"another process of this run ended or cannot be reached any more ({_short(one)}). "
                f"{checkpoint}; run the same command again in all processes."
            )
    return error if workdir.is_dir() else gone(workdir)


def gone(workdir: Path) -> UserError:
    """What is said when the workdir is no longer at its place."""
    return UserError(
        f"The workdir {workdir} was deleted, renamed or replaced while the run was writing in it. "
        "Put it back and run the same command again to go on, or name another --workdir to start "
        "over."
    )


def disk(error: BaseException) -> str:
    """Why something could not be written, as the operating system or TensorStore tells it; "" for
    another error.
    """
    if isinstance(error, OSError) and error.errno in DISK:
        place = f" ({error.filename})" if error.filename else ""
        return f"{DISK[error.errno]}{place}"
    text = str(error)
    # TensorStore and Orbax raise a ValueError or RuntimeError with the system's text
    for number, reason in DISK.items():
        if os.strerror(number) in text:
            return reason
    return ""


def memory(error: BaseException, batch_sizes: Callable[[], tuple[int, str]] | None) -> str:
    """Asked, free, what fits, and the fields that decide it."""
    sizes = [float(number) * UNITS[unit[0].lower()] for number, unit in SIZE.findall(str(error))]
    wanted = f"{_bytes(max(sizes))} were" if sizes else "more was"
    free, where = free_memory()
    largest, how = (0, "") if batch_sizes is None else batch_sizes()
    fits = (
        f"by the compiler's numbers for {how} the largest batch that fits is about {largest}"
        if largest > 0
        else f"by the compiler's numbers for {how} not even the smallest batch fits"
        if how
        else "how large a batch fits could not be found out"
    )
    return (
        f"Memory ran out: {wanted} asked for, {_bytes(free)} are free {where}; {fits}. "
        "Lower batch_size (or raise micro_batches, which keeps the result), set model.remat=True "
        "or precision='bf16', split more with mesh.space or mesh.fsdp, or use smaller crops "
        "(data.crop)."
    )


def device_stats() -> list[dict[str, int]]:
    """Memory statistics of this process's devices, of those that have any."""
    every = [device.memory_stats() or {} for device in jax.local_devices()]
    return [stats for stats in every if "bytes_limit" in stats]


def free_memory() -> tuple[float, str]:
    """(bytes, where): of the fullest device of this process where it tells, else what the operating
    system could still give.
    """
    stats = device_stats()
    if stats:
        return min(float(s["bytes_limit"] - s["bytes_in_use"]) for s in stats), "on the device"
    lines = (
        dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        if Path("/proc/meminfo").exists()
        else {}
    )
    return (
        float(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else math.nan
    ), "on this machine"


def capacity() -> float:
    """Bytes that one device may hold; NaN where nobody tells."""
    stats = device_stats()
    if stats:
        return float(min(s["bytes_limit"] for s in stats))
    free, _ = free_memory()
    return free / max(jax.local_device_count(), 1)


def largest_batch(needs: Callable[[int], float], unit: int) -> tuple[int, str]:
    """(largest batch that fits, 0 for none, and how that is known); memory is affine in the batch,
    so two sizes give the line.

    needs: batch size -> bytes of the compiled step on one device.   unit: the smallest batch that
           divides over the mesh.
    """
    one, two = needs(unit), needs(2 * unit)
    slope = max(two - one, 1.0) / unit
    room = SAFE * capacity() - (one - slope * unit)
    largest = math.floor(room / slope / unit) * unit if math.isfinite(room) else 0
    return max(largest, 0), f"batches of {unit} and {2 * unit}"


def sizes_of_step(
    step: Callable, state: object, batch: dict, unit: int
) -> Callable[[], tuple[int, str]]:
    """What `explain` asks for, of a jitted train step; batch: one host batch, whose shapes count;
    never raises.
    """

    def needs(size: int) -> float:
        abstract = {
            name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype, sharding=x.sharding)
            for name, x in batch.items()
        }
        memory = (
            step.lower(state, abstract, jax.ShapeDtypeStruct((), np.int32))
            .compile()
            .memory_analysis()
        )
        return float(memory.temp_size_in_bytes + memory.argument_size_in_bytes)

    def ask() -> tuple[int, str]:
        try:
            return largest_batch(needs, unit)
        except Exception:  # the compiler itself may be out of memory by now
            return 0, ""

    return ask


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _bytes(number: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"
