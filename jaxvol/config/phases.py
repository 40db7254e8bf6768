"""The phases of a run: a config each, how long it lasts, and what it begins with.

`config.phases` lists (name, steps, {"field.path": value, ...}) or, with a fourth entry, how the
weights of the phase before are taken over:

    ("adapt", 2000, {"optimizer.learning_rate": 1e-4}, {"start": "ema", "from": "best"})

start: raw (default) | ema or another average; from: end (default) | best validation of the phase
before.
"""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

from jaxvol.config import identity

HANDOVER = {"start": "raw", "from": "end"}


class Phase(NamedTuple):
    """Updates `start` to `stop - 1` of a run that no early stopping shortens, with a config of its
    own whose total_steps is the phase's length.
    """

    name: str
    start: int
    stop: int
    config: ConfigDict
    weights: str = "raw"  # of the phase before that this one begins with
    source: str = "end"  # of the phase before: end | best

    @property
    def steps(self) -> int:
        """Updates of this phase."""
        return self.stop - self.start


def plan(config: ConfigDict) -> list[Phase]:
    """Every phase in order; overrides of `config.phases` are dotted paths."""
    if not config.phases:
        return [Phase("", 0, config.total_steps, config)]
    phases, start = [], 0
    for name, steps, overrides, *handover in config.phases:
        phase = ConfigDict(config.to_dict())
        phase.update_from_flattened_dict(dict(overrides))
        phase.total_steps = steps
        taken = {**HANDOVER, **(dict(handover[0]) if handover else {})}
        phases.append(
            Phase(name, start, start + steps, phase.lock(), taken["start"], taken["from"])
        )
        start += steps
    return phases


def same_data(a: ConfigDict, b: ConfigDict) -> bool:
    """Whether two phases read the same batches, so that one dataset serves both."""
    return all(identity.flatten(read(a)) == identity.flatten(read(b)) for read in (_data, _batches))


def _data(config: ConfigDict) -> dict:
    return {"data": config.data.to_dict()}


def _batches(config: ConfigDict) -> dict:
    names = ("seed", "batch_size", "precision")
    return {name: config[name] for name in names} | {"evaluate": config.evaluate.batch_size}


def violations(config: ConfigDict) -> list[str]:
    """What is wrong with `config.phases`, one line each."""
    lines, total, names = [], 0, []
    known = identity.flatten(config.to_dict())
    for phase in config.phases:
        if (
            len(phase) not in (3, 4)
            or not isinstance(phase[0], str)
            or not isinstance(phase[1], int)
            or phase[1] < 1
            or not all(hasattr(part, "items") for part in phase[2:])
        ):
            lines.append(
                f"phases has {phase!r}; a phase is (name, steps >= 1, {{'field.path': value}}), "
                "and may end with {'start': 'raw' | 'ema', 'from': 'end' | 'best'}."
            )
            continue
        names.append(phase[0])
        total += phase[1]
        lines += [
            f"phase {phase[0]!r} overrides {path!r}, which is no config field."
            for path in phase[2]
            if path not in known
        ]
        for key, value in (dict(phase[3]) if len(phase) == 4 else {}).items():
            if key not in HANDOVER or (key == "from" and value not in ("end", "best")):
                lines.append(
                    f"phase {phase[0]!r} has {key!r}: {value!r}; known are 'start' (raw, ema or "
                    "another average) and 'from' (end or best)."
                )
    if len(set(names)) < len(names):
        lines.append(f"phases are called {', '.join(names)}; give each a name of its own.")
    if not lines:
        try:
            plan(config)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            lines.append(f"phases cannot be used: {str(error).splitlines()[0]}")
    if config.phases and not lines and total != config.total_steps:
        lines.append(
            f"total_steps is {config.total_steps}, but the phases have {total} steps together; "
            "make them equal."
        )
    return lines
