"""The embedded dataset: paired boxes of the large-scale structure, simulated on this machine and
cached on disk.

One box: white noise of its own seed -> linear density contrast delta today (Gaussian, Eisenstein-Hu
         spectrum) -> particles
evolved to `redshift` by 2LPT or a particle-mesh code -> cloud-in-cell density 1 + delta on the same
grid.

    pairs = "dm2ic":      input = evolved dark matter 1 + delta, target = linear delta today of the
    same modes pairs = "tracers2dm": input = number of biased tracers per cell, in redshift space,
    target = evolved dark matter 1 + delta

The linear target is scaled to today (and not to the starting redshift) so that it is of order one
at any redshift.
Splits are independent realisations: box i of a split depends on (simulation_seed, split, i) and on
nothing else, so that enlarging a split keeps its earlier boxes and the other splits.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from jaxvol.data import pipeline
from jaxvol.ops import cic, cosmology, lpt, nbody
from jaxvol.types import Array, Dataset, Field, Key, Spec, UserError

FORMAT = 1  # raise it when the same settings give other boxes
SPLITS = {"train": 0, "val": 1, "test": 2}  # what is folded into the seed
# simulated together: bounds the memory, keeps small boxes fast
VOXELS_AT_ONCE = 2**19

Settings = dict[str, Any]  # what the boxes depend on, as JSON
Simulator = Callable[[list[tuple[str, int]]], tuple[np.ndarray, np.ndarray]]


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
    """The dataset of `config.data` (base.cosmology), its normalisers fitted, its boxes simulated if
    they are not cached.
    """
    return pipeline.dataset(source(config), config)


def source(config) -> pipeline.Source:
    """Boxes in physical units, each in one .npz file of the cache folder; missing and damaged ones
    are simulated.

    Raises UserError: a setting that makes no sense, no place to write, or a particle-mesh run that
    is too coarse or lacks its package.
    """
    data = config.data
    settings = _settings(data)
    sizes = {split: int(data.boxes[split]) for split in SPLITS}
    folder = _cache_folder(data.cache_dir) / f"cosmology-{_digest(settings)}"
    _fill(folder, sizes, settings)

    def read(split: str, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        return _load(folder / _name(split, index), settings["grid"])

    return pipeline.Source(
        spec=_spec(settings),
        sizes=sizes,
        read=read,
        names=lambda split: [f"{split}-{index:05d}" for index in range(sizes[split])],
        hash=_digest({"settings": settings, "sizes": sizes}),
    )


def _settings(data) -> Settings:
    """The fields of `config.data` that the boxes depend on, checked; UserError lists all that are
    out of range.
    """
    tracers, parameters = data.tracers, data.parameters
    rules = (
        ("pairs", data.pairs, data.pairs in ("dm2ic", "tracers2dm"), "dm2ic or tracers2dm"),
        ("evolution", data.evolution, data.evolution in ("2lpt", "pm"), "2lpt or pm"),
        ("grid", data.grid, data.grid >= 4, "at least 4"),
        ("box_size", data.box_size, data.box_size > 0, "a positive length in Mpc/h"),
        ("redshift", data.redshift, 0 <= data.redshift <= 20, "from 0 to 20"),
        (
            "simulation_seed",
            data.simulation_seed,
            0 <= data.simulation_seed < 2**32,
            "from 0 to 2^32 - 1",
        ),
        ("pm_steps", data.pm_steps, data.pm_steps >= 1, "at least 1"),
        ("parameters.omega_m", parameters.omega_m, 0 < parameters.omega_m < 1, "between 0 and 1"),
        (
            "parameters.omega_b",
            parameters.omega_b,
            0 < parameters.omega_b < parameters.omega_m,
            "between 0 and omega_m",
        ),
        (
            "parameters.h",
            parameters.h,
            0.2 <= parameters.h <= 2,
            "from 0.2 to 2, H0 / (100 km/s/Mpc)",
        ),
        ("parameters.n_s", parameters.n_s, 0 < parameters.n_s < 3, "between 0 and 3"),
        ("parameters.sigma8", parameters.sigma8, 0 < parameters.sigma8 < 3, "between 0 and 3"),
        ("tracers.nbar", tracers.nbar, tracers.nbar > 0, "a positive number density in (h/Mpc)^3"),
        ("tracers.bias", tracers.bias, 0 < tracers.bias <= 10, "between 0 and 10"),
        (
            "tracers.line_of_sight",
            tracers.line_of_sight,
            tracers.line_of_sight in (0, 1, 2),
            "axis 0, 1 or 2",
        ),
        *(
            (f"boxes.{split}", data.boxes[split], data.boxes[split] >= 1, "at least 1")
            for split in SPLITS
        ),
    )
    faults = [
        f"data.{name} is {value!r}: expected {expected}"
        for name, value, sound, expected in rules
        if not sound
    ]
    if faults:
        raise UserError("; ".join(faults))
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


def _digest(settings: Settings) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _spec(settings: Settings) -> Spec:
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


def _cache_folder(wanted: str) -> Path:
    """The cache folder, made if needed; when it cannot be written, one in the temporary folder,
    with a message.
    """
    first, second = Path(wanted).expanduser(), Path(tempfile.gettempdir()) / "jaxvol"
    for folder in (first, second):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except (OSError, RuntimeError) as error:
            reason = error
            if folder == first:
                logging.warning(
                    "data.cache_dir %s cannot be written (%s): simulated boxes go to %s",
                    first,
                    error,
                    second,
                )
    raise UserError(
        f"neither data.cache_dir {first} nor {second} can be written ({reason}): "
        "set data.cache_dir to a folder that can"
    )


def _name(split: str, index: int) -> str:
    return f"{split}-{index:05d}.npz"


def _load(path: Path, grid: int) -> dict[str, np.ndarray]:
    """The fields of one box, [n, n, n, 1] float32; the zip checksum of each is verified by the
    read.

    Raises OSError, ValueError and zipfile.BadZipFile on a damaged file.
    """
    with np.load(path, allow_pickle=False) as file:
        if sorted(file.files) != ["input", "target"]:
            raise ValueError(f"{path} holds {sorted(file.files)}, expected input and target")
        box = {name: file[name] for name in file.files}
    for name, values in box.items():
        if (
            values.shape != (grid, grid, grid)
            or values.dtype != np.float32
            or not np.isfinite(values).all()
        ):
            raise ValueError(
                f"{path}, {name}: found {values.dtype} {values.shape}, expected finite float32 "
                f"{(grid,) * 3}"
            )
    return {name: values[..., None] for name, values in box.items()}


def _fill(folder: Path, sizes: dict[str, int], settings: Settings) -> None:
    """Simulate every box that `folder` lacks or holds damaged."""
    missing = []
    for split, size in sizes.items():
        for index in range(size):
            try:
                _load(folder / _name(split, index), settings["grid"])
            except FileNotFoundError:
                missing.append((split, index))
            # damaged bytes raise anything, from SyntaxError to BadZipFile
            except Exception as error:
                logging.warning(
                    "cached box %s is damaged and is simulated again (%s)",
                    folder / _name(split, index),
                    error,
                )
                missing.append((split, index))
    if not missing:
        return
    folder.mkdir(exist_ok=True)
    simulate, together = _simulator(settings)
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
                _save(folder / _name(split, index), input=x, target=y)
            bar.update(len(batch))


def _save(path: Path, **fields: np.ndarray) -> None:
    """Write one box atomically: another process sees it whole or not at all."""
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            np.savez(file, **fields)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error}): free some space or set data.cache_dir to another "
            "folder"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _simulator(settings: Settings) -> tuple[Simulator, int]:
    """(function from boxes to their (input, target) [N, n, n, n] float32, the number N of boxes it
    takes at once).
    """
    grid, box_size, tracers = settings["grid"], settings["box_size"], settings.get("tracers")
    parameters = cosmology.Cosmology(**settings["parameters"])
    a = 1.0 / (1.0 + settings["redshift"])
    amplitude = lpt.mode_amplitude(grid, box_size, lambda k: cosmology.linear_power(k, parameters))
    if settings["evolution"] == "pm":
        together, evolve_one = (
            1,
            nbody.particle_mesh(grid, box_size, parameters, a, settings["pm_steps"]),
        )

        def evolve(deltas: Array) -> tuple[Array, Array]:
            return tuple(field[None] for field in evolve_one(deltas[0]))
    else:
        together = max(1, min(16, VOXELS_AT_ONCE // grid**3))
        evolve = functools.partial(
            _second_order, growth=cosmology.growth(a, parameters), box_size=box_size
        )

    def simulate(boxes: list[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
        seed = jax.random.key(settings["seed"])
        keys = jnp.stack(
            [
                jax.random.fold_in(jax.random.fold_in(seed, SPLITS[split]), index)
                for split, index in boxes
            ]
        )
        deltas = _initial(keys, amplitude)
        displacements, velocities = evolve(deltas)
        if tracers is None:
            return np.asarray(_density(displacements, box_size)), np.asarray(deltas)
        expected, densities = _tracers(
            displacements, velocities, box_size, tracers["bias"], tracers["line_of_sight"]
        )
        mean = tracers["nbar"] * (box_size / grid) ** 3
        counts = [
            np.random.default_rng([settings["seed"], SPLITS[split], index]).poisson(
                mean * rate.astype(np.float64)
            )
            for (split, index), rate in zip(boxes, np.asarray(expected))
        ]
        return np.stack(counts).astype(np.float32), np.asarray(densities)

    return simulate, together


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None))
def _initial(key: Key, amplitude: Array) -> Array:
    """Linear density contrast today, [n, n, n]."""
    grid = amplitude.shape[0]
    return lpt.gaussian_field(jax.random.normal(key, (grid,) * 3, jnp.float32), amplitude)


@functools.partial(jax.jit, static_argnames="box_size")
def _second_order(deltas: Array, growth: cosmology.Growth, box_size: float) -> tuple[Array, Array]:
    """2LPT displacements and velocities v / (a H) of [N, n, n, n] contrasts, both [N, n, n, n, 3]
    in Mpc/h.
    """
    d1, f1, d2, f2 = (jnp.asarray(value, deltas.dtype) for value in growth)
    first, second = jax.vmap(lambda delta: lpt.displacements(delta, box_size))(deltas)
    return d1 * first + d2 * second, f1 * d1 * first + f2 * d2 * second


@functools.partial(jax.jit, static_argnames="box_size")
def _density(displacements: Array, box_size: float) -> Array:
    """1 + delta of the displaced lattices, [N, n, n, n, 3] in Mpc/h -> [N, n, n, n]."""
    return jax.vmap(cic.paint)(displacements * (displacements.shape[1] / box_size))


@functools.partial(jax.jit, static_argnames=("box_size", "axis"))
def _tracers(
    displacements: Array, velocities: Array, box_size: float, bias: float, axis: int
) -> tuple[Array, Array]:
    """Expected number of tracers in units of its mean, in redshift space along `axis` (-1: real
    space), and 1 + delta.

    Tracers follow the matter: a particle at x counts rho(x)^(b - 1), so that their density is about
    rho^b in real space and distortions in redshift space come from the velocities of the matter
    (linear theory: b + f mu^2, Kaiser 1987).
    """

    def one(displacement: Array, velocity: Array) -> tuple[Array, Array]:
        density = cic.paint(displacement)
        weight = cic.read(density, displacement) ** (bias - 1.0)
        if axis >= 0:
            displacement = displacement.at[..., axis].add(velocity[..., axis])
        return cic.paint(displacement, weight / weight.mean()), density

    cells = displacements.shape[1] / box_size
    return jax.vmap(one)(displacements * cells, velocities * cells)
