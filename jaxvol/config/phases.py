"""The phases of a run: a config each, and when it begins and ends."""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict


class Phase(NamedTuple):
    """Updates `start` to `stop - 1` of a run, with a config of its own."""

    name: str
    start: int
    stop: int
    config: ConfigDict


def plan(config: ConfigDict) -> list[Phase]:
    """Every phase in order; overrides of `config.phases` are dotted paths."""
    if not config.phases:
        return [Phase("", 0, config.total_steps, config)]
    phases, start = [], 0
    for name, steps, overrides in config.phases:
        phase = ConfigDict(config.to_dict())
        phase.update_from_flattened_dict(dict(overrides))
        phase.total_steps = steps
        phases.append(Phase(name, start, start + steps, phase.lock()))
        start += steps
    return phases
