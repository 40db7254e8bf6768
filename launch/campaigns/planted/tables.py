"""What a campaign of planted faults says: a row per fault, a row per check over the healthy runs, a
sentence, and a picture of faults against checks.

A run is a dict: kind ("fault" | "healthy"), run (variant), status {check: status}, first (the check
that explains the verdict), and for a fault its name, the check that it names and its strength.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.stats import beta

from jaxvol.diagnostics import engine
from jaxvol.plots import figures
from jaxvol.runtime import modules
from launch.campaigns.planted.catalogue import FAULTS


def caught(run: dict) -> bool:
    """The check that the fault names is red, and the first that is."""
    return run["status"].get(run["check"]) in engine.RED and run["first"] == run["check"]


def upper(bad: int, runs: int) -> float:
    """Exact (Clopper-Pearson) 95 % upper bound of a rate."""
    return 1.0 if bad >= runs else float(beta.ppf(0.95, bad + 1, runs - bad))


def of_kind(runs: list[dict], kind: str) -> list[dict]:
    return [run for run in runs if run["kind"] == kind]


def by_fault(runs: list[dict]) -> dict[str, list[dict]]:
    """Name of a fault -> its runs, the weakest first."""
    sick = of_kind(runs, "fault")
    return {
        name: [run for run in sick if run["fault"] == name]
        for name in dict.fromkeys(run["fault"] for run in sick)
    }


def fault_rows(runs: list[dict]) -> list[dict]:
    """One row per fault: at which strengths it was caught, what was red without cause."""
    declared, rows = {fault.name: fault for fault in FAULTS}, []
    for name, of_fault in by_fault(runs).items():
        expected = set()
        if name in declared:
            expected = {declared[name].check, *declared[name].consequences}
        red = {c for run in of_fault for c, s in run["status"].items() if s in engine.RED}
        strengths = [run["strength"] for run in of_fault if caught(run)]
        missed = [
            f"{run['strength']} ({run['first'] or 'nothing'} first)"
            for run in of_fault
            if not caught(run)
        ]
        rows.append(
            {
                "fault": name,
                "run": of_fault[0]["run"],
                "check": of_fault[0]["check"],
                "caught": f"{len(strengths)}/{len(of_fault)}",
                "weakest caught": strengths[0] if strengths else "-",
                "missed": ", ".join(missed),
                "wrongly red": ", ".join(sorted(red - expected)),
            }
        )
    return rows


def check_rows(runs: list[dict]) -> list[dict]:
    """One row per check: how often it is red or warns in healthy runs."""
    healthy, rows = of_kind(runs, "healthy"), []
    for check in sorted({check for run in healthy for check in run["status"]}):
        statuses = [run["status"][check] for run in healthy if check in run["status"]]
        statuses = [status for status in statuses if status != engine.SKIP]
        red = sum(status in engine.RED for status in statuses)
        rows.append(
            {
                "check": check,
                "healthy runs": len(statuses),
                "FAIL": red,
                "at most (95 %)": f"{upper(red, len(statuses)):.1%}" if statuses else "-",
                "WARN": statuses.count(engine.WARN),
            }
        )
    return rows


def summary(runs: list[dict]) -> str:
    """The campaign in a sentence."""
    faults, healthy = by_fault(runs), of_kind(runs, "healthy")
    once = sum(any(map(caught, of_fault)) for of_fault in faults.values())
    pairs = [caught(run) for of_fault in faults.values() for run in of_fault]
    red = sum(any(s in engine.RED for s in run["status"].values()) for run in healthy)
    return (
        f"{once} of {len(faults)} faults found at one strength or more, {sum(pairs)} of "
        f"{len(pairs)} (fault, strength) pairs; {red} of {len(healthy)} healthy runs with a FAIL "
        f"(at most {upper(red, len(healthy)):.1%} at 95 % confidence)"
    )


def draw(runs: list[dict]):
    """Faults against checks: what was red, and what had to be."""
    faults = by_fault(runs)
    checks = sorted(
        {check for of_fault in faults.values() for run in of_fault for check in run["status"]},
        key=lambda check: modules.module("diagnostics/checks", check).RANK,
    )
    share = np.zeros((len(faults), len(checks)))
    for i, of_fault in enumerate(faults.values()):
        for j, check in enumerate(checks):
            # some runs end at the check that the fault names
            red = [r["status"][check] in engine.RED for r in of_fault if check in r["status"]]
            share[i, j] = np.mean(red) if red else 0
    figure = figures.canvas(9.0, 1.6 + 0.21 * len(faults))
    panel = figure.subplots()
    image = panel.imshow(share, cmap="Reds", vmin=0, vmax=1, aspect="auto")
    for i, of_fault in enumerate(faults.values()):
        ring = {"markerfacecolor": "none", "linestyle": "none", "marker": "o"}
        for colour, size in (("black", 7.5), ("white", 6)):
            place = checks.index(of_fault[0]["check"])
            panel.plot(place, i, markeredgecolor=colour, markersize=size, **ring)
    panel.set_xticks(range(len(checks)), checks, rotation=60, ha="right", fontsize=8)
    panel.set_yticks(range(len(faults)), list(faults), fontsize=7)
    label = "share of the runs of this check in which it is red (ring: the check named)"
    figure.colorbar(image, ax=panel, label=label, fraction=0.03)
    return figure


def markdown(rows: list[dict]) -> str:
    """A table."""
    return "\n".join(
        [
            "| " + " | ".join(rows[0]) + " |",
            "|" + "---|" * len(rows[0]),
            *("| " + " | ".join(str(v) for v in row.values()) + " |" for row in rows),
        ]
    )


def write(folder: Path, runs: list[dict]) -> None:
    """table.md and faults.png from all runs so far; the tables are printed as well."""
    tables = [markdown(rows) for rows in (fault_rows(runs), check_rows(runs)) if rows]
    text = "\n\n".join([*tables, summary(runs)]) + "\n"
    (folder / "table.md").write_text(text)
    if of_kind(runs, "fault"):
        figures.save(draw(runs), folder / "faults.png")
    print(text)
