"""Equations: domain, residual, conditions and solution of every problem that a config can name.

Adding one is one function.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from jaxvol.pdes import elliptic, evolution, flow, optics
from jaxvol.pdes.problem import KINDS, Condition, Problem
from jaxvol.types import UserError

PROBLEMS = {
    f.__name__: f
    for f in (
        elliptic.poisson,
        elliptic.helmholtz,
        evolution.diffusion,
        evolution.wave,
        evolution.burgers,
        evolution.allen_cahn,
        evolution.reaction_diffusion,
        flow.taylor_green,
        optics.interferometry,
    )
}
FIELDS = {**elliptic.FIELDS, **evolution.FIELDS, **flow.FIELDS, **optics.FIELDS}
__all__ = ["KINDS", "PROBLEMS", "Condition", "Problem", "fields", "make"]


def fields(name: str) -> ConfigDict:
    """`config.data.problem` with the fields of an equation; UserError for an unknown name."""
    check(name)
    return ConfigDict({"name": name, **FIELDS[name]})


def check(name: str) -> None:
    """UserError with the list of known names unless there is an equation called `name`."""
    if name not in PROBLEMS:
        raise UserError(
            f"config.data.problem.name is {name!r}; jaxvol/pdes/ has {', '.join(PROBLEMS)}."
        )


def make(block, *measured) -> Problem:
    """The problem of `config.data.problem`; UserError with the list of known names otherwise.

    measured: what jaxvol/data/measured.py read for a problem that needs files.
    """
    check(block.name)
    return PROBLEMS[block.name](block, *measured)
