"""Equations: domain, residual, conditions and solution of every problem that a config can name;
adding one is one function.
"""

from __future__ import annotations

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
__all__ = ["KINDS", "PROBLEMS", "Condition", "Problem", "make"]


def make(block) -> Problem:
    """The problem of `config.data.problem`; UserError with the list of known names otherwise."""
    if block.name not in PROBLEMS:
        raise UserError(
            f"config.data.problem.name is {block.name!r}; jaxvol/pdes/ has {', '.join(PROBLEMS)}."
        )
    return PROBLEMS[block.name](block)
