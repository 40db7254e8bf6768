"""What a pre-flight recorded, and what moved since: record one before you change anything.

`preflight/baseline.json` holds every metric of every check, the losses, learning rates and gradient
norms of the short run, and some voxels of example predictions.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxvol.diagnostics.engine import Verdict
from jaxvol.runtime import atomic
from jaxvol.types import UserError

RECORDED = ("loss", "lr", "grad_norm")  # of the short run, per group
MOVED = 0.02  # relative change that is worth a line
# metrics of the machine, which differ from one pre-flight to the next
MACHINE = {
    "disk_saves",
    "host_memory",
    "head_room",
    "host_head_room",
    "examples_per_second",
    "largest_batch",
}


def record(
    verdict: Verdict, history: list[dict[str, float]], examples: dict[str, list[float]]
) -> dict[str, Any]:
    """Plain numbers: {"metrics": {check: {metric: value}}, "history": {name: [one per update]},
    "examples": {name: [voxels]}}.
    """
    curves = {
        name: [row[name] for row in history]
        for name in (history[0] if history else {})
        if name.split("/")[-1] in RECORDED
    }
    return {
        "metrics": {
            o.name: {k: float(v) for k, v in o.result.metrics.items() if k not in MACHINE}
            for o in verdict.outcomes
        },
        "history": curves,
        "examples": examples,
    }


def write(folder: Path, recorded: dict[str, Any]) -> None:
    """JSON; NaN and infinities as words."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return value if math.isfinite(value) else str(value)

    atomic.write_text(folder / "baseline.json", json.dumps(plain(recorded)))


def read(workdir: str) -> dict[str, Any]:
    """The baseline of an earlier run.  UserError where there is none."""
    file = Path(workdir) / "preflight" / "baseline.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"config.preflight.baseline is {workdir!r}, but there is no {file}; run "
            "--mode=preflight there first."
        ) from None
    except ValueError as error:
        raise UserError(
            f"{file} is not JSON ({error}); delete it and run --mode=preflight there again."
        ) from error


def moved(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Metrics and curves that changed by more than MOVED, the largest change first."""
    rows = []
    for check, metrics in after["metrics"].items():
        for name, new in metrics.items():
            if check in before["metrics"] and name in before["metrics"][check]:
                rows.append(
                    {
                        "what": f"{check}.{name}",
                        "before": float(before["metrics"][check][name]),
                        "now": new,
                    }
                )
    for part in ("history", "examples"):
        for name, values in after[part].items():
            if name in before[part] and len(before[part][name]) == len(values):
                old, new = (np.array(v, float) for v in (before[part][name], values))
                at = int(np.abs(new - old).argmax())
                rows.append(
                    {
                        "what": f"{name}, {part}, number {at}",
                        "before": float(old[at]),
                        "now": float(new[at]),
                    }
                )
    for row in rows:
        row["change"] = abs(row["now"] - row["before"]) / max(
            abs(row["before"]), abs(row["now"]), 1e-6
        )
    return sorted(
        (row for row in rows if not row["change"] <= MOVED), key=lambda row: -row["change"]
    )
