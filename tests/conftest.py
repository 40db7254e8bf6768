"""Eight CPU devices for the sharding tests and a compilation cache inside the checkout; both must
precede `import jax`.
"""

import os
from pathlib import Path

from tests import compiler

if not os.environ.get("JAXVOL_TEST_GPU"):
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8"
        + compiler.quick()
    )
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ["MPLBACKEND"] = "Agg"
