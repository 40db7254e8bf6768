"""Several evaluated runs side by side: one table (console, CSV, JSON, Markdown) and one set of
plots.

Runs that differ only in their seed are one line, mean ± standard deviation over the seeds.  The
baselines stand below.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvol.evaluation import report, tables
from jaxvol.plots import figures
from jaxvol.runtime import atomic
from jaxvol.types import UserError

# fields of a config that do not decide what its run learns; runs equal in all others differ only in
# their seed
FREE = (
    "seed",
    "evaluate",
    "predict",
    "compare",
    "wandb",
    "checkpoint.every",
    "checkpoint.keep",
    "mesh",
    "log_every",
    "resume",
    "max_hours",
    "profile",
    "data.num_workers",
)


class Run(NamedTuple):
    """What is known of one evaluated workdir."""

    workdir: Path
    scored: dict[str, Any]  # evaluation/metrics.json
    family: str  # equal for runs that differ only in their seed
    seed: int


class Line(NamedTuple):
    """One line of the table: a model over its seeds, or a baseline."""

    values: dict[str, float]
    errors: dict[str, float]  # standard deviation over seeds, empty for one run
    runs: tuple[Run, ...]  # empty for a baseline
    spectra: dict[str, np.ndarray]


def compare(workdirs: Sequence[str | os.PathLike], out: str | os.PathLike) -> str:
    """Write <out>/comparison/{table.csv, table.json, table.md, metrics.png, spectra.png}; return
    the table, ready to print.

    UserError: no run, a workdir without evaluation, or runs scored on different data, splits or
               numbers of examples.
    """
    folders = list(dict.fromkeys(Path(w) for w in workdirs))
    if not folders:
        raise UserError(
            "there is nothing to compare; name workdirs with --config.compare.runs=runs/a,runs/b"
        )
    runs = [read(folder) for folder in folders]
    check_same_data(runs)
    lines = models(runs) | baselines(runs)
    values = {who: line.values for who, line in lines.items()}
    ours = [who for who, line in lines.items() if line.runs]
    suffixes = {
        who: {c: f" ± {e:.2g}" for c, e in line.errors.items()} for who, line in lines.items()
    }
    warnings = doubts(runs)
    folder = Path(out) / "comparison"
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "table.csv", as_csv(lines))
    atomic.write_text(
        folder / "table.json", json.dumps(report.plain(as_json(lines, warnings)), indent=1) + "\n"
    )
    atomic.write_text(folder / "table.md", as_markdown(lines, suffixes, warnings))
    columns = list(dict.fromkeys(c for line in lines.values() for c in line.values))
    errors = {who: line.errors for who, line in lines.items()}
    figures.save(figures.comparison(values, errors, columns[:4]), folder / "metrics.png")
    spectra = {who: line.spectra for who, line in lines.items() if line.spectra}
    if spectra:
        taper = runs[0].scored["model"]["spectra"]
        spectra = {
            who: {**s, "window": taper["window"] if "window" in taper else "none"}
            for who, s in spectra.items()
        }
        unit = runs[0].scored["unit"] if "unit" in runs[0].scored else ""
        figures.save(figures.spectra(spectra, unit), folder / "spectra.png")
    return "\n".join(
        [
            tables.table(values, ours, suffixes),
            *(f"WARNING: {w}" for w in warnings),
            f"Written to {folder}/.",
        ]
    )


def read(workdir: Path) -> Run:
    """The evaluation and the config of one workdir."""
    scored = read_json(
        workdir / "evaluation" / "metrics.json",
        f"score the run first: python -m jaxvol.main --config=... --workdir={workdir} "
        "--mode=evaluate",
    )
    if "model" not in scored or "baselines" not in scored:
        raise UserError(
            f"{workdir / 'evaluation' / 'metrics.json'}: keys {sorted(scored)}; expected model and "
            "baselines"
        )
    config = read_json(
        workdir / "config.json", "it is written when a run starts; is this the workdir of a run?"
    )
    config = config["config"] if "config" in config else config
    config = json.loads(config) if isinstance(config, str) else config
    leaves = {
        k: v
        for k, v in flatten(config).items()
        if not any(k == f or k.startswith(f + ".") for f in FREE)
    }
    return Run(workdir, scored, json.dumps(leaves, sort_keys=True), int(config["seed"]))


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object from a file; UserError naming the file otherwise."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}; expected an object; {remedy}")
    return found


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a.b": leaf} of nested dicts."""
    if isinstance(value, dict) and value:
        return {
            k: v
            for name, item in value.items()
            for k, v in flatten(item, f"{prefix}.{name}".lstrip(".")).items()
        }
    return {prefix: value}


