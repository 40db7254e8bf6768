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
from ml_collections import ConfigDict

from jaxvol.evaluation import report, scored_runs, tables
from jaxvol.evaluation.scored_runs import Run
from jaxvol.plots import comparison, figures, spectra
from jaxvol.runtime import atomic
from jaxvol.types import UserError


class Line(NamedTuple):
    """One line of the table: a model over its seeds, or a baseline."""

    values: dict[str, float]
    errors: dict[str, float]  # standard deviation over seeds, empty for one run
    runs: tuple[Run, ...]  # empty for a baseline
    spectra: dict[str, np.ndarray]


def compare(
    workdirs: Sequence[str | os.PathLike], out: str | os.PathLike, choice: ConfigDict
) -> str:
    """Write <out>/comparison/{table.csv, table.json, table.md, metrics.png, spectra.png}; return
    the table, ready to print.

    choice: a `config.evaluate`; its split and checkpoint are compared.
    UserError: no run, a workdir without evaluation, or runs scored on different data, splits or
               numbers of examples.
    """
    folders = list(dict.fromkeys(Path(w) for w in workdirs))
    if not folders:
        raise UserError(
            "there is nothing to compare; name workdirs with --config.compare.runs=runs/a,runs/b"
        )
    runs = [scored_runs.read(folder, choice.split, choice.checkpoint) for folder in folders]
    scored_runs.check_same_data(runs)
    lines, warnings = models(runs) | baselines(runs), scored_runs.doubts(runs)
    notes, better = scored_runs.footnotes(runs), scored_runs.directions(runs, columns(lines))
    suffixes = {
        title: {c: f" ± {e:.2g}" for c, e in line.errors.items()} for title, line in lines.items()
    }
    folder = Path(out) / "comparison"
    data = json.dumps(report.plain(as_json(lines, warnings, notes)), indent=1)
    atomic.write_text(folder / "table.csv", as_csv(lines))
    atomic.write_text(folder / "table.json", data + "\n")
    below = [*notes, *(f"Warning: {w}" for w in warnings)]
    atomic.write_text(folder / "table.md", as_markdown(lines, suffixes, better, below))
    draw(lines, runs[0].scores, folder)
    values = {title: line.values for title, line in lines.items()}
    trained = [title for title, line in lines.items() if line.runs]
    table = tables.table(values, trained, suffixes, better)
    below = [*notes, *(f"WARNING: {w}" for w in warnings), f"Written to {folder}/."]
    return "\n".join([table, *below])


def draw(lines: Mapping[str, Line], scores: Mapping[str, Any], folder: Path) -> None:
    """The leading metrics as bars, and the spectra where there are any; `scores` are those of one
    run, which name the unit and the window that all have.
    """
    values = {title: line.values for title, line in lines.items()}
    errors = {title: line.errors for title, line in lines.items()}
    metrics = columns(lines)[:4]
    figures.save(comparison.bars(values, errors, metrics), folder / "metrics.png")
    drawn = {title: line.spectra for title, line in lines.items() if line.spectra}
    if drawn:
        shared = scores["model"]["spectra"]
        window = shared["window"] if "window" in shared else "none"
        drawn = {title: {**s, "window": window} for title, s in drawn.items()}
        unit = scores["unit"] if "unit" in scores else ""
        figures.save(spectra.draw(drawn, unit), folder / "spectra.png")


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
    return spectra.series(metrics["spectra"]) if "spectra" in metrics else {}


def models(runs: Sequence[Run]) -> dict[str, Line]:
    """One line per family of runs, mean and scatter over its seeds."""
    families: dict[str, list[Run]] = {}
    for run in runs:
        families.setdefault(run.family, []).append(run)
    names = [
        tables.pretty(
            str(group[0].scores["name"] if "name" in group[0].scores else group[0].workdir.name)
        )
        for group in families.values()
    ]
    lines: dict[str, Line] = {}
    for name, group in zip(names, families.values(), strict=True):
        title = name if names.count(name) == 1 else f"{name} [{shared_name(group)}]"
        seeds = len({run.seed for run in group})
        if seeds > 1:
            title += f", {seeds} seeds"
        elif len(group) > 1:
            title += f", {len(group)} runs"
        while title in lines:
            title += "'"
        lines[title] = line([run.scores["model"] for run in group], tuple(group))
    return lines


def shared_name(group: Sequence[Run]) -> str:
    """Folder of a run; of several, the beginning their folders share."""
    names = [run.workdir.resolve().name for run in group]
    return (os.path.commonprefix(names).rstrip("-_. ") if len(names) > 1 else names[0]) or names[0]


def line(metrics: Sequence[Mapping[str, Any]], runs: tuple[Run, ...]) -> Line:
    """Mean over runs of every metric and spectrum; the scatter is the sample standard deviation
    (n - 1).
    """
    scores = [numbers(one) for one in metrics]
    stacked = {
        c: np.array([s[c] for s in scores]) for c in scores[0] if all(c in s for s in scores)
    }
    errors = {c: float(np.std(v, ddof=1)) for c, v in stacked.items()} if len(scores) > 1 else {}
    series = [spectrum(one) for one in metrics]
    alike = all(
        s.keys() == series[0].keys() and all(s[k].shape == series[0][k].shape for k in s)
        for s in series
    )
    mean = {k: np.mean([s[k] for s in series], axis=0) for k in series[0]} if alike else {}
    return Line({c: float(v.mean()) for c, v in stacked.items()}, errors, runs, mean)


