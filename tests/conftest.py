"""Eight CPU devices for the sharding tests and a compilation cache inside the checkout; both must precede `import jax`."""
import importlib.metadata
import os
from pathlib import Path

if not os.environ.get("JAXVOL_TEST_GPU"):
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    # Tests compile much and compute little, and with these two XLA compiles in half the time.  Newer ones do not know the first any
    # more, and abort on what they do not know: with jax 0.12 the suite runs on the compiler as users have it.
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) <= (0, 10):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ["MPLBACKEND"] = "Agg"
