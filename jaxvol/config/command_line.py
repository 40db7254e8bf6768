"""From a command line to a config: flags, overrides, where a run is kept."""

from __future__ import annotations

import traceback
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from jaxvol import __version__
from jaxvol.config import experiments, field_help
from jaxvol.runtime import modules
from jaxvol.types import UserError

MODES = ("train", "preflight", "evaluate", "predict", "compare", "sweep")
USAGE = (
    "python -m jaxvol.main --config=configs/fno.py[:variant] [--config.a.b=value] [--workdir=DIR] "
    "[--mode=MODE]"
)


class Help(Exception):
    """Text that was asked for on the command line, in place of a run."""


def parse(argv: list[str], modes: tuple[str, ...] = MODES) -> tuple[ConfigDict, str, Path]:
    """(config, mode, workdir) of a command line.

    Raises UserError for anything that cannot be understood, and Help for --help and --version.
    """
    argv, file, variant = located(argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "config file, FILE.py or FILE.py:variant",
        flag_values=values,
        sys_argv=argv,
        lock_config=True,
    )
    flags.DEFINE_enum("mode", "train", modes, "what to do", flag_values=values)
    flags.DEFINE_string(
        "workdir",
        "",
        "folder of the run; default runs/[sweep-]<config file>[-variant]",
        flag_values=values,
    )
    flags.DEFINE_bool("help", False, "this text", flag_values=values)
    flags.DEFINE_bool("version", False, "the version of jaxvol", flag_values=values)
    try:
        rest = values(argv)
    # absl, ml_collections and the config file itself raise many types
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The command line cannot be used: {reason(error)}") from error
    if values.version:
        raise Help(f"jaxvol {__version__}")
    if values.help:
        page = usage(modes)
        if values["config"].value:
            page += f"\n\nfields of --config={file}:\n{field_help.page(values.config)}"
        raise Help(page)
    if not values["config"].value:
        raise UserError(usage(modes))
    if rest[1:]:
        raise UserError(
            f"Arguments {' '.join(rest[1:])} are not understood; overrides look like "
            "--config.total_steps=100."
        )
    warn_of_variant(file, variant)
    name = f"{Path(file).stem}-{variant}" if variant else Path(file).stem
    default = Path("runs") / (f"sweep-{name}" if values.mode == "sweep" else name)
    return values.config, values.mode, Path(values.workdir or default)


def usage(modes: tuple[str, ...] = MODES) -> str:
    """One page: how a command line looks, the modes, the shipped experiments."""
    return (
        f"{USAGE}\n    modes: {', '.join(modes)}\n    experiments that come with jaxvol: "
        f"{', '.join(f'configs/{name}.py' for name in experiments.names())}"
    )


def warn_of_variant(file: str, variant: str) -> None:
    """Say that a config file does not know a variant: its get_config returns what it does without
    one, and that is what runs.
    """
    if not variant:
        return
    loaded = modules.from_file(experiments.find(file)[0])
    if hasattr(loaded, "VARIANTS") and variant in loaded.VARIANTS:
        return
    try:
        same = loaded.get_config(variant).to_json() == loaded.get_config("").to_json()
    except Exception:  # a file may ask for a variant
        return
    if same:
        logging.warning(
            "THE VARIANT %r CHANGES NOTHING: %s makes the same config as without it, and that "
            "one is used. A file chooses its variants in get_config(variant), see configs/fno.py.",
            variant,
            file,
        )


def located(argv: list[str]) -> tuple[list[str], str, str]:
    """(argv with the config file where it lies, file and variant as they were given)."""
    changed = list(argv)
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-config"):
            continue
        if not equals and i + 1 < len(argv):
            value = argv[i + 1]
        file, colon, variant = value.partition(":")
        if not file:
            continue
        path, shipped = experiments.find(file)
        if shipped and path.resolve() != (Path.cwd() / file).resolve():
            logging.info("--config=%s: the experiment that comes with jaxvol, %s", file, path)
        modules.search_in(path.parent)
        changed[i : i + (1 if equals else 2)] = [f"--config={path}{colon}{variant}"]
        return changed, file, variant
    return changed, "", ""


def reason(error: Exception) -> str:
    """What was wrong with a command line, in one line."""
    if not isinstance(
        error, (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)
    ):
        traceback.print_exc()
    cause = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
    # of a flag: the name of a field or block in quotes, perhaps with a guess on a second line
    if isinstance(cause, KeyError) and cause.args and str(cause.args[0]).startswith(("'", '"')):
        name, _, guess = str(cause.args[0]).partition("\n")
        return (
            f"the config has no field {name}"
            + (f" ({guess.lower().rstrip('?')})" if guess else "")
            + "; --help beside --config lists its fields"
        )
    return str(error).splitlines()[-1] if str(error) else type(error).__name__
