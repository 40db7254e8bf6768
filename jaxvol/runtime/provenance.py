"""config.json of a run: its config, and what ran it (versions, commit, device)."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import flax
import jax
import jaxlib
import numpy as np
import optax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from jaxvol.runtime import atomic, text
from jaxvol.runtime.regular_files import open_regular
from jaxvol.types import UserError

NAMES = {str: "text", list: "list", int: "number", float: "number", bool: "value", dict: "table"}
NAMES[type(None)] = "value"
FORMAT_VERSION = 1  # of config.json and the layout of the workdir


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Replace <workdir>/config.json: the config, and what ran it."""
    record = {
        "format_version": FORMAT_VERSION,
        "config": json.loads(config.to_json()),
        "versions": versions(),
        "commit": commit(),
        "device": {
            "platform": jax.devices()[0].platform,
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
    }
    atomic.write_text(workdir / "config.json", json.dumps(record, indent=1))


def read_config(file: str | Path) -> ConfigDict:
    """The config in a config.json, its tuples as lists.  Raises UserError if the file is broken or
    of another format.
    """
    try:
        with open_regular(file) as source:
            record = json.load(source)
        if record["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"format version {record['format_version']}, this jaxvol reads {FORMAT_VERSION}"
            )
        if not isinstance(record["config"], dict):
            raise ValueError(f"its config is {shown(record['config'])}, not a table of fields")
        return ConfigDict(record["config"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be used as the config.json of a run ({type(error).__name__}: "
            f"{text.plain(error, 300)}). "
            "Restore it, or choose another --workdir."
        ) from error


def shown(value: object) -> str:
    """A value of a JSON file in a few words."""
    return text.plain(f"the {NAMES[type(value)]} {value!r}", 80)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    packages = {
        "jaxvol": sys.modules["jaxvol"],
        "jax": jax,
        "jaxlib": jaxlib,
        "flax": flax,
        "optax": optax,
        "orbax": ocp,
        "numpy": np,
    }
    return {
        "python": platform.python_version(),
        **{name: module.__version__ for name, module in packages.items()},
    }


def commit() -> str | None:
    """Git commit of this source tree, with "-dirty" if tracked files were changed; None when it is
    in no repository.
    """
    root = Path(__file__).resolve().parents[2]
    # an installed copy may lie inside somebody else's repository: git would find that one
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe"]
    command += ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
