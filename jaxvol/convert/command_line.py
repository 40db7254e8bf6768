"""The command that makes a workdir of the weights of a published PyTorch model.

    python -m jaxvol.convert --model=vnet --original=hparams.json --input=unet_best.pt \\
        --output=runs/imported [--key=model.ema] [--config=FILE.py] [--config.a.b=value]

The model block of the config comes from the original's hyper-parameters (a JSON object), everything
else from `--config`; without it from the experiment of that network that comes with jaxvol.

Normalisation.  A network works only on data prepared as in its training, which a file of weights
does not tell.  Without `--config`, data go in and come out as they are, and of the experiment only
the rest is used.  With `--config`, or an override of `--config.data.input_normaliser` or
`target_normaliser`, that config decides; what such a normaliser fits is fitted on the training data
of the config, not on the original's.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxvol.config import command_line
from jaxvol.convert.published import NETWORKS, import_run
from jaxvol.data.io import weights
from jaxvol.types import UserError

NORMALISERS = ("input_normaliser", "target_normaliser")


class Import(NamedTuple):
    """What a command line asks for: the arguments of `published.import_run`."""

    kind: str
    tensors: dict
    original: dict[str, Any]
    config: ConfigDict
    output: Path
    source: dict[str, str]


def cli(argv: list[str]) -> int:
    """Run one command line; returns the exit status, 0 or 1."""
    try:
        request = parse(argv)
        jax.config.update("jax_enable_x64", request.config.precision == "f64")
        print(import_run(*request))
        print(
            f"python -m jaxvol.main --config=FILE --workdir={request.output} --mode=evaluate "
            "scores it."
        )
        return 0
    except command_line.Help as text:
        print(text)
        return 0
    except UserError as error:
        print(f"\njaxvol: {error}", file=sys.stderr)
        return 1


def parse(argv: list[str]) -> Import:
    """What a command line asks for, with everything read that it names.

    Raises UserError for what cannot be understood or read, and Help for --help.
    """
    values = defined()
    try:
        others = values(argv, known_only=True)
    except flags.Error as error:
        raise unusable(error) from error
    usage = f"{__doc__}\nmodels: {', '.join(NETWORKS)}"
    if values.help:
        raise command_line.Help(usage)
    required = ("model", "original", "input", "output")
    if absent := [f"--{name}" for name in required if not values[name].value]:
        raise UserError(f"{usage}; missing: {' '.join(absent)}")
    config = configured(values.model, others)
    source = {"input": values.input, "key": values.key}
    tensors = weights.read(values.input, values.key)
    source["sha256"] = hashlib.sha256(Path(values.input).read_bytes()).hexdigest()
    original = read_original(values.original)
    return Import(values.model, tensors, original, config, Path(values.output), source)


def defined() -> flags.FlagValues:
    """The flags of this command besides --config."""
    values = flags.FlagValues()
    flags.DEFINE_enum("model", None, list(NETWORKS), "what the weights are of", flag_values=values)
    for name, text in (
        ("original", "JSON file with the original's hyper-parameters"),
        ("input", f"file of weights: {' '.join(weights.EXTENSIONS)}"),
        ("key", "the state dict inside the file, e.g. model.ema"),
        ("output", "workdir to make"),
    ):
        flags.DEFINE_string(name, "", text, flag_values=values)
    flags.DEFINE_bool("help", False, "this text", flag_values=values)
    return values


def configured(kind: str, argv: list[str]) -> ConfigDict:
    """The config of a command line of which --config and its overrides are left.

    Without --config it is the shipped experiment of the network, without its normalisers.
    """
    argv, file, _ = command_line.located(argv)
    if not file:
        default = f"--config={NETWORKS[kind][0]}"
        argv = command_line.located([argv[0], default, *argv[1:]])[0]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "config file", flag_values=values, sys_argv=argv, lock_config=True
    )
    try:
        rest, config = values(argv), values.config
    # absl, ml_collections and the config file itself raise many types
    except UserError:
        raise
    except Exception as error:
        raise unusable(error) from error
    if rest[1:]:
        raise UserError(
            f"Arguments {' '.join(rest[1:])} are not understood; overrides look like "
            "--config.data.grid=64."
        )
    if not file:
        with config.unlocked():
            for field in NORMALISERS:
                if not any(a.startswith(f"--config.data.{field}") for a in argv):
                    config.data[field] = ()
    return config


def unusable(error: Exception) -> UserError:
    """The UserError for what absl or a config file refused."""
    return UserError(f"The command line cannot be used: {command_line.reason(error)}")


def read_original(path: str) -> dict[str, Any]:
    """The hyper-parameters in a JSON file; UserError unless it holds an object."""
    try:
        original = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--original={path}: it cannot be read as JSON ({error})") from error
    if not isinstance(original, dict):
        raise UserError(
            f"--original={path}: found a JSON {type(original).__name__}; expected an object of "
            "hyper-parameters"
        )
    return original
