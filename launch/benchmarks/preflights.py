"""Pre-flights of several configs side by side, in one page that works offline.

    python launch/benchmarks/preflights.py configs/fno.py:quick configs/vnet.py:quick
    python launch/benchmarks/preflights.py configs/healthy.py:fno configs/healthy.py:vnet \\
        --only data structure --output=runs/side-by-side.html

Exit status: 0, or 2 where a verdict is FAIL or ERROR.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from jaxvol.config import command_line, validate
from jaxvol.diagnostics import preflight, report
from jaxvol.runtime import provenance


def run(configs: list[str], only: tuple[str, ...], output: Path) -> bool:
    """Write the page; True if no verdict is FAIL or ERROR."""
    verdicts = {}
    for name in configs:
        config, _, _ = command_line.parse(["preflights", f"--config={name}"])
        for doubt in validate.validate(config):
            print(f"{name}: {doubt}")
        verdict = preflight.look(config, only)
        verdicts[Path(name).name] = verdict
        print(f"\n{name}\n{report.text(verdict)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report.as_html(verdicts, provenance.versions()), encoding="utf-8")
    print(f"\nThe page is {output}.")
    return not any(verdict.status in preflight.STOPS for verdict in verdicts.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", help="config files, with :variant")
    parser.add_argument("--only", nargs="*", default=[], help="checks; none: all that apply")
    parser.add_argument("--output", type=Path, default=Path("runs/preflights.html"))
    args = parser.parse_args()
    sys.exit(0 if run(args.configs, tuple(args.only), args.output) else 2)
