"""Options with which XLA compiles in half the time: for tests and small runs, which compile much and compute little."""
import importlib.metadata


def quick() -> str:
    """For XLA_FLAGS, before the first import of jax.  Fusion emitters are an option up to jaxlib 0.10 only; newer ones abort on it."""
    old = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) <= (0, 10)
    return " --xla_backend_optimization_level=0" + (" --xla_cpu_use_fusion_emitters=false" if old else "")
