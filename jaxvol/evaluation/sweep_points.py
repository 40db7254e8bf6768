"""The points of a sweep: what sweep() of a config file asks for, as command lines, and which are
done already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxvol.config import command_line, experiments, identity, validate
from jaxvol.runtime import modules, provenance
from jaxvol.runtime.regular_files import open_regular
from jaxvol.types import UserError


@dataclasses.dataclass(frozen=True)
class Point:
    """One training of the sweep."""

    name: str
    params: dict[str, Any]  # what sweep() overrides at this point
    config: ConfigDict
    workdir: Path
    arguments: list[str]  # of jaxvol.main


def flag(key: str, value: Any) -> str:
    """An override as a flag without spaces, so that `$(cat best.txt)` keeps it in one piece."""
    text = re.sub(r"([,:]) ", r"\1", repr(tuple(value) if isinstance(value, list) else value))
    return f"--config.{key}={value if isinstance(value, str) else text}"


def short_name(params: dict[str, Any]) -> str:
    """Folder name of a point, learning_rate_0.001-width_32: no comma, since --config.compare.runs
    separates folders by it.
    """
    parts = (
        f"{key.rpartition('.')[2]}_{flag('', value).partition('=')[2].strip('(),')}"
        for key, value in params.items()
    )
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join(parts)).strip("_")[:80] or "as-it-is"


def separated(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """(the value of --config, the overrides that all points share) of a sweep's command line.

    --mode, --workdir and the fields of config.sweep are the sweep's own.
    """
    config, overrides, left = "", [], list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        name = name.lstrip("-")
        if name not in ("config", "mode", "workdir") and not name.startswith("config.sweep."):
            overrides.append(argument)
            continue
        if not equals and left and not left[0].startswith("-"):
            value = left.pop(0)
        if name == "config":
            config = value
    return config, overrides


def load(config: str, overrides: Sequence[str], folder: Path) -> list[Point]:
    """The points of sweep() in a config file, `FILE.py[:variant]`; their workdirs lie in `folder`.

    Every point is parsed and validated here, so that a mistake in one of them stops the sweep
    before anything is trained.  Raises UserError that names every unusable point.
    """
    file = config.partition(":")[0]
    listed = listed_in(file)
    names = [short_name(params) for params in listed]
    points, errors = [], []
    for params, name in zip(listed, names, strict=True):
        if names.count(name) > 1:
            name += "-" + hashlib.sha256(repr(sorted(params.items())).encode()).hexdigest()[:8]
        arguments = [
            f"--config={config}",
            *overrides,
            *(flag(k, v) for k, v in params.items()),
            f"--workdir={folder / name}",
        ]
        try:
            parsed, _, _ = command_line.parse(["sweep", *arguments])
            validate.validate(parsed)
        except UserError as error:
            errors.append(f"sweep() in {file}, point {params}: {error}")
            continue
        points.append(Point(name, params, parsed, folder / name, arguments))
    if errors:
        raise UserError("\n".join(errors))
    if len({p.name for p in points}) < len(points):
        raise UserError(
            f"sweep() in {file} returns the same point twice; make every point another one."
        )
    return points


def listed_in(file: str) -> list[dict[str, Any]]:
    """What sweep() in a config file returns; UserError unless it is a list of overrides."""
    module = modules.from_file(experiments.find(file)[0])
    if not hasattr(module, "sweep"):
        raise UserError(
            f"{file} has no function sweep(); expected one that returns "
            "[{'optimizer.learning_rate': 1e-3}, ...]."
        )
    listed = module.sweep()
    if not isinstance(listed, list) or not listed or not all(isinstance(p, dict) for p in listed):
        raise UserError(
            f"sweep() in {file} returned {listed!r}; expected a list of dictionaries "
            "{'field.of.config': value}."
        )
    return listed


def read_status(point: Point) -> dict[str, Any]:
    """status.json of a point; empty if it never ran or the file cannot be read."""
    try:
        with open_regular(point.workdir / "status.json") as file:
            status = json.load(file)
        return status if isinstance(status, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def is_done(point: Point) -> bool:
    """The point was trained to its end and scored, with the config it has now."""
    status = read_status(point)
    scored = (point.workdir / "evaluation" / "metrics.json").exists()
    if not scored or "state" not in status or status["state"] not in ("finished", "early_stopped"):
        return False
    # no readable config.json: the training itself says what is wrong
    with contextlib.suppress(UserError):
        stored = provenance.read_config(point.workdir / "config.json")
        return identity.fingerprint(stored) == identity.fingerprint(point.config)
    return False