def check_same_data(runs: Sequence[Run]) -> None:
    """UserError unless every run was scored on the same examples."""
    groups: dict[tuple, list[str]] = {}
    for run in runs:
        where = tuple(
            run.scored[k] if k in run.scored else None for k in ("data_hash", "split", "examples")
        )
        groups.setdefault(where, []).append(str(run.workdir))
    if len(groups) > 1:
        listed = "".join(
            f"\n  data {h}, split {s}, {n} examples: {', '.join(names)}"
            for (h, s, n), names in groups.items()
        )
        raise UserError(
            "these runs were scored on different examples, so their numbers cannot be "
            f"compared:{listed}\n"
            "Compare each group on its own, or evaluate all of them on the same data and split."
        )


def doubts(runs: Sequence[Run]) -> list[str]:
    """What makes the runs less comparable than the table looks."""
    found = []
    for key in ("weights", "checkpoint"):
        values = {str(run.scored[key]) if key in run.scored else "unknown" for run in runs}
        if len(values) > 1:
            found.append(
                f"the runs were scored with different {key}: "
                + ", ".join(
                    f"{run.workdir} {run.scored[key] if key in run.scored else 'unknown'}"
                    for run in runs
                )
            )
    for run in runs:
        if "non_finite" in run.scored and "model" in run.scored["non_finite"]:
            found.append(
                f"{run.workdir} has values that are not finite: "
                f"{', '.join(run.scored['non_finite']['model'])}"
            )
    return found


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Scalar metrics from JSON, where null means not finite."""
    return tables.scalars(
        {
            k: np.nan if v is None else v
            for k, v in metrics.items()
            if not isinstance(v, (list, dict, str))
        }
    )


def spectrum(metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The spectra in JSON metrics (of several channels the first), null as NaN; {} where there are
    none.
    """
    return figures.series(metrics["spectra"]) if "spectra" in metrics else {}


def models(runs: Sequence[Run]) -> dict[str, Line]:
    """One line per family of runs, mean and scatter over its seeds."""
    families: dict[str, list[Run]] = {}
    for run in runs:
        families.setdefault(run.family, []).append(run)
    names = [
        tables.pretty(
            str(group[0].scored["name"] if "name" in group[0].scored else group[0].workdir.name)
        )
        for group in families.values()
    ]
    lines: dict[str, Line] = {}
    for name, group in zip(names, families.values()):
        who = name if names.count(name) == 1 else f"{name} [{shared_name(group)}]"
        seeds = len({run.seed for run in group})
        who += f", {seeds} seeds" if seeds > 1 else f", {len(group)} runs" if len(group) > 1 else ""
        while who in lines:
            who += "'"
        lines[who] = line([run.scored["model"] for run in group], tuple(group))
    return lines


def shared_name(group: Sequence[Run]) -> str:
    """Folder of a run; of several, the beginning their folders share."""
    names = [run.workdir.resolve().name for run in group]
    return (os.path.commonprefix(names).rstrip("-_. ") if len(names) > 1 else names[0]) or names[0]


def line(found: Sequence[Mapping[str, Any]], runs: tuple[Run, ...]) -> Line:
    """Mean over runs of every metric and spectrum; the scatter is the sample standard deviation (n
    - 1).
    """
    scores = [numbers(metrics) for metrics in found]
    columns = [c for c in scores[0] if all(c in s for s in scores)]
    stacked = {c: np.array([s[c] for s in scores]) for c in columns}
    errors = {c: float(np.std(v, ddof=1)) for c, v in stacked.items()} if len(scores) > 1 else {}
    shapes = [spectrum(metrics) for metrics in found]
    same = all(
        s.keys() == shapes[0].keys() and all(s[k].shape == shapes[0][k].shape for k in s)
        for s in shapes
    )
    mean = {k: np.mean([s[k] for s in shapes], axis=0) for k in shapes[0]} if same else {}
    return Line({c: float(v.mean()) for c, v in stacked.items()}, errors, runs, mean)


