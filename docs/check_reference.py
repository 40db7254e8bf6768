"""The table of the pre-flight's checks in docs/checks.md, from the checks and their limits.

python docs/check_reference.py            prints it
python docs/check_reference.py --write    puts it into docs/checks.md, between its two markers
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jaxvol.diagnostics import preflight  # noqa: E402

PAGE = ROOT / "docs" / "checks.md"
BEGIN = "<!-- made by docs/check_reference.py --write -->\n"
END = "<!-- end of the checks -->\n"


def table() -> str:
    """One row per metric that has a limit, in the order in which the checks run."""
    rows = [
        "| check | measures | WARN unless | FAIL unless | what to do |",
        "|---|---|---|---|---|",
    ]
    checks = preflight.checks()
    for name in sorted(checks, key=lambda name: (checks[name].RANK, name)):
        module = checks[name]
        for i, (metric, (side, warn, fail)) in enumerate(module.LIMITS.items()):
            meaning, remedy = (text.replace("|", "¦") for text in module.MEANING[metric])
            rows.append(
                f"| {f'**{name}**' if i == 0 else ''} | `{metric}`: {meaning} | "
                f"{limit(side, warn)} | {limit(side, fail)} | {remedy} |"
            )
    return "\n".join(rows) + "\n"


def limit(side: str, value: float) -> str:
    """A limit in signs; beyond 1e8 there is none."""
    return "–" if value >= 1e8 else f"{'≥' if side == '>' else '≤'} {value:g}"


def written(page: str) -> str:
    """The page with the table of today."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table())
