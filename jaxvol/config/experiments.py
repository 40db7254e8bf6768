"""Config files: the user's own, and the experiments of jaxvol (configs/ of the checkout)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from jaxvol.runtime import modules
from jaxvol.types import UserError


def folder() -> Path:
    """Where the shipped experiments lie: inside of an installed jaxvol, or beside its source."""
    installed = modules.PACKAGE / "experiments"
    return installed if installed.is_dir() else modules.PACKAGE.parent / "configs"


def names() -> list[str]:
    """The shipped experiments: fno, vnet, ..."""
    return sorted(file.stem for file in folder().glob("*.py"))


def find(file: str) -> tuple[Path, bool]:
    """(path, whether it is a shipped one) of `--config=file`.

    A file of the user's wins; `configs/fno.py`, `fno.py` and `fno` mean the shipped one otherwise.
    Raises UserError with the list of shipped ones where there is neither.
    """
    if Path(file).is_file():
        return Path(file), False
    name = Path(file)
    shipped = folder() / f"{name.stem}.py"
    if name.suffix in ("", ".py") and name.parent.as_posix() in (".", "configs"):
        if shipped.is_file():
            return shipped, True
    raise UserError(
        f"--config={file}: there is no such file, seen from {Path.cwd()}, and no experiment of "
        f"that name comes with jaxvol, which has {', '.join(names())}."
    )


def load(name: str) -> ModuleType:
    """The module of a shipped experiment: `load("fno").get_config("quick")`."""
    return modules.from_file(folder() / f"{name}.py")