def baselines(runs: Sequence[Run]) -> dict[str, Line]:
    """One line per baseline; where runs disagree (a Wiener filter of another input), one per
    variant, named by its run.
    """
    lines: dict[str, Line] = {}
    for kind in dict.fromkeys(k for run in runs for k in run.scored["baselines"]):
        title = tables.label(kind, kind)
        for run in (r for r in runs if kind in r.scored["baselines"]):
            new = line([run.scored["baselines"][kind]], ())
            if not any(who == title or who.startswith(f"{title} [") for who in lines):
                lines[title] = new
            elif not any(
                equal(old.values, new.values) for who, old in lines.items() if who.startswith(title)
            ):
                lines[f"{title} [{run.workdir.resolve().name}]"] = new
    return lines


def equal(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    """Whether two lines agree to 1e-4, NaN equal to NaN, in the metrics that both have."""
    return all(
        np.isclose(a[k], b[k], rtol=1e-4, atol=1e-12, equal_nan=True) for k in a.keys() & b.keys()
    )


def facts(found: Line) -> dict[str, Any]:
    """What a line of the written tables says besides the metrics."""

    def listed(key: str) -> str:
        return " ".join(
            dict.fromkeys(str(run.scored[key]) for run in found.runs if key in run.scored)
        )

    return {
        "seeds": " ".join(str(run.seed) for run in found.runs),
        "runs": " ".join(str(run.workdir) for run in found.runs),
        **{
            key: listed(key)
            for key in (
                "parameters",
                "gflop_per_prediction",
                "steps_per_sec",
                "checkpoint",
                "weights",
                "step",
                "split",
                "data_hash",
            )
        },
    }


def as_csv(lines: Mapping[str, Line]) -> str:
    """CSV text: metrics, their scatter over seeds, and the facts."""
    columns = list(dict.fromkeys(c for found in lines.values() for c in found.values))
    scattered = [c for c in columns if any(c in found.errors for found in lines.values())]
    rows: list[list[Any]] = [
        ["model", *columns, *(f"{c}_std" for c in scattered), *facts(Line({}, {}, (), {}))]
    ]
    for who, found in lines.items():
        rows.append(
            [
                who,
                *(repr(found.values[c]) if c in found.values else "" for c in columns),
                *(repr(found.errors[c]) if c in found.errors else "" for c in scattered),
                *facts(found).values(),
            ]
        )
    return tables.as_csv(rows)


def as_json(lines: Mapping[str, Line], warnings: Sequence[str]) -> dict[str, Any]:
    """The table as data, spectra included."""

    def entry(found: Line) -> dict[str, Any]:
        return {
            "metrics": found.values,
            "std_over_seeds": found.errors,
            "spectra": found.spectra,
            **facts(found),
        }

    return {
        "models": {who: entry(found) for who, found in lines.items() if found.runs},
        "baselines": {who: entry(found) for who, found in lines.items() if not found.runs},
        "warnings": list(warnings),
    }


def cost(found: Line, key: str) -> str:
    """A fact that runs of one line share, or the mean of numbers that differ; "-" where no run has
    it.
    """
    given = list(
        dict.fromkeys(
            run.scored[key]
            for run in found.runs
            if key in run.scored and run.scored[key] is not None
        )
    )
    if not given:
        return "-"
    return given[0] if isinstance(given[0], str) else tables.number(float(np.mean(given)))


def as_markdown(
    lines: Mapping[str, Line], suffixes: Mapping[str, Mapping[str, str]], warnings: Sequence[str]
) -> str:
    """A table for a README: the best of each column in bold."""
    columns = list(dict.fromkeys(c for found in lines.values() for c in found.values))
    arrow = {1: " ↑", -1: " ↓", 0: ""}
    best = {
        c: tables.winners({who: found.values for who, found in lines.items()}, c) for c in columns
    }
    costs = {
        "parameters": "parameters",
        "gflop_per_prediction": "GFLOP per prediction",
        "steps_per_sec": "steps/s",
    }
    text = [
        "| model | "
        + " | ".join([*(c + arrow[tables.direction(c)] for c in columns), *costs.values()])
        + " |",
        "|---|" + "---|" * (len(columns) + len(costs)),
    ]
    for who, found in lines.items():
        cells = []
        for c in columns:
            cell = tables.number(found.values[c]) if c in found.values else "-"
            cell += suffixes[who][c] if c in suffixes[who] else ""
            cells.append(f"**{cell}**" if who in best[c] else cell)
        cells += [cost(found, key) for key in costs]
        text.append(f"| {who} | " + " | ".join(cells) + " |")
    return "\n".join([*text, *(f"\nWarning: {w}" for w in warnings)]) + "\n"
