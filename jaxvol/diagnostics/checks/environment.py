"""The machine before anything else: devices, memory, disk room for the checkpoints, write access,
versions of the packages, native bfloat16.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import flax
import jax
import jaxlib
import numpy
import optax

from jaxvol.diagnostics.records import Context
from jaxvol.types import Result

RANK = 0
NEEDS = ()
MEANING = {
    "disk_saves": (
        "checkpoints for which the disk of the workdir has room",
        "free disk space, choose another --workdir, or keep fewer (checkpoint.keep)",
    ),
    "host_memory": (
        "free share of the host's memory, of which reader threads and checkpoints need some",
        "stop other jobs, or ask the scheduler for more memory",
    ),
    "writable": (
        "1 if files can be written into the workdir, else 0",
        "choose a --workdir that you may write to",
    ),
    "accelerator_used": (
        "0 if this machine has a GPU and JAX computes on the CPU, some 50 times slower, else 1",
        "install the CUDA build of JAX: pip install 'jax[cuda12]', then compare nvidia-smi with "
        "jax.devices()",
    ),
}
LIMITS = {
    "disk_saves": (">", 20.0, 3.0),  # checkpoints
    "host_memory": (">", 0.1, 0.02),  # share of the memory
    "writable": (">", 1.0, 1.0),  # 1 or 0
    "accelerator_used": (">", 1.0, 1.0),  # 1 or 0
}
PACKAGES = (jax, jaxlib, flax, optax, numpy)


def applies(config) -> bool:
    return True


def diagnose(ctx: Context) -> Result:
    """Room on the disk in checkpoints, free share of host memory, and whether a GPU is left
    unused.
    """
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(ctx.state))
    folder = existing(Path(ctx.workdir))
    metrics = {
        "disk_saves": shutil.disk_usage(folder).free / max(size, 1),
        "host_memory": free_host_memory(),
        "writable": float(writable(folder)),
        "accelerator_used": float(
            jax.default_backend() != "cpu" or not Path("/dev/nvidia0").exists()
        ),
    }
    devices = [
        {"device": str(d), "kind": d.device_kind, "free memory (GB)": free_device_memory(d)}
        for d in jax.local_devices()
    ]
    setting = {
        "checkpoint (MB)": size / 1e6,
        "native bfloat16": native_bfloat16(),
        "processes": jax.process_count(),
        **{package.__name__: package.__version__ for package in PACKAGES},
    }
    return Result(
        metrics,
        {"devices": devices, "setting": [{"what": k, "value": v} for k, v in setting.items()]},
    )


def existing(folder: Path) -> Path:
    """The nearest folder above that exists."""
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())


def writable(folder: Path) -> bool:
    """Whether a file can be made there; permission bits alone do not say it on network disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def free_host_memory() -> float:
    """Free share of the host's memory; what page caches hold counts as free."""
    pages = {name: os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES")}
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) / int(lines["MemTotal"].split()[0])
    except (OSError, KeyError, ValueError):
        return pages["SC_AVPHYS_PAGES"] / pages["SC_PHYS_PAGES"]


def free_device_memory(device: jax.Device) -> float | str:
    """Gigabytes, where the device reports them."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return "not reported"
    return (stats["bytes_limit"] - stats["bytes_in_use"]) / 1e9


def native_bfloat16() -> str:
    """Whether this backend multiplies bfloat16 in hardware."""
    backend = jax.default_backend()
    if backend == "cpu":
        try:
            flags = Path("/proc/cpuinfo").read_text()
        except OSError:
            return "unknown"
        return "yes" if "avx512_bf16" in flags or "amx_bf16" in flags else "no"
    if backend == "tpu":
        return "yes"
    return f"yes on compute capability 8.0 and later ({jax.local_devices()[0].device_kind})"
