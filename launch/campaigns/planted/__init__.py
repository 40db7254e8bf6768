"""Planted faults: each makes a healthy run (configs/healthy.py) sick in one way, and names the
check that has to say so first.

A fault is a function of its strength that returns the config overrides and the patches that make
it; a patch takes the place of a function or a method of the package, as somebody's mistake would.
Strengths are ordered from the weakest to the strongest.  catalogue.py has all faults.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvol.config import experiments, validate
from jaxvol.diagnostics import context
from jaxvol.diagnostics.records import Context

healthy = experiments.load("healthy")


@dataclasses.dataclass(frozen=True)
class Fault:
    """A mistake, the healthy run it is made in, and what has to notice it."""

    name: str
    run: str  # variant of configs/healthy.py
    check: str  # has to be red, and the first that is
    strengths: tuple  # weakest first
    plant: Callable[[Any], tuple]  # strength -> (config overrides, patches)
    consequences: tuple[str, ...] = ()  # checks that may be red as well


def config_of(run: str, seed: int = 0, overrides: dict[str, Any] | None = None) -> ConfigDict:
    """The locked config of a healthy run, with overrides."""
    config = healthy.get_config(run)
    config.seed = seed
    config.update_from_flattened_dict(overrides or {})
    return config.lock()


@contextlib.contextmanager
def planted(
    fault: Fault, strength: Any, mesh: Mesh, folder: Path, seed: int = 0
) -> Iterator[Context]:
    """The Context of the sick run; the patches hold as long as the block, so that every check sees
    them.
    """
    overrides, patches = fault.plant(strength)
    config = config_of(fault.run, seed, overrides)
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        validate.validate(config)
        yield context.make(config, mesh, folder, config.total_steps)


def replaced(target: Any, name: str, make: Callable[[Callable], Callable]) -> Any:
    """Patch `target.name` by make(what it was)."""
    return mock.patch.object(target, name, make(getattr(target, name)))
