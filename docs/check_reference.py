"""The README's table of the pre-flight's checks, from the checks themselves and their limits.

python docs/check_reference.py            prints it
python docs/check_reference.py --write    puts it into README.md, between its two markers
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from jaxvol.config.limits import limits  # noqa: E402
from jaxvol.diagnostics import preflight  # noqa: E402

BEGIN, END = (
    "<!-- checks: made by docs/check_reference.py --write -->\n",
    "<!-- end of checks -->\n",
)


def table() -> str:
    """One row per metric that has a limit, in the order in which the checks run."""
    rows = [
        "| check | measures | WARN unless | FAIL unless | what to do |",
        "|---|---|---|---|---|",
    ]
    for name, module in sorted(
        preflight.checks().items(), key=lambda item: (item[1].RANK, item[0])
    ):
        for i, (metric, (side, warn, fail)) in enumerate(limits()[name].items()):
            meaning, remedy = module.MEANING[metric]
            rows.append(
                f"| {f'**{name}**' if i == 0 else ''} | `{metric}`: {meaning.replace('|', '¦')} | "
                f"{at_most(side, warn)} | "
                f"{at_most(side, fail)} | {remedy.replace('|', '¦')} |"
            )
    return "\n".join(rows) + "\n"


def at_most(side: str, value: float) -> str:
    """A limit in words; beyond 1e8 there is none."""
    return "–" if value >= 1e8 else f"{'≥' if side == '>' else '≤'} {value:g}"


def written(text: str) -> str:
    """The README with the table of today."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    if "--write" in sys.argv:
        readme.write_text(written(readme.read_text()))
    else:
        print(table())
