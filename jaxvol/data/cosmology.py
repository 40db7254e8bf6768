"""The embedded dataset: paired boxes of the large-scale structure, simulated on this machine
(jaxvol/data/simulation/cosmology.py) and cached on disk.

    pairs = "dm2ic":      input  = evolved dark matter 1 + delta
                          target = linear delta today of the same modes
    pairs = "tracers2dm": input  = number of biased tracers per cell, in redshift space
                          target = evolved dark matter 1 + delta

The linear target is scaled to today (and not to the starting redshift) so that it is of order one
at any redshift.  Splits are independent realisations: box i of a split depends on
(simulation_seed, split, i) and on nothing else, so that enlarging a split keeps its earlier boxes
and the other splits.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxvol.data import pipeline
from jaxvol.data.simulation import cache
from jaxvol.data.simulation import cosmology as simulation
from jaxvol.data.simulation.cosmology import Settings
from jaxvol.data.source import SPLITS, Source
from jaxvol.ops import cosmology
from jaxvol.types import Dataset, Field, Spec, UserError

FORMAT = 1  # raise it when the same settings give other boxes


def fields() -> ConfigDict:
    """Boxes simulated on this machine (jaxvol/data/cosmology.py): evolved matter -> initial
    density, or tracers -> matter.
    """
    config = pipeline.fields()
    config.name = "cosmology"
    # dm2ic: evolved density -> linear delta today | tracers2dm: tracers -> evolved density
    config.pairs = "dm2ic"
    # 2lpt | pm: particle-mesh N-body (extra "nbody"; box_size / grid <= 4 Mpc/h)
    config.evolution = "2lpt"
    # independent realisations per split
    config.boxes = ConfigDict({"train": 200, "val": 20, "test": 40})
    config.grid = 32  # cells, and particles, along an axis
    config.box_size = 128.0  # Mpc/h
    config.redshift = 0.0  # of the evolved density and the tracers
    config.simulation_seed = 0  # of the boxes; config.seed shuffles and augments them
    config.pm_steps = 32  # steps of the particle-mesh run, equal in scale factor
    config.parameters = ConfigDict(
        {  # flat LCDM, Planck 2015
            "omega_m": 0.3075,
            "omega_b": 0.0486,
            "h": 0.6774,
            "n_s": 0.9667,
            "sigma8": 0.8159,
        }
    )
    config.tracers = ConfigDict(
        {
            "nbar": 3e-3,  # mean number density, (h/Mpc)^3
            "bias": 1.5,  # their expected density goes as matter density ** bias
            "redshift_space": True,  # move them by their velocity along the line of sight
            "line_of_sight": 2,  # axis
        }
    )
    # simulated boxes; one that cannot be written falls back to the temporary folder
    config.cache_dir = "~/.cache/jaxvol"
    # tracers2dm: (("log1p", {"floor": 0.0}), ...)
    config.input_normaliser = (("log10", {"floor": 0.03}), ("standardise", {}))
    # tracers2dm: as the input of dm2ic
    config.target_normaliser = (("standardise", {}),)
    return config


def make(config) -> Dataset:
    """The dataset of `config.data`, its normalisers fitted, its boxes simulated if they are not
    cached.
    """
    return pipeline.dataset(source(config), config)


def source(config) -> Source:
    """Boxes in physical units, each in one .npz file of the cache folder; missing and damaged ones
    are simulated.

    Raises UserError: a setting that makes no sense, no place to write, or a particle-mesh run that
    is too coarse or lacks its package.
    """
    data = config.data
    settings = box_settings(data)
    sizes = {split: int(data.boxes[split]) for split in SPLITS}
    folder = cache.folder(data.cache_dir) / f"cosmology-{_digest(settings)}"
    _fill(folder, sizes, settings)

    def read(split: str, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        return cache.load(folder / cache.name(split, index), settings["grid"])

    return Source(
        spec=specify(settings),
        sizes=sizes,
        read=read,
        names=lambda split: [f"{split}-{index:05d}" for index in range(sizes[split])],
        hash=_digest({"settings": settings, "sizes": sizes}),
    )


def box_settings(data) -> Settings:
    """The fields of `config.data` that the boxes depend on, checked; UserError lists all that are
    out of range.
    """
    if faults := _faults(data):
        raise UserError("; ".join(faults))
    tracers, parameters = data.tracers, data.parameters
    settings = {
        "format": FORMAT,
        "pairs": data.pairs,
        "evolution": data.evolution,
        "grid": int(data.grid),
        "box_size": float(data.box_size),
        "redshift": float(data.redshift),
        "seed": int(data.simulation_seed),
        "parameters": {name: float(parameters[name]) for name in cosmology.Cosmology._fields},
    }
    if data.evolution == "pm":
        settings["pm_steps"] = int(data.pm_steps)
    if data.pairs == "tracers2dm":
        settings["tracers"] = {
            "nbar": float(tracers.nbar),
            "bias": float(tracers.bias),
            "line_of_sight": int(tracers.line_of_sight) if tracers.redshift_space else -1,
        }
    return settings


def _faults(data) -> list[str]:
    """The fields of `config.data` that are out of range, and what was expected of them."""
    cosmos, tracers = data.parameters, data.tracers
    rules = {
        "pairs": (data.pairs in ("dm2ic", "tracers2dm"), "dm2ic or tracers2dm"),
        "evolution": (data.evolution in ("2lpt", "pm"), "2lpt or pm"),
        "grid": (data.grid >= 4, "at least 4"),
        "box_size": (data.box_size > 0, "a positive length in Mpc/h"),
        "redshift": (0 <= data.redshift <= 20, "from 0 to 20"),
        "simulation_seed": (0 <= data.simulation_seed < 2**32, "from 0 to 2^32 - 1"),
        "pm_steps": (data.pm_steps >= 1, "at least 1"),
        "parameters.omega_m": (0 < cosmos.omega_m < 1, "between 0 and 1"),
        "parameters.omega_b": (0 < cosmos.omega_b < cosmos.omega_m, "between 0 and omega_m"),
        "parameters.h": (0.2 <= cosmos.h <= 2, "from 0.2 to 2, H0 / (100 km/s/Mpc)"),
        "parameters.n_s": (0 < cosmos.n_s < 3, "between 0 and 3"),
        "parameters.sigma8": (0 < cosmos.sigma8 < 3, "between 0 and 3"),
        "tracers.nbar": (tracers.nbar > 0, "a positive number density in (h/Mpc)^3"),
        "tracers.bias": (0 < tracers.bias <= 10, "between 0 and 10"),
        "tracers.line_of_sight": (tracers.line_of_sight in (0, 1, 2), "axis 0, 1 or 2"),
    } | {f"boxes.{split}": (data.boxes[split] >= 1, "at least 1") for split in SPLITS}
    values = {name: _value(data, name) for name in rules}
    return [
        f"data.{name} is {values[name]!r}: expected {expected}"
        for name, (sound, expected) in rules.items()
        if not sound
    ]


def _value(data, name: str):
    """The field with this dotted name."""
    for part in name.split("."):
        data = data[part]
    return data


def specify(settings: Settings) -> Spec:
    """The fields of a pair on the whole periodic box."""
    matter = Field(("1+delta",), unit="mean density")
    if settings["pairs"] == "dm2ic":
        fields = {"input": matter, "target": Field(("linear_delta",), unit="z = 0")}
    else:
        axis = settings["tracers"]["line_of_sight"]
        kind = "scalar" if axis < 0 else f"line_of_sight={axis}"
        fields = {
            "input": Field(("tracers",), kind=kind, unit="tracers per cell"),
            "target": matter,
        }
    return Spec(
        fields=fields,
        shape=(settings["grid"],) * 3,
        spacing=(settings["box_size"] / settings["grid"],) * 3,
        unit="Mpc/h",
        periodic=(True,) * 3,
        wrap=(True,) * 3,
    )


def _fill(folder: Path, sizes: dict[str, int], settings: Settings) -> None:
    """Simulate every box that `folder` lacks or holds damaged."""
    missing = cache.missing(folder, sizes, settings["grid"])
    if not missing:
        return
    folder.mkdir(exist_ok=True)
    simulate, together = simulation.simulator(settings)
    logging.info(
        "simulating %d boxes of %d^3 (%s) into %s",
        len(missing),
        settings["grid"],
        settings["evolution"],
        folder,
    )
    with tqdm(
        total=len(missing), desc="simulating boxes", unit="box", disable=jax.process_index() != 0
    ) as bar:
        for start in range(0, len(missing), together):
            batch = missing[start : start + together]
            # always the same number at once: the compiled program, and so every bit of a box, never
            # depends on the others
            inputs, targets = simulate(batch + batch[:1] * (together - len(batch)))
            for (split, index), x, y in zip(batch, inputs, targets):
                cache.save(folder / cache.name(split, index), input=x, target=y)
            bar.update(len(batch))


def _digest(settings: Settings) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
