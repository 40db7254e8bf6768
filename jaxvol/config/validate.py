"""Rules of a config, all checked at once, before anything is read or compiled.

Only what can be known from the config alone is here; what needs the data (grid against modes,
channels, depth against the mesh) is checked by the module concerned when it is built, still before
anything compiles.
"""

from __future__ import annotations

import contextlib
import math

from ml_collections import ConfigDict

from jaxvol.config import identity, phases
from jaxvol.config.base import RULES, SCHEDULES, TRANSFORMS
from jaxvol.config.components import best_direction
from jaxvol.data.augment import KNOWN
from jaxvol.ops.quasi_newton import SEARCHED
from jaxvol.runtime import modules
from jaxvol.types import UserError


def _positive(config: ConfigDict) -> list[str]:
    violations = []
    for path in (
        "total_steps",
        "batch_size",
        "micro_batches",
        "log_every",
        "checkpoint.every",
        "checkpoint.keep",
        "evaluate.every",
        "evaluate.batch_size",
        "wandb.images_every",
    ):
        value = config
        for name in path.split("."):
            value = value[name]
        if value < 1:
            violations.append(f"{path} is {value}; it has to be at least 1.")
    for path, value, low, high in (
        ("ema_decay", config.ema_decay, 0.0, 1.0),
        ("predict.overlap", config.predict.overlap, 0.0, 0.95),
        ("optimizer.clip_norm", config.optimizer.clip_norm, 0.0, math.inf),
        ("max_hours", config.max_hours, 0.0, math.inf),
    ):
        if not low <= value < high:
            violations.append(f"{path} is {value}; it has to be in [{low}, {high}).")
    if config.batch_size % max(config.micro_batches, 1):
        violations.append(
            f"batch_size {config.batch_size} cannot be cut in micro_batches={config.micro_batches} "
            "equal parts."
        )
    return violations


def _choices(config: ConfigDict) -> list[str]:
    wanted = [
        ("precision", config.precision, ("f32", "bf16", "f64")),
        ("matmul_precision", config.matmul_precision, ("default", "high", "highest")),
        ("resume", config.resume, ("auto", "fresh")),
        ("evaluate.split", config.evaluate.split, ("train", "val", "test")),
        ("evaluate.tta", config.evaluate.tta, TRANSFORMS),
        ("optimizer.name", config.optimizer.name, RULES),
        ("optimizer.schedule.name", config.optimizer.schedule.name, SCHEDULES),
        ("optimizer.schedule.span", config.optimizer.schedule.span, ("phase", "run")),
    ]
    violations = [
        f"{path} is {value!r}; it has to be one of {', '.join(known)}."
        for path, value, known in wanted
        if value not in known
    ]
    fields = identity.flatten(config.to_dict())
    violations += [
        f"{path} no longer exists: {instead}. Delete it from your config."
        for path, instead in identity.RETIRED.items()
        if path in fields
    ]
    for room, block in components(config):
        try:
            modules.module(room, block.name)
        except UserError as error:
            violations.append(str(error).removeprefix("config."))
    return violations


def _optimizer(config: ConfigDict, label: str, block: ConfigDict, steps: int) -> list[str]:
    violations = []
    if not 0 < block.learning_rate < 100:
        violations.append(
            f"{label}.learning_rate is {block.learning_rate}; it has to be in (0, 100)."
        )
    if not 0 <= block.schedule.warmup_steps < steps:
        violations.append(
            f"{label}.schedule.warmup_steps is {block.schedule.warmup_steps}, not in [0, {steps}) "
            "(the phase's steps)."
        )
    if block.schedule.name == "step" and list(block.schedule.step.boundaries) != sorted(
        set(block.schedule.step.boundaries)
    ):
        violations.append(
            f"{label}.schedule.step.boundaries {block.schedule.step.boundaries} have to increase."
        )
    shape = block.schedule
    for wrong, what in (
        (shape.name == "cyclic" and shape.cyclic.period < 2, "cyclic.period is not at least 2"),
        (
            shape.name == "exponential" and shape.exponential.every < 1,
            "exponential.every is not at least 1",
        ),
        (
            shape.name == "onecycle" and not 0 < shape.onecycle.start_factor <= 1,
            "onecycle.start_factor is not in (0, 1]",
        ),
        (
            shape.name == "plateau" and not 0 < shape.plateau.factor < 1,
            "plateau.factor is not in (0, 1)",
        ),
    ):
        if wrong:
            violations.append(f"{label}.schedule.{what}.")
    if block.name in SEARCHED:
        for wrong, what in (
            (block.clip_norm > 0, "clip_norm > 0"),
            (config.precision == "bf16", "precision='bf16'"),
            (config.ema_decay > 0, "ema_decay > 0"),
            (block.schedule.name != "constant", "a schedule"),
        ):
            if wrong:
                violations.append(
                    f"{label}.name={block.name!r} does not work with {what}: its line search needs "
                    "the exact objective; "
                    "use clip_norm=0, ema_decay=0, schedule.name='constant', precision f32 or f64."
                )
    unknown = set(block.groups) and [
        f"{g}.{k}" for g, over in block.groups.items() for k in over if k not in block
    ]
    if unknown:
        violations.append(f"{label}.groups sets unknown fields {', '.join(unknown)}.")
    return violations