def baselines(runs: Sequence[Run]) -> dict[str, Line]:
    """One line per baseline; where runs disagree (a Wiener filter of another input), one per
    variant, named by its run.  They have no loss where the runs have different ones.
    """
    shared_loss = not scored_runs.other_losses(runs)
    lines: dict[str, Line] = {}
    for name in dict.fromkeys(k for run in runs for k in run.scores["baselines"]):
        label = tables.label(name, name)
        variants: list[Line] = []
        for run in (r for r in runs if name in r.scores["baselines"]):
            new = line([run.scores["baselines"][name]], ())
            if not shared_loss:
                values = {k: v for k, v in new.values.items() if not scored_runs.is_loss(k)}
                new = new._replace(values=values)
            if any(equal(old.values, new.values) for old in variants):
                continue
            lines[f"{label} [{run.workdir.resolve().name}]" if variants else label] = new
            variants.append(new)
    return lines


def equal(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    """Whether two lines agree to 1e-4, NaN equal to NaN, in the metrics that both have."""
    return all(
        np.isclose(a[k], b[k], rtol=1e-4, atol=1e-12, equal_nan=True) for k in a.keys() & b.keys()
    )


def columns(lines: Mapping[str, Line]) -> list[str]:
    """The metrics that any line has, in their order."""
    return list(dict.fromkeys(c for line in lines.values() for c in line.values))


def facts(runs: Sequence[Run]) -> dict[str, str]:
    """What a line of the written tables says besides the metrics."""
    shared = (
        "parameters",
        "gflop_per_prediction",
        "steps_per_sec",
        "checkpoint",
        "weights",
        "step",
        "split",
        "data_hash",
    )
    return {
        "seeds": " ".join(str(run.seed) for run in runs),
        "runs": " ".join(str(run.workdir) for run in runs),
        **{
            key: " ".join(dict.fromkeys(str(r.scores[key]) for r in runs if key in r.scores))
            for key in shared
        },
    }


def as_csv(lines: Mapping[str, Line]) -> str:
    """CSV text: metrics, their scatter over seeds, and the facts."""
    metrics = columns(lines)
    scattered = [c for c in metrics if any(c in line.errors for line in lines.values())]
    rows: list[list[Any]] = [["model", *metrics, *(f"{c}_std" for c in scattered), *facts(())]]
    for title, line in lines.items():
        rows.append(
            [
                title,
                *(repr(line.values[c]) if c in line.values else "" for c in metrics),
                *(repr(line.errors[c]) if c in line.errors else "" for c in scattered),
                *facts(line.runs).values(),
            ]
        )
    return tables.as_csv(rows)


def as_json(
    lines: Mapping[str, Line], warnings: Sequence[str], notes: Sequence[str]
) -> dict[str, Any]:
    """The table as data, spectra included."""
    entries = {
        title: {
            "metrics": line.values,
            "std_over_seeds": line.errors,
            "spectra": line.spectra,
            **facts(line.runs),
        }
        for title, line in lines.items()
    }
    return {
        "models": {title: entry for title, entry in entries.items() if lines[title].runs},
        "baselines": {title: entry for title, entry in entries.items() if not lines[title].runs},
        "warnings": list(warnings),
        "notes": list(notes),
    }


def cost(runs: Sequence[Run], key: str) -> str:
    """A fact that runs of one line share, or the mean of numbers that differ; "-" where no run has
    it.
    """
    values = [r.scores[key] for r in runs if key in r.scores and r.scores[key] is not None]
    values = list(dict.fromkeys(values))
    if not values:
        return "-"
    return values[0] if isinstance(values[0], str) else tables.number(float(np.mean(values)))


def as_markdown(
    lines: Mapping[str, Line],
    suffixes: Mapping[str, Mapping[str, str]],
    better: Mapping[str, str],
    below: Sequence[str],
) -> str:
    """A table for a README, the best of each column in bold, and the sentences `below` it."""
    metrics = columns(lines)
    values = {title: line.values for title, line in lines.items()}
    best = {c: tables.winners(values, c, better) for c in metrics}
    costs = {
        "parameters": "parameters",
        "gflop_per_prediction": "GFLOP per prediction",
        "steps_per_sec": "steps/s",
    }
    headings = [*(tables.heading(c, better) for c in metrics), *costs.values()]
    text = ["| model | " + " | ".join(headings) + " |", "|---|" + "---|" * len(headings)]
    for title, line in lines.items():
        cells = []
        for c in metrics:
            cell = tables.number(line.values[c]) if c in line.values else "-"
            cell += suffixes[title][c] if c in suffixes[title] else ""
            cells.append(f"**{cell}**" if title in best[c] else cell)
        cells += [cost(line.runs, key) for key in costs]
        text.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join([*text, *(f"\n{sentence}" for sentence in below)]) + "\n"
