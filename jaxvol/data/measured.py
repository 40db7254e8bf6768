"""Equations together with what was measured: the files that a problem asks for are read here."""

from __future__ import annotations

import os

from jaxvol import pdes
from jaxvol.data.io import image_stack
from jaxvol.pdes import optics
from jaxvol.types import UserError


def problem(block) -> pdes.Problem:
    """The equation of `config.data.problem`, with the user's measurements where it has a folder.

    Raises UserError for an unknown equation, and for files that cannot be used.
    """
    if "folder" in block and block.folder:
        return pdes.make(block, stack(block))
    return pdes.make(block)


def stack(block) -> optics.Measurement:
    """The fringe images and, where there are some, the heights of one sample folder."""
    samples = image_stack.samples(block.folder)
    if block.sample not in samples:
        raise UserError(
            f"data.problem.sample is {block.sample!r}, but {block.folder} has "
            f"{', '.join(samples[:10])}{', ...' if len(samples) > 10 else ''}."
        )
    path = os.path.join(block.folder, block.sample)
    images, height = image_stack.read(path, 4 * len(block.wavelengths))
    return optics.Measurement(images.swapaxes(0, 1), None if height is None else height.T)
