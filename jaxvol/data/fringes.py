"""Stacks of fringe images and the height of the surface, as volumes of depth 1: users' folders
(jaxvol/data/io/image_stack.py), or simulated (jaxvol/data/simulation/fringes.py).

`input` [1, H, W, 4 w] holds the images of w wavelengths in grey levels, `target` [1, H, W, 1] the
height in um, which only scores read.  A folder's samples are divided among the splits; those
without a ground truth are solved and not scored (their mask is 0).
"""

from __future__ import annotations

import json
import os

import numpy as np
from ml_collections import ConfigDict

from jaxvol.data import pipeline, splits
from jaxvol.data.io import image_stack
from jaxvol.data.simulation import fringes as simulation
from jaxvol.data.source import SPLITS, Source, digest
from jaxvol.ops import fringes
from jaxvol.pdes import optics
from jaxvol.types import Dataset, Field, Spec, UserError


def fields() -> ConfigDict:
    """Stacks of fringe images as volumes of depth 1 (jaxvol/data/fringes.py)."""
    config = pipeline.fields()
    config.name = "fringes"
    config.optics = ConfigDict(optics.INSTRUMENT)
    # simulated: random ones; the first of test is the published one
    config.surfaces = ConfigDict({"train": 256, "val": 16, "test": 1})
    config.fractions = (0.8, 0.1, 0.1)  # of a folder's samples: train, val, test
    config.augment = ()
    config.input_normaliser = (("linear", {"low": 0.0, "high": 255.0}),)
    # um; not fitted, as stacks need not come with heights
    config.target_normaliser = (("linear", {"low": -5.0, "high": 29.0}),)
    return config


def rules(config: ConfigDict) -> list[str]:
    """Violated rules of `config.data`, for jaxvol/config/validate.py."""
    violations = [
        f"data.surfaces.{split} is {config.data.surfaces[split]}; it has to be at least 1."
        for split in SPLITS
        if config.data.surfaces[split] < 1
    ]
    if config.task.name != "fringes":
        violations.append(
            f"data.name='fringes' needs task.name='fringes', not {config.task.name!r}."
        )
    return violations


def make(config: ConfigDict) -> Dataset:
    """Dataset of `config.data`; UserError for a file that cannot be used and for settings that make
    no sense.
    """
    o = config.data.optics
    fringes.check(o.wavelengths, o.modulation, o.size, o.noise, o.bits)
    splits.check_fractions(config.data.fractions)
    source = from_folder(config.data) if o.folder else simulated(config.data)
    return pipeline.dataset(source, config)


def specify(data: ConfigDict, shape: tuple[int, int]) -> Spec:
    """The spec of images of so many pixels on [-1, 1]^2."""
    channels = tuple(
        f"bucket_{i:02d}" for i in range(len(fringes.STEPS) * len(data.optics.wavelengths))
    )
    return Spec(
        {"input": Field(channels, unit="grey levels"), "target": Field(("height",), unit="µm")},
        (1, *shape),
        (1.0, *(2 / max(n - 1, 1) for n in shape)),
    )


def simulated(data: ConfigDict) -> Source:
    """Random surfaces, and the published one as the first of the split "test"."""
    o, sizes = data.optics, {split: data.surfaces[split] for split in SPLITS}

    def names(split: str) -> list[str]:
        return [
            "published" if split == "test" and i == 0 else f"surface_{i:04d}"
            for i in range(sizes[split])
        ]

    return Source(
        spec=specify(data, (o.size, o.size)),
        sizes=sizes,
        read=simulation.simulator(o),
        names=names,
        hash=digest("simulated", settings(o), sizes),
    )


def from_folder(data: ConfigDict) -> Source:
    """Users' stacks; every file is read once here, so that a bad one is named before anything is
    trained.
    """
    o = data.optics
    samples, count = image_stack.samples(o.folder), len(fringes.STEPS) * len(o.wavelengths)
    stacks, shape = {}, None  # sample -> (images, height)
    for name in samples:
        images, height = image_stack.read(os.path.join(o.folder, name), count)
        if shape not in (None, images.shape[:2]):
            raise UserError(
                f"{o.folder}/{name}: found images of {image_stack.size(images)} pixels; expected "
                f"{shape[1]} x {shape[0]}, as in {samples[0]}: crop them alike, or put them into "
                "folders of their own"
            )
        shape = images.shape[:2]
        stacks[name] = images, height
    parts = splits.divide(samples, data.fractions, o.simulation_seed, "samples")
    masked = any(height is None for _, height in stacks.values())

    def read(split: str, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        images, height = stacks[parts[split][index]]
        known = np.zeros(shape) if height is None else height
        mask = {"mask": np.full((1, *shape, 1), float(height is not None))} if masked else {}
        return {"input": images[None], "target": known[None, ..., None], **mask}

    prints = [(name, fringes.fingerprint(*stack)) for name, stack in stacks.items()]
    return Source(
        spec=specify(data, shape),
        sizes={split: len(parts[split]) for split in SPLITS},
        read=read,
        names=lambda split: parts[split],
        hash=digest(prints, parts, settings(o)),
    )


def settings(optics: ConfigDict) -> str:
    """The fields as text that is the same after a round trip through a checkpoint."""
    return json.dumps(json.loads(optics.to_json()), sort_keys=True)
