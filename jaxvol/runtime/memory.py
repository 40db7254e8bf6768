"""How much memory this process and its devices use."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import jax


def host_memory() -> int:
    """Resident memory of this process in bytes; its peak where the present value is not to be
    had.
    """
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_peak_memory() -> int | None:
    """Largest peak memory of this process's devices in bytes; None on a backend that does not count
    it, such as CPU.
    """
    every = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in every if "peak_bytes_in_use" in stats]
    return max(peaks, default=None)
