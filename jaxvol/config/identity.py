"""What makes two runs the same run: which fields shape a result, and how a config is told from
another.
"""

from __future__ import annotations

import hashlib
import json

from ml_collections import ConfigDict

# May change when a run goes on.  Early stopping and the metric that decides "best" may not: they
# are part of the result.
RUN_ONLY = (
    "total_steps",
    "max_hours",
    "stall_minutes",
    "distributed",
    "log_every",
    "checkpoint.every",
    "checkpoint.keep",
    "evaluate",
    "predict",
    "compare",
    "sweep",
    "wandb",
    "resume",
    "profile",
    "mesh",
    "data.num_workers",
    "data.cache_dir",
    "preflight",
)
# Fields that no longer exist, and what took their place.  Configs of old runs have them and those
# of today do not: that is no difference, and such a run can still be resumed, scored and used.
RETIRED = {
    "checkpoint.best_mode": "the direction is the one that checkpoint.best_metric states",
}


# Fields that runs of earlier versions do not have -> the value as which they behaved.
ADDED = {"init_partial": False, "init_sources": [], "optimizer.schedule.span": "phase"}


def flatten(value, prefix: str = "") -> dict:
    """{"a.b": leaf} of nested dicts."""
    if isinstance(value, dict) and value:
        return {
            k: v
            for name, item in value.items()
            for k, v in flatten(item, f"{prefix}.{name}".lstrip(".")).items()
        }
    return {prefix: value}


def shaping(config: ConfigDict) -> dict:
    """{"a.b": leaf} of the fields that shape the result of a run, as JSON has them."""
    return {
        name: leaf
        for name, leaf in flatten(json.loads(config.to_json())).items()
        if not any(name == free or name.startswith(free + ".") for free in (*RUN_ONLY, *RETIRED))
    }


def fingerprint(config: ConfigDict) -> str:
    """Hash of the fields that shape the result of a run and of its length."""
    text = json.dumps({**shaping(config), "total_steps": config.total_steps}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Fields in which a run that goes on would change, as readable lines."""
    was, now = {**ADDED, **shaping(old)}, {**ADDED, **shaping(new)}
    absent = "absent"
    return [
        f"{name}: {was[name] if name in was else absent} -> {now[name] if name in now else absent}"
        for name in sorted(was.keys() | now.keys())
        if name not in was or name not in now or was[name] != now[name]
    ]


def tuples(value):
    """JSON's lists back to the tuples they were; dicts below a list stay plain."""
    if isinstance(value, list):
        return tuple(tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: tuples(v) for k, v in value.items()}
    return value


def config_from(text: str) -> ConfigDict:
    """The locked config that `config.to_json()` wrote."""
    return ConfigDict(tuples(json.loads(text))).lock()
