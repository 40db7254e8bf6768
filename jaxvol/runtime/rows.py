"""The rows of metrics.csv and perf.csv: what a restart removes from them, and what it misses."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

from jaxvol.runtime import atomic
from jaxvol.runtime.regular_files import open_regular

METRICS, PERF = ("step", "tag", "value"), ("step", "tag", "value", "time")


def cut(workdir: str | Path, step: int) -> None:
    """Remove the rows of metrics.csv after `step`, and what a kill left half-written in metrics.csv
    and perf.csv.  Raises FileError where one of them is no regular file.
    """
    for name, columns, last in (("metrics.csv", METRICS, step), ("perf.csv", PERF, math.inf)):
        path = Path(workdir) / name
        old = content(path)
        rows = [line for line in old.splitlines(keepends=True) if keep(line, len(columns), last)]
        new = (",".join(columns) + "\n").encode() + b"".join(rows)
        if new != old:
            atomic.write_bytes(path, new)


def content(path: Path) -> bytes:
    """The bytes of a file; none of one that does not exist."""
    if not os.path.lexists(path):
        return b""
    with open_regular(path) as file:
        return file.read()


def keep(line: bytes, columns: int, last: float) -> bool:
    """Whether a line is a whole row of a step up to `last`."""
    try:
        fields = next(csv.reader([line.decode()], strict=True))
        # a value without its newline may have lost digits
        whole = line.endswith(b"\n") and len(fields) == columns
        return whole and int(fields[0]) <= last
    except (ValueError, csv.Error, StopIteration):
        return False


def missing(workdir: str | Path, step: int) -> str:
    """What metrics.csv lacks of the updates up to `step`, which a checkpoint holds; "" for nothing.

    Every row of losses has one of times beside it in perf.csv: metrics.csv has to reach as far as
    those do.
    """
    if step <= 0:
        return ""
    timed = [fields for fields in read(workdir, "perf.csv") if fields[1] == "perf/seconds"]
    # a run makes the file when it begins, so one that is not there was taken away
    least = -1 if os.path.lexists(Path(workdir) / "metrics.csv") else 0
    expected = max((int(f[0]) for f in timed if int(f[0]) <= step), default=least)
    last = max((int(fields[0]) for fields in read(workdir, "metrics.csv")), default=-1)
    if last >= expected:
        return ""
    ends = f"ends at step {last}" if last >= 0 else "has no rows"
    return (
        f"{Path(workdir) / 'metrics.csv'} {ends}, but the run goes on from step {step}: the rows "
        "between are lost, and curves will have a gap there. The weights are not touched by it."
    )


def read(workdir: str | Path, name: str) -> list[list[str]]:
    """The whole rows of one of the two files, without its head."""
    columns = len(METRICS if name == "metrics.csv" else PERF)
    lines = content(Path(workdir) / name).splitlines(keepends=True)
    whole = [line.decode() for line in lines if keep(line, columns, math.inf)]
    return list(csv.reader(whole))