def components(config: ConfigDict) -> tuple[tuple[str, ConfigDict], ...]:
    """(folder of jaxvol, block of the config) of everything that is chosen by name."""
    blocks = (("models", config.model), ("tasks", config.task), ("data", config.data))
    return tuple((room, block) for room, block in blocks if block.name or room != "models")


def _component_rules(config: ConfigDict) -> list[str]:
    """What the chosen model, task and dataset ask of the config: their function rules(config),
    where they have one.
    """
    violations = []
    for room, block in components(config):
        with contextlib.suppress(UserError):  # an unknown name, which _choices reports
            module = modules.module(room, block.name)
            violations += module.rules(config) if hasattr(module, "rules") else []
    return violations


def _data(config: ConfigDict) -> list[str]:
    if "augment" not in config.data:
        return []
    violations = [
        f"data.augment has {name!r}; known are {', '.join(KNOWN)}."
        for name in config.data.augment
        if name not in KNOWN
    ]
    if "periodic" in config.data and len(config.data.periodic) != 3:
        violations.append(
            f"data.periodic is {config.data.periodic!r}; it has to be three values, for D, H, W: "
            "(True, True, True)."
        )
    if config.data.on_error not in ("stop", "skip"):
        violations.append(f"data.on_error is {config.data.on_error!r}; it has to be stop or skip.")
    if config.data.num_workers < 0 or config.data.max_skips < 0 or config.data.fit_examples < 1:
        violations.append(
            "data.num_workers and data.max_skips have to be at least 0, data.fit_examples at least "
            "1."
        )
    return violations


def doubts(config: ConfigDict) -> list[str]:
    """Values that are legal and rarely wanted."""
    warnings = []
    if config.optimizer.name in ("adam", "adamw", "lion") and config.optimizer.learning_rate > 0.02:
        warnings.append(
            f"optimizer.learning_rate {config.optimizer.learning_rate} is high for "
            f"{config.optimizer.name}."
        )
    if (
        config.ema_decay > 0
        and config.total_steps < 3 / (1 - config.ema_decay)
        and config.evaluate.weights == "ema"
    ):
        warnings.append(
            f"ema_decay {config.ema_decay} averages over about {1 / (1 - config.ema_decay):.0f} "
            "steps, and there are "
            f"only {config.total_steps}: the averaged weights lag behind."
        )
    cycle = config.optimizer.schedule
    if cycle.name == "cyclic" and cycle.cyclic.period // 2 > config.total_steps:
        warnings.append(
            f"optimizer.schedule.cyclic.period is {cycle.cyclic.period}: the peak rate is never "
            "reached in "
            f"{config.total_steps} steps."
        )
    if config.optimizer.clip_norm == 0 and config.optimizer.name not in SEARCHED:
        warnings.append(
            "optimizer.clip_norm is 0: a single bad batch can throw the weights far away."
        )
    if config.evaluate.every > config.total_steps:
        warnings.append(
            "evaluate.every is larger than total_steps: only the first and the last weights are "
            "validated."
        )
    return warnings


def validate(config: ConfigDict) -> list[str]:
    """Warnings.  Raises UserError that lists every violated rule at once."""
    missing = [room for room in ("model", "data", "task") if room not in config]
    if missing:
        raise UserError(
            f"The config has no {', '.join(missing)} block; start from one of configs/*.py."
        )
    violated = phases.violations(config)
    for phase in [] if violated else phases.plan(config):
        where = f"phase {phase.name!r}: " if phase.name else ""
        violated += [where + line for line in _of_phase(phase.config)]
    if violated:
        raise UserError(
            "The config breaks "
            + ("a rule" if len(violated) == 1 else f"{len(violated)} rules")
            + ":\n  - "
            + "\n  - ".join(violated)
        )
    return doubts(config)


def _of_phase(config: ConfigDict) -> list[str]:
    """Violated rules of one phase, whose length is its config's total_steps."""
    lines = _positive(config) + _choices(config) + _component_rules(config) + _data(config)
    if config.optimizer.name in RULES and config.optimizer.schedule.name in SCHEDULES:
        lines += _optimizer(config, "optimizer", config.optimizer, config.total_steps)
    if not lines:  # a task's own rules say more about its metrics
        try:
            best_direction(config)
        except UserError as error:
            lines = [str(error)]
    return lines
