"""Points for physics-informed training: inside a domain, on its faces, at its start, and where
something was measured.

An example is a SET of points, so that a batch is `points` [B, n, d] and, for every condition of the
problem, `<condition>` [B, n_c, d] with `<condition>_target` [B, n_c, k]; coordinates are physical.
A set is a function of (seed, draw, example), and the draw is the step divided by `resample`: fixed
or fresh points, and a run that was stopped goes on with those it would have had.

Validation and test have one example: the grid `input` [D, H, W, d] (normalised coordinates; the
first axes have length one when d < 3), the solution on it as `target` [D, H, W, m], and a set of
points that training never sees.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict
from scipy.stats import qmc

from jaxvol import pdes
from jaxvol.data import measured
from jaxvol.ops import normalise
from jaxvol.types import Dataset, Field, Spec, UserError

SAMPLERS = ("uniform", "latin", "sobol", "grid")
# draws that no training step reaches
EVALUATION = {"train": 2**31, "val": 2**31 + 1, "test": 2**31 + 2}
# the draw of places that are measured once
SENSORS = 2**31 + 3


def fields() -> ConfigDict:
    """Point sets of a problem (jaxvol/data/collocation.py); config.batch_size counts sets, one is
    enough on one device.
    """
    return ConfigDict(
        {
            "name": "collocation",
            "problem": pdes.fields("helmholtz"),  # or another equation of jaxvol/pdes/
            "points": ConfigDict(
                {  # of one set
                    "interior": 1000,  # where the equation has to hold
                    "boundary": 100,  # on each face of space; one where a face is a point
                    "initial": 400,  # at the first time
                    "data": 200,  # where the solution of an inverse problem was measured
                }
            ),
            "sampler": "latin",  # uniform | latin (hypercube) | sobol | grid
            # draw new points after so many updates; 0 = the same ones all the time
            "resample": 0,
        }
    )


def rules(config: ConfigDict) -> list[str]:
    """Violated rules of `config.data`, for jaxvol/config/validate.py."""
    data = config.data
    violations = []
    if data.sampler not in SAMPLERS:
        violations.append(
            f"data.sampler is {data.sampler!r}; it has to be one of {', '.join(SAMPLERS)}."
        )
    violations += [
        f"data.points.{name} is {data.points[name]}; it has to be at least 1."
        for name in data.points
        if data.points[name] < 1
    ]
    if data.resample < 0:
        violations.append(
            f"data.resample is {data.resample}; it has to be 0 (fixed points) or a number of "
            "updates."
        )
    return violations


def sample(
    rng: np.random.Generator, n: int, low: np.ndarray, high: np.ndarray, sampler: str
) -> np.ndarray:
    """n points of the box low <= x <= high, [n, d] float64.

    sampler: uniform | latin (hypercube) | sobol (scrambled) | grid (the nearest regular one, cut
             to n)
    """
    d = len(low)
    if d == 0:
        return np.zeros((n, 0))
    if sampler == "uniform":
        unit = rng.uniform(size=(n, d))
    elif sampler == "latin":
        unit = qmc.LatinHypercube(d, rng=rng).random(n)
    elif sampler == "sobol":
        unit = qmc.Sobol(d, rng=rng).random_base2(max(n - 1, 1).bit_length())[:n]
    else:
        side = np.linspace(0, 1, round(np.ceil(n ** (1 / d))))
        unit = np.stack(np.meshgrid(*[side] * d, indexing="ij"), -1).reshape(-1, d)
        unit = unit[np.linspace(0, len(unit) - 1, n).round().astype(int)]
    return low + unit * (high - low)


def on_faces(
    rng: np.random.Generator, n: int, problem: pdes.Problem, faces: tuple, sampler: str
) -> np.ndarray:
    """n points of every face, [faces n, d]; one point where a face is a point."""
    low, high = np.array(problem.low), np.array(problem.high)
    if not faces:
        return sample(rng, n, low, high, sampler)
    sets = []
    for axis, bound in faces:
        free = np.arange(len(low)) != axis
        points = np.full((n if free.any() else 1, len(low)), float(bound))
        points[:, free] = sample(rng, len(points), low[free], high[free], sampler)
        sets.append(points)
    return np.concatenate(sets)


def draw(
    config: ConfigDict, problem: pdes.Problem, number: int, example: int
) -> dict[str, np.ndarray]:
    """The point set of one example of a draw:
    {"points" [n, d], "<condition>" [n_c, d], "<condition>_target" [n_c, k]}.
    """
    data, dtype = config.data, np.float64 if config.precision == "f64" else np.float32
    rng = np.random.default_rng([config.seed, number, example])
    sets = {
        "points": sample(
            rng, data.points.interior, np.array(problem.low), np.array(problem.high), data.sampler
        )
    }
    for condition in problem.conditions:
        generator = rng
        if condition.kind == "data":  # measured once: every draw has the same sensors and noise
            generator = np.random.default_rng([config.seed, SENSORS, example])
        count = data.points[condition.kind]
        at = (
            on_faces(generator, count, problem, condition.faces, data.sampler)
            if condition.places is None
            else condition.places[rng.integers(len(condition.places), size=count)]
        )
        target = np.asarray(condition.target(at), np.float64)
        if condition.noise:
            target = target + condition.noise * target.std() * generator.normal(size=target.shape)
        sets |= {condition.name: at, f"{condition.name}_target": target}
    return {name: values.astype(dtype) for name, values in sets.items()}


def specify(problem: pdes.Problem) -> Spec:
    """The evaluation grid as a volume: axes of length one come first."""
    low, high, d = np.array(problem.low), np.array(problem.high), len(problem.low)
    scaled = {"name": "linear", "low": low.tolist(), "high": high.tolist(), "clip": False}
    spacing = (high - low) / (np.array(problem.grid) - 1)
    return Spec(
        {
            "input": Field(problem.coordinates, "coordinates", normaliser=(scaled,)),
            "target": Field(problem.fields),
        },
        (1,) * (3 - d) + tuple(problem.grid),
        (1.0,) * (3 - d) + tuple(map(float, spacing)),
    )


def make(config: ConfigDict) -> Dataset:
    """The points of `config.data.problem`.  Raises UserError for an unknown problem or one with
    more than three coordinates.
    """
    problem = measured.problem(config.data.problem)
    if len(problem.low) > 3:
        raise UserError(
            f"the problem has the coordinates {', '.join(problem.coordinates)}; the evaluation "
            "grid takes three at most"
        )
    spec, dtype = specify(problem), np.float64 if config.precision == "f64" else np.float32
    resample = config.data.resample

    @functools.lru_cache(maxsize=2)
    def sets(number: int, start: int, stop: int) -> dict[str, np.ndarray]:
        examples = [draw(config, problem, number, i) for i in range(start, stop)]
        return {name: np.stack([e[name] for e in examples]) for name in examples[0]}

    @functools.lru_cache(maxsize=1)
    def grid() -> dict[str, np.ndarray]:
        x = problem.mesh
        values = {
            "input": normalise.forward(spec.fields["input"].normaliser, x),
            "target": problem.solution(x, np),
        }
        return {
            name: np.asarray(v, dtype).reshape(1, *spec.shape, -1) for name, v in values.items()
        }

    def batch(step: int, rows: slice) -> dict[str, np.ndarray]:
        start, stop, _ = rows.indices(config.batch_size)
        return sets(step // resample if resample else 0, start, stop)

    def batches(
        split: str, batch_size: int, rows: slice, limit: int
    ) -> Iterator[dict[str, np.ndarray]]:
        start, stop, _ = rows.indices(batch_size)
        one = {**grid(), **sets(EVALUATION[split], 0, 1)}
        yield {
            **{name: np.repeat(v, stop - start, 0) for name, v in one.items()},
            "_mask": (np.arange(start, stop) == 0).astype(np.float32),
            "_index": np.zeros(stop - start, np.int32),
        }

    return Dataset(
        spec=spec,
        sizes=dict.fromkeys(EVALUATION, 1),
        batch=batch,
        stream=lambda start, stop, rows: (batch(s, rows) for s in range(start, stop)),
        batches=batches,
        names=lambda split: [config.data.problem.name],
        hash=_digest(config, problem),
        skipped=lambda: [],
    )


def _digest(config: ConfigDict, problem: pdes.Problem) -> str:
    """Of the settings; what was measured takes the place of the folder that it came from."""
    settings = json.loads(config.data.to_json())
    if problem.fingerprint:
        settings["problem"] = problem.fingerprint
    text = json.dumps([settings, config.seed, config.precision], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
