"""Pre-flights of several configs side by side, in one page that works offline.

python launch/benchmarks/preflights.py configs/fno.py:quick configs/vnet.py:quick
configs/vit3d.py:quick configs/pix2pixcc.py:quick python launch/benchmarks/preflights.py --only data
structure --output=runs/side-by-side.html configs/healthy.py:fno configs/healthy.py:vnet
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from jaxvol.config import command_line, validate
from jaxvol.diagnostics import (
    preflight,
    report,  # noqa: E402
)
from jaxvol.runtime import writer  # noqa: E402


def run(configs: list[str], only: tuple[str, ...], output: Path) -> bool:
    """Write the page; True if no verdict is FAIL or ERROR."""
    verdicts = {}
    for name in configs:
        config, _, _ = command_line.parse(["preflights", f"--config={name}"])
        for doubt in validate.validate(config):
            print(f"{name}: {doubt}")
        verdicts[Path(name).name] = preflight.look(config, only)
        print(f"\n{name}\n{report.text(verdicts[Path(name).name])}")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report.as_html(verdicts, writer.versions()), encoding="utf-8")
    print(f"\nThe page is {output}.")
    return not any(v.status in preflight.STOPS for v in verdicts.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", help="config files, with :variant")
    parser.add_argument("--only", nargs="*", default=[], help="checks; none: all that apply")
    parser.add_argument("--output", type=Path, default=Path("runs/preflights.html"))
    given = parser.parse_args()
    sys.exit(0 if run(given.configs, tuple(given.only), given.output) else 2)
