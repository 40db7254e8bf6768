"""A verdict as a table on the console, as report.json and report.csv, and as one HTML file that
needs nothing else.

All text that comes from files, configs or errors is escaped; pictures are embedded.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from jaxvol.diagnostics.engine import PASS, SIGN, Outcome, Verdict, number
from jaxvol.plots import figures
from jaxvol.runtime import atomic
from jaxvol.runtime import text as texts
from jaxvol.runtime.regular_files import open_regular
from jaxvol.types import UserError

COLOUR = {
    "PASS": "#0a7d3c",
    "WARN": "#a86500",
    "FAIL": "#c21f1f",
    "ERROR": "#8a1fc2",
    "SKIP": "#666666",
}
STYLE = """\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;
color:#222}
h1{font-size:1.6rem}
h2{font-size:1.15rem;margin:2rem 0 .3rem;border-top:1px solid #ddd;padding-top:1rem}
table{border-collapse:collapse;margin:.6rem 0;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .7rem;text-align:left;border-bottom:1px solid #e4e4e4;vertical-align:top}
th{font-weight:600}
td.n{text-align:right}
img{max-width:100%;height:auto}
.badge{color:#fff;border-radius:.3rem;padding:.05rem .5rem;font-size:.85em;font-weight:600}
.scroll{overflow-x:auto}
figure{margin:1rem 0}
figcaption{color:#555;font-size:.9em}"""


def as_dict(verdict: Verdict, info: dict[str, Any]) -> dict[str, Any]:
    """What report.json holds: DESIGN's keys, and the first cause."""
    return {
        "verdict": verdict.status,
        "first_cause": verdict.first,
        **info,
        "waived": list(verdict.waived),
        "checks": [
            {
                "name": o.name,
                "status": o.status,
                "metrics": {k: plain(v) for k, v in o.result.metrics.items()},
                "limits": {k: list(v) for k, v in o.limits.items()},
                "reason": o.reason,
                "remedy": o.remedy,
                "seconds": round(o.seconds, 2),
            }
            for o in verdict.outcomes
        ],
    }


def plain(value: Any) -> float | str:
    """A number that JSON knows; NaN and infinities as words."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def text(verdict: Verdict) -> str:
    """The table for the console: one line per check, and below it the reason and the remedy where
    it is not PASS.
    """
    width = max((len(o.name) for o in verdict.outcomes), default=5)
    lines = [f"{'check':{width}}  status  seconds  what was measured"]
    for o in verdict.outcomes:
        measured = "  ".join(
            f"{name} {number(o.result.metrics[name])}"
            for name in o.limits
            if name in o.result.metrics
        )
        mark = f"{o.status} (waived)" if o.name in verdict.waived else o.status
        lines.append(f"{o.name:{width}}  {mark:6}  {o.seconds:7.1f}  {measured[:150]}".rstrip())
        if o.status != PASS:
            lines.append(f"{'':{width}}    {o.reason}")
        if o.remedy:
            lines.append(f"{'':{width}}    -> {o.remedy}")
    tail = f"; look first at: {verdict.first}" if verdict.first else ""
    return texts.lines("\n".join([*lines, "", f"Pre-flight verdict: {verdict.status}{tail}"]))


def rows(verdict: Verdict) -> list[dict[str, Any]]:
    """One row per metric: check, status, metric, value, side, warn, fail."""
    table = []
    for o in verdict.outcomes:
        for metric, value in (o.result.metrics or {"": math.nan}).items():
            side, warn, fail = o.limits.get(metric, ("", "", "")) if metric else ("", "", "")
            table.append(
                {
                    "check": o.name,
                    "status": o.status,
                    "metric": metric,
                    "value": float(value),
                    "side": side,
                    "warn": warn,
                    "fail": fail,
                }
            )
    return table


def as_csv(table: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]) if table else ["check"])
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def badge(status: str) -> str:
    return f'<span class="badge" style="background:{COLOUR[status]}">{texts.page(status)}</span>'


def cell(value: Any) -> str:
    """A table cell; numbers to the right."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="n">{texts.page(number(float(value)))}</td>'
    return f"<td>{texts.page(value)}</td>"


def html_table(table: list[dict[str, Any]]) -> str:
    """A list of rows with named cells."""
    if not table:
        return ""
    head = "".join(f"<th>{texts.page(name)}</th>" for name in table[0])
    body = "".join(
        "<tr>" + "".join(cell(row[name]) for name in table[0]) + "</tr>" for row in table
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def picture(title: str, figure: Any) -> str:
    """A figure as an embedded PNG with its caption."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    data = base64.b64encode(out.getvalue()).decode()
    name = texts.page(title)
    return (
        f'<figure><img style="max-width:100%" alt="{name}" '
        f'src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'
    )


def section(o: Outcome, prefix: str, waived: bool) -> str:
    """One check: what it measured against its limits, its tables and pictures."""
    measured = [
        {
            "metric": name,
            "value": float(value),
            "expected": f"{SIGN[o.limits[name][0]]} {number(o.limits[name][1])}"
            if name in o.limits
            else "",
            "fails at": number(o.limits[name][2]) if name in o.limits else "",
        }
        for name, value in o.result.metrics.items()
    ]
    parts = [
        f'<h2 id="{texts.page(prefix + o.name)}">{texts.page(o.name)} '
        f"{badge(o.status)}"
        f"{' (waived)' if waived else ''}</h2>"
    ]
    if o.reason:
        parts.append(f"<p>{texts.page(o.reason)}</p>")
    if o.remedy:
        parts.append(f"<p><strong>What to do:</strong> {texts.page(o.remedy)}</p>")
    parts.append(html_table(measured))
    parts += [
        f"<h3>{texts.page(title)}</h3>{html_table(table)}"
        for title, table in o.result.tables.items()
    ]
    parts += [picture(title, figure) for title, figure in o.result.figures.items()]
    return "".join(parts)


def as_html(verdicts: dict[str, Verdict], info: dict[str, Any]) -> str:
    """One self-contained page; several runs stand side by side in its first table."""
    names = list(dict.fromkeys(o.name for v in verdicts.values() for o in v.outcomes))
    head = (
        "<tr><th>check</th>"
        + "".join(f"<th>{texts.page(run)} {badge(v.status)}</th>" for run, v in verdicts.items())
        + "</tr>"
    )
    lines = []
    for name in names:
        cells = []
        for run, v in verdicts.items():
            statuses = [o.status for o in v.outcomes if o.name == name]
            link = texts.page(f"#{run}-{name}")
            cells.append(
                f'<td><a href="{link}">{badge(statuses[0])}</a></td>' if statuses else "<td></td>"
            )
        lines.append(f"<tr><td>{texts.page(name)}</td>{''.join(cells)}</tr>")
    firsts = "".join(
        f"<p>{texts.page(run)}: look first at <strong>{texts.page(v.first)}</strong>.</p>"
        for run, v in verdicts.items()
        if v.first
    )
    known = html_table([{"": key, "value": str(value)} for key, value in info.items()])
    body = "".join(
        (f"<h1>{texts.page(run)}</h1>" if len(verdicts) > 1 else "")
        + "".join(section(o, f"{run}-", o.name in v.waived) for o in v.outcomes)
        for run, v in verdicts.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width">'
        f"<title>jaxvol pre-flight</title><style>{STYLE}</style></head><body><h1>jaxvol "
        f"pre-flight</h1>{firsts}"
        f"<table>{head}{''.join(lines)}</table>{known}{body}</body></html>"
    )


def text_of_changes(changes: list[dict[str, Any]], since: str) -> str:
    """What moved since an earlier pre-flight, for the console."""
    lines = [
        f"{row['what']:44} {number(row['before']):>12} -> {number(row['now'])}"
        for row in changes[:20]
    ]
    return "\n".join([f"\nMoved since {since}: {len(changes) or 'nothing'}", *lines])


def write(
    folder: Path,
    verdict: Verdict,
    info: dict[str, Any],
    run: str,
    changes: list[dict[str, Any]] | None = None,
) -> None:
    """report.json, report.csv, report.html and every figure as PNG in `folder`; `changes` since an
    earlier pre-flight.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = as_html({run: verdict}, info)
    if changes is not None:
        moved = (
            f"<h2>Moved since the earlier pre-flight</h2>{html_table(changes) or '<p>nothing</p>'}"
        )
        page = page.replace("</body></html>", f"{moved}</body></html>")
    (folder / "report.html").write_text(page, encoding="utf-8")
    atomic.write_text(folder / "report.csv", as_csv(rows(verdict)))
    for o in verdict.outcomes:
        for title, figure in o.result.figures.items():
            name = "".join(c if c.isalnum() else "_" for c in f"{o.name}_{title}")
            # 255 bytes is the longest name of a file
            figures.save(figure, folder / f"{name.encode()[:200].decode(errors='ignore')}.png")
    overrides = [
        f"{row['override']}    # {o.name}, {row['rule']}"
        for o in verdict.outcomes
        for table in o.result.tables.values()
        for row in table
        if "override" in row
    ]
    if overrides:
        atomic.write_text(folder / "overrides.txt", texts.lines("\n".join(overrides)) + "\n")
    tensorboard(folder / "tensorboard", verdict)
    # the JSON is what says that this pre-flight is done: it comes last
    atomic.write_text(folder / "report.json", json.dumps(as_dict(verdict, info), indent=1))


def tensorboard(folder: Path, verdict: Verdict) -> None:
    """preflight/<check>/<metric> as scalars, and the table as text, escaped because TensorBoard
    shows it as Markdown.
    """
    with SummaryWriter(str(folder)) as board:
        for o in verdict.outcomes:
            for metric, value in o.result.metrics.items():
                board.add_scalar(f"preflight/{o.name}/{metric}", float(value), 0)
        board.add_text("preflight", "<pre>" + texts.page(text(verdict)) + "</pre>", 0)


def read(folder: Path) -> dict[str, Any] | None:
    """The report.json of an earlier pre-flight, or None."""
    file = folder / "report.json"
    if not file.exists():
        return None
    try:
        with open_regular(file) as source:
            return json.load(source)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is not JSON ({texts.plain(error)}); delete it, and the pre-flight runs again."
        ) from error
