"""Options with which XLA compiles in half the time: for tests and small runs, which compile much
and compute little.
"""

import importlib.metadata

# fusion emitters are an option up to jaxlib 0.10 only; newer ones abort on it
EMITTERS = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) <= (0, 10)


def quick() -> str:
    """For XLA_FLAGS, before the first import of jax."""
    return " --xla_backend_optimization_level=0" + (
        " --xla_cpu_use_fusion_emitters=false" if EMITTERS else ""
    )


def usual() -> dict[str, int | bool]:
    """XLA's defaults as jit's `compiler_options`: one program compiled as without `quick`, for a
    test of its bits.
    """
    return {"xla_backend_optimization_level": 3} | (
        {"xla_cpu_use_fusion_emitters": True} if EMITTERS else {}
    )
