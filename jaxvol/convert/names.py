"""Comparison of the tensors that were given with those that a model has, for all converters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxvol.types import UserError

BOOKKEEPING = ("num_batches_tracked",)  # counters that no output depends on
LISTED = 12  # names per kind of difference
REMEDY = (
    "Use the hyper-parameters that the weights were trained with, and the state dict of this model "
    "alone (--key=NAME chooses one of several)."
)


def check(
    model: str, tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare names and shapes with `expected`, before anything is converted.

    expected: name -> shape in torch's layout
    Raises one UserError that names every tensor that is missing, superfluous or of another shape.
    """
    given = {name for name in tensors if not name.endswith(BOOKKEEPING)}
    missing = [f"{name} {expected[name]}" for name in expected if name not in given]
    superfluous = [f"{name} {np.shape(tensors[name])}" for name in sorted(given - set(expected))]
    misshapen = [
        f"{name}: found {np.shape(tensors[name])}, expected {tuple(expected[name])}"
        for name in expected
        if name in given and np.shape(tensors[name]) != tuple(expected[name])
    ]
    refuse(
        f"{model} with these hyper-parameters",
        {"missing": missing, "superfluous": superfluous, "of another shape": misshapen},
    )


def refuse(model: str, differences: Mapping[str, list[str]], remedy: str = REMEDY) -> None:
    """UserError that lists the differences, kind by kind, and ends with what to do.

    Nothing happens where all the lists are empty.
    """
    lines = []
    for kind, names in differences.items():
        if names:
            more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
            lines.append(f"  - {len(names)} {kind}: {', '.join(names[:LISTED])}{more}")
    if lines:
        raise UserError(
            f"these tensors are not the ones of a {model}:\n" + "\n".join(lines) + f"\n{remedy}"
        )
