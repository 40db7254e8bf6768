"""From names in a config to modules and functions: the only place that imports by name.

`config.model.name = "fno"` means `jaxvol/models/fno.py`; a name with dots, `"mylab.unet"`, or of a
file beside the config or in the current folder, `"unet_mine"`, means the user's own module.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from jaxvol.types import UserError

# folder of jaxvol -> (what a config calls its choices, the function that makes a module a choice)
ROOMS = {
    "models": ("model.name", "make"),
    "data": ("data.name", "make"),
    "tasks": ("task.name", "make"),
    "diagnostics/checks": ("preflight.checks", "diagnose"),
}
PACKAGE = Path(__file__).parents[1]


def choices(room: str) -> list[str]:
    """Names that a config may use: the files of jaxvol/<room>/ that define the room's function."""
    _, function = ROOMS[room]
    files = (PACKAGE / room).glob("*.py")
    return sorted(f.stem for f in files if f"\ndef {function}(" in f.read_text(encoding="utf-8"))


def module(room: str, name: str) -> ModuleType:
    """jaxvol/<room>/<name>.py, or the user's own module of that dotted name.

    Raises UserError with the list of known names where there is neither, and where the user's
    module does not define the function that the room needs.
    """
    field, function = ROOMS[room]
    if name in choices(room):
        return importlib.import_module(f"jaxvol.{room.replace('/', '.')}.{name}")
    hint = (
        f"jaxvol/{room}/ has {', '.join(choices(room))}. Use one of these, or the module path of "
        "your own file, seen from the config's folder or the current one."
    )
    loaded = imported(name, f"config.{field} is {name!r}, but ", hint)
    if not hasattr(loaded, function):
        raise UserError(
            f"config.{field} is {name!r}, and {loaded.__file__} does not define {function}(). "
            f"{hint}"
        )
    return loaded


def function(name: str, field: str) -> Callable:
    """The user's own function `package.module.function`, named in the config as `field`."""
    path, _, attribute = name.rpartition(".")
    hint = "Expected the path of a function of yours, package.module.function."
    loaded = imported(path, f"config.{field} has {name!r}, but ", hint)
    if not callable(getattr(loaded, attribute, None)):
        raise UserError(
            f"config.{field} has {name!r}, and {loaded.__file__} has no function {attribute}. "
            f"{hint}"
        )
    return getattr(loaded, attribute)


def imported(name: str, before: str, hint: str) -> ModuleType:
    """The module `name`; UserError that begins with `before` where there is none.

    Errors inside the user's module are the user's to see, and are raised as they are.
    """
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{before}that is no name of a module. {hint}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise
        raise UserError(f"{before}there is no module {error.name!r}. {hint}") from error


def search_in(folder: Path) -> None:
    """Let names of modules mean files in `folder` and in the current folder as well."""
    for place in (str(Path.cwd()), str(folder.resolve())):
        if place not in sys.path:
            sys.path.insert(0, place)


def from_file(path: Path) -> ModuleType:
    """The module that one file is, under a name of its own."""
    name = f"jaxvol_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
